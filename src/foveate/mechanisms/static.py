"""The control: a learned gate of the shape of an attention gate, but blind to the input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import check_choice, check_positive
from foveate.mechanisms.base import Gate
from foveate.registry import register_mechanism

SHAPES = ("channel", "spatial", "both")


@register_mechanism("static")
class Static(Gate):
    r"""Weighs channels, positions or both by learned gates that are the same for every input.

    .. math:: y = x \cdot \sigma(\ell)

    What this control gains, an attention mechanism gains without attending to anything.

    Args:
        channels: Channels of the feature map.
        shape: Which gates: ``"channel"``, ``"spatial"`` or ``"both"``.
        size: Side of the learned square of spatial logits, resized bilinearly to each map.
        init: Gates of 0.5 (``"paper"``: a fresh sigmoid), or identity (see
            :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(1, C, 1, 1)``
        - ``spatial``: ``(1, 1, H, W)``

    Raises:
        ValueError: If ``shape`` is none of the three, or ``size`` is below 1.

    Example:
        >>> Static(64, shape="spatial")
        Static(64, shape='spatial', size=7)
    """

    def __init__(
        self, channels: int, *, shape: str = "channel", size: int = 7, init: str = "paper"
    ) -> None:
        super().__init__(channels, init=init)
        check_positive(size=size)
        self.shape, self.size = check_choice("shape", shape, SHAPES), size
        if shape != "spatial":
            self.channel_logits = nn.Parameter(torch.zeros(1, channels, 1, 1))
        if shape != "channel":
            self.spatial_logits = nn.Parameter(torch.zeros(1, 1, size, size))

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        gates = {}
        if self.shape != "spatial":
            gates["channel"] = self.channel_logits.sigmoid()  # (1, C, 1, 1)
        if self.shape != "channel":
            logits = F.interpolate(self.spatial_logits, x.shape[2:], mode="bilinear")
            gates["spatial"] = logits.sigmoid()  # (1, 1, H, W)
        return gates
