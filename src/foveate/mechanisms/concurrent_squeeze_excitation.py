"""scSE: Concurrent Spatial and Channel SE, Roy et al., MICCAI 2018 (arXiv:1803.02579).

The merges other than the sum are those of its journal version, IEEE TMI 2019 (arXiv:1808.08127).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice
from foveate.mechanisms.base import Gate, blend, bottleneck, pointwise, weights
from foveate.registry import register_mechanism

MERGES = ("max", "add", "mul", "concat")


class ChannelExcitation(nn.Module):
    """One gate for each channel, from the means of all: ``(B, C, H, W)`` to ``(B, C, 1, 1)``."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = bottleneck(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        (z,) = ops.spatial_pool(x, "mean")  # (B, C, 1, 1)
        return pointwise(self.fc2, pointwise(self.fc1, z).relu()).sigmoid()


class SpatialExcitation(nn.Module):
    """One gate for each position, from its channels: ``(B, C, H, W)`` to ``(B, 1, H, W)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return ops.channel_dot(x, *weights(self.conv, x)).sigmoid()  # (B, 1, H, W)


@register_mechanism("cse")
class ChannelSqueezeExcitation(Gate):
    r"""Weighs each channel by a gate computed from the means of all channels.

    .. math:: y = x \cdot \sigma(W_2\,\mathrm{relu}(W_1\,\mathrm{mean}_{HW}(x)))

    Squeeze-and-excitation with a wide bottleneck, as segmentation networks have it.

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``reduction`` is below 1.

    Note:
        Many copies have the ratio 16 of the original squeeze-and-excitation, or no biases.

    Example:
        >>> ChannelSqueezeExcitation(64)
        ChannelSqueezeExcitation(64, reduction=2)
    """

    fused = True
    mean_only = True

    def __init__(self, channels: int, *, reduction: int = 2, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.reduction = reduction
        self.channel_excitation = ChannelExcitation(channels, reduction)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        return {"channel": self.channel_excitation(x)}


@register_mechanism("sse")
class SpatialSqueezeExcitation(Gate):
    r"""Weighs each position by a gate computed from its own channels.

    .. math:: y_i = x_i \cdot \sigma(w^\top x_i + b)

    with :math:`x_i` the channels at position :math:`i`.

    Args:
        channels: Channels of the feature map.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``spatial``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``channels`` is below 1.

    Note:
        Some copies leave the bias out, or give every channel a gate of its own.

    Example:
        >>> SpatialSqueezeExcitation(64)
        SpatialSqueezeExcitation(64)
    """

    fused = True

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.spatial_excitation = SpatialExcitation(channels)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        return {"spatial": self.spatial_excitation(x)}


@register_mechanism("scse")
class ConcurrentSqueezeExcitation(Gate):
    r"""Weighs channels and positions side by side, and merges the two maps.

    .. math::
        y = \max(x \cdot c,\; x \cdot s), \quad
        c = \sigma(W_2\,\mathrm{relu}(W_1\,\mathrm{mean}_{HW}(x))), \quad
        s_i = \sigma(w^\top x_i + b)

    The identity form goes from the input to the merged map by a learned strength, zero at first.

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck of the channel gate.
        merge: ``"max"``, ``"add"`` or ``"mul"`` for the larger, the sum or the product of the two
            gated maps, or ``"concat"``: both, brought back to ``channels`` by a 1x1 convolution.
        init: ``"paper"`` or ``"identity"``.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``
        - ``spatial``: ``(B, 1, H, W)``

    Raises:
        ValueError: If ``merge`` is none of these, or ``reduction`` below 1.

    Note:
        The conference paper adds; the journal compares the four, and the official code takes the
        larger. Of a negative value that is the one with the smaller gate. The product squares the
        input. In the journal the next layer takes both maps of ``"concat"``, without a convolution
        between. segmentation_models.pytorch adds, with ``reduction=16``.

    Example:
        >>> ConcurrentSqueezeExcitation(64)
        ConcurrentSqueezeExcitation(64, reduction=2, merge='max')
    """

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "conference": {"merge": "add"},
        "segmentation_models": {"reduction": 16, "merge": "add"},
    }

    def __init__(
        self, channels: int, *, reduction: int = 2, merge: str = "max", init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        self.reduction, self.merge = reduction, check_choice("merge", merge, MERGES)
        self.channel_excitation = ChannelExcitation(channels, reduction)
        self.spatial_excitation = SpatialExcitation(channels)
        self.fused = merge == "max"
        if merge == "concat":
            self.conv = nn.Conv2d(2 * channels, channels, 1)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        return {"channel": self.channel_excitation(x), "spatial": self.spatial_excitation(x)}

    def forward(self, x: Tensor) -> Tensor:
        if self.merge == "max":
            x = ops.fuse(x)
            channel, spatial = self.gate(x).values()
            return ops.scale_by_pair(x, channel, spatial, "choice", self.strength)
        return self.weigh(x, self.gate(x))

    def weigh(self, x: Tensor, gates: dict[str, Tensor]) -> Tensor:
        channel, spatial = (ops.scale(x, gate) for gate in gates.values())
        return blend(x, self._merged(channel, spatial), self.strength)

    def _merged(self, channel: Tensor, spatial: Tensor) -> Tensor:
        if self.merge == "max":
            return torch.maximum(channel, spatial)
        if self.merge == "add":
            return channel + spatial
        if self.merge == "mul":
            return channel * spatial
        return self.conv(torch.cat([channel, spatial], dim=1))  # (B, 2C, H, W) to (B, C, H, W)
