"""EMA: Efficient Multi-Scale Attention, Ouyang et al., ICASSP 2023 (arXiv:2305.13563)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.mechanisms.base import Gate, Published, check_divides
from foveate.registry import register_mechanism


@register_mechanism("ema")
class EfficientMultiScaleAttention(Gate):
    r"""Weighs, in each group of channels, each position by two branches that read each other.

    .. math::
        y_p = x_p \cdot \sigma(\mathrm{softmax}(\bar u)^\top v_p
            + \mathrm{softmax}(\bar v)^\top u_p), \quad
        u = \mathrm{GN}(x \cdot \sigma(W r) \cdot \sigma(W c)), \quad
        v = \mathrm{conv}_3(x)

    for each group, all with the same weights: :math:`r` and :math:`c` are the means of its rows and
    columns, :math:`\bar u` and :math:`\bar v` means over all positions, and the softmax is over the
    channels of the group.

    Args:
        channels: Channels of the feature map.
        num_groups: Groups, a divisor of ``channels``.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``position``: ``(B, C, H, W)``, the same for all channels of a group

    Raises:
        ValueError: If ``num_groups`` does not divide ``channels``.

    Note:
        GN has one channel a group, so the mean :math:`\bar u` is its bias whatever the input: the
        first softmax is learned but attends to nothing, and starts uniform. Kept, as published.

    Example:
        >>> EfficientMultiScaleAttention(256)
        EfficientMultiScaleAttention(256, num_groups=32)
    """

    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, "CIFAR-100 top-1 accuracy %", value, baseline, "EMA README")
        for model, value, baseline in (
            ("ResNet-50", "80.69", "77.26"),
            ("ResNet-101", "80.86", "77.78"),
        )
    )

    def __init__(self, channels: int, *, num_groups: int = 32, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        check_divides(num_groups=num_groups, channels=channels)
        self.num_groups = num_groups
        width = channels // num_groups
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)
        self.gn = nn.GroupNorm(width, width)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        groups = x.unflatten(1, (self.num_groups, -1)).flatten(0, 1)  # (B G, C/G, H, W)
        strips, local = self._strips(groups), self.conv3x3(groups)  # (B G, C/G, H, W)
        logits = _read(strips, local) + _read(local, strips)  # (B G, 1, H, W)
        gate = logits.sigmoid().expand_as(groups)  # (B G, C/G, H, W)
        return {"position": gate.unflatten(0, (-1, self.num_groups)).flatten(1, 2)}  # (B, C, H, W)

    def _strips(self, x: Tensor) -> Tensor:
        """The branch that gates by row and column means, normalised."""
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT  # (B G, C/G, H or W, 1)
        strips = self.conv1x1(torch.cat([rows, columns], dim=2)).sigmoid()  # (B G, C/G, H + W, 1)
        rows, columns = strips.split([x.shape[2], x.shape[3]], dim=2)
        # As self.gn, which refuses the single position of a 1 x 1 map.
        return torch.group_norm(
            x * rows * columns.mT, self.gn.num_groups, self.gn.weight, self.gn.bias, self.gn.eps
        )


def _read(asking: Tensor, read: Tensor) -> Tensor:
    """Mean of the channels of ``read``, weighted by the softmax of the means of ``asking``."""
    weight = asking.mean((2, 3), keepdim=True).softmax(1)  # (B G, C/G, 1, 1)
    return (weight * read).sum(1, keepdim=True)  # (B G, 1, H, W)
