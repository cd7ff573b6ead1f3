"""Dual Attention Network for Scene Segmentation, Fu et al., CVPR 2019 (arXiv:1809.02983)."""

from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Mixer, bottleneck
from foveate.mechanisms.projection import project
from foveate.registry import register_mechanism


@register_mechanism("danet_position")
class DANetPosition(Mixer):
    r"""Adds to each position a mean over all positions, weighted by likeness.

    .. math:: y_i = x_i + s \sum_j \mathrm{softmax}_j(q_i^\top k_j)\,v_j

    The scores are not scaled, and no pair of positions is held in memory.

    Args:
        channels: Channels of the feature map; queries and keys have an eighth, at least 1.
        init: Paper's form or identity, here the same: the scale :math:`s` starts at zero.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Note:
        The paper's figure has batch normalisation and ReLU on queries and keys; its authors'
        code, which they confirmed, has neither. Some copies keep all channels in queries and
        keys, or scale the scores.

    Example:
        >>> import torch
        >>> DANetPosition(64)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    place = "head"
    published_scale = 0.0

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        hidden = bottleneck(channels, 8)
        self.query_conv = nn.Conv2d(channels, hidden, 1)
        self.key_conv = nn.Conv2d(channels, hidden, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)

    def mix(self, x: Tensor) -> Tensor:
        return self._attend(x)

    def added(self, x: Tensor) -> Tensor:
        return self._attend(x, self.scale).to(x.dtype)

    def affinity(self, x: Tensor) -> ops.Affinity:
        q, k, _ = self._tokens(x)
        return ops.softmax_affinity(q, k, scale=1.0, size=x.shape[2:])

    def _tokens(self, x: Tensor, scale: Tensor | None = None) -> list[Tensor]:
        qkv = project(x, self.query_conv, self.key_conv, self.value_conv, scale)
        dim = self.query_conv.out_channels
        return [ops.to_tokens(t) for t in qkv.split([dim, dim, self.channels], dim=1)]

    def _attend(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = ops.position_attention(*self._tokens(x, scale), scale=1.0)  # (B, 1, HW, C)
        return ops.from_tokens(y, like=x)  # (B, C, H, W)


@register_mechanism("danet_channel")
class DANetChannel(Mixer):
    r"""Adds to each channel a mean over all channels, weighted by unlikeness.

    .. math::
        y_i = x_i + s \sum_j \mathrm{softmax}_j(\max_k E_{ik} - E_{ij})\,x_j, \quad E = X X^\top

    Args:
        channels: Channels of the feature map.
        init: Paper's form or identity, here the same: the scale :math:`s` starts at zero.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Note:
        The subtraction from the maximum is in the official code and not in the paper's formula. It
        is no numerical trick: the weights are the softmax of :math:`-E`, so that a channel itself,
        most like it, has the least. Copies that leave it out compute the opposite.

    Example:
        >>> import torch
        >>> DANetChannel(64)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    place = "head"
    published_scale = 0.0

    def mix(self, x: Tensor) -> Tensor:
        return ops.channel_attention(x)


@register_mechanism("danet")
class DANet(Mixer):
    r"""Adds what attention to positions and attention to channels gather, side by side.

    .. math:: y = x + s_p\,\mathrm{position}(x) + s_c\,\mathrm{channel}(x)

    Args:
        channels: Channels of the feature map.
        init: Paper's form or identity, here the same: both scales start at zero.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``position``, ``channel``: ``(B, 1, H, W)``, the lengths of the two summands

    Note:
        The paper's segmentation head has a convolution before and after each of the two, and
        sums their outputs, inputs included; here the input is added once.

    Example:
        >>> import torch
        >>> sorted(DANet(64).maps(torch.rand(2, 64, 8, 8)))
        ['channel', 'position']
    """

    place = "head"
    identity_scale = None

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.position = DANetPosition(channels, init=init)
        self.channel = DANetChannel(channels, init=init)

    def mix(self, x: Tensor) -> Tensor:
        return self.position.added(x) + self.channel.added(x)

    def affinity(self, x: Tensor) -> ops.Affinity:
        return self.position.affinity(x)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "position": self.position.maps(x)["added"],
            "channel": self.channel.maps(x)["added"],
        }
