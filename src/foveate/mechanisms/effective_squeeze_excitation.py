"""eSE of VoVNetV2: CenterMask, Lee and Park, CVPR 2020 (arXiv:1911.06667)."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Gate, pointwise
from foveate.registry import register_mechanism


@register_mechanism("ese")
class EffectiveSqueezeExcitation(Gate):
    r"""Weighs each channel by a gate computed from the means of all, through one full layer.

    .. math::
        y = x \cdot \mathrm{hardsigmoid}(W\,\mathrm{mean}_{HW}(x) + b), \quad
        \mathrm{hardsigmoid}(z) = \min(\max(z + 3, 0), 6) / 6

    Args:
        channels: Channels of the feature map.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``channels`` is below 1.

    Note:
        Without a bottleneck no channel is lost before the gate, at :math:`C^2` parameters. The hard
        sigmoid has a slope of 1/6, not the 1/5 of some frameworks.

    Example:
        >>> EffectiveSqueezeExcitation(64)
        EffectiveSqueezeExcitation(64)
    """

    fused = True
    mean_only = True
    timm: ClassVar[dict[str, dict[str, Any]]] = {"ese": {}}

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.fc = nn.Conv2d(channels, channels, 1)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        (z,) = ops.spatial_pool(x, "mean")  # (B, C, 1, 1)
        return {"channel": F.hardsigmoid(pointwise(self.fc, z))}  # (B, C, 1, 1)
