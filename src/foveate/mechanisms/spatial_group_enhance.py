"""SGE: Spatial Group-wise Enhance, Li, Hu and Yang, 2019 (arXiv:1905.09646)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Gate, Published, check_divides
from foveate.registry import register_mechanism

EPS = 1e-5
PLAIN = (1 << 20, 1 << 22)
"""Elements of a map, contiguous or channels_last, below which inference needs no kernels."""


@register_mechanism("sge")
class SpatialGroupEnhance(Gate):
    r"""Weighs, in each group of channels, each position by its likeness to the group's mean.

    .. math::
        y_p = x_p \cdot \sigma(w\,\hat t_p + b), \quad
        \hat t_p = (t_p - \mathrm{mean}(t)) / (\mathrm{std}(t) + \epsilon), \quad
        t_p = x_p^\top\,\mathrm{mean}_{HW}(x)

    with :math:`x_p` the channels of one group at position :math:`p`. Where all positions are alike,
    as on a 1 x 1 map, :math:`\hat t = 0`. Starts with :math:`w = 0` and :math:`b = 1`.

    Args:
        channels: Channels of the feature map.
        num_groups: Groups, a divisor of ``channels``; each has one weight and one bias.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``position``: ``(B, C, H, W)``, the same for all channels of a group

    Raises:
        ValueError: If ``num_groups`` does not divide ``channels``.

    Note:
        The standard deviation is the unbiased one, and :math:`\epsilon` is added to it, not to the
        variance. Some copies start with :math:`b = 0`, which halves the map; many give NaN on
        1 x 1 maps.

    Example:
        >>> SpatialGroupEnhance(256)
        SpatialGroupEnhance(256, num_groups=64)
    """

    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, "ImageNet top-1 accuracy %", value, baseline, "PytorchInsight README")
        for model, value, baseline in (
            ("ResNet-50", "77.58", "76.38"),
            ("ResNet-101", "78.80", "78.20"),
        )
    )

    def __init__(self, channels: int, *, num_groups: int = 64, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        check_divides(num_groups=num_groups, channels=channels)
        self.num_groups = num_groups
        self.fused = num_groups < channels  # else the gate is as large as the map
        self.weight = nn.Parameter(torch.zeros(1, num_groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, num_groups, 1, 1))

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        gate = self.factors(x)["position"]  # (B, G, H, W)
        return {"position": gate.repeat_interleave(x.shape[1] // self.num_groups, dim=1)}

    def plain_inference(self, x: Tensor) -> bool:
        return x.numel() < PLAIN[not x.is_contiguous()]

    def forward(self, x: Tensor) -> Tensor:
        x = ops.fuse(x, plain_inference=self.plain_inference(x)) if self.fused else x
        return ops.recomputed(self._weighed, x)  # each map of groups may be a quarter of x

    def _weighed(self, x: Tensor) -> Tensor:
        return ops.scale(x, *self.factors(x).values())

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        (mean,) = ops.spatial_pool(x, "mean")  # (B, C, 1, 1)
        t = ops.channel_dot(x, mean, groups=self.num_groups)  # (B, G, H, W)
        return {"position": (_standardised(t) * self.weight + self.bias).sigmoid()}


def _standardised(t: Tensor) -> Tensor:
    """Each map less its mean, over its deviation; zero, with a finite gradient, where constant."""
    t = t - t.mean((2, 3), keepdim=True)
    n = t.shape[2] * t.shape[3]
    freedom = n - 1 + 1 // n  # max(n - 1, 1), in arithmetic that every exporter follows
    std = torch.linalg.vector_norm(t, dim=(2, 3), keepdim=True) / freedom**0.5  # (B, G, 1, 1)
    return t / (std + EPS)
