"""EMA: Efficient Multi-Scale Attention, Ouyang et al., ICASSP 2023 (arXiv:2305.13563)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Gate, Published, check_divides, weights
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
        rows, columns = ops.strip_pool(groups)  # (B G, C/G, H, 1), (B G, C/G, 1, W)
        strips = self._strips(groups, rows, columns)
        asking = self._local_mean(groups, rows, columns).softmax(1)  # (B G, C/G, 1, 1)
        logits = self._read_local(groups) + (asking * strips).sum(1, keepdim=True)
        return {"position": logits.sigmoid().unflatten(0, (-1, self.num_groups)).squeeze(2)}

    def _strips(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The branch of the strips, ``(B G, C/G, H, W)``, which normalises what they weigh."""
        z = self.conv1x1(torch.cat([rows, columns.mT], dim=2)).sigmoid()  # (B G, C/G, H + W, 1)
        height, width = z.split([x.shape[2], x.shape[3]], dim=2)
        gn, x = self.gn, x * height * width.mT
        # As self.gn, which refuses the single position of a 1 x 1 map.
        return torch.group_norm(x, gn.num_groups, gn.weight, gn.bias, gn.eps)

    def _read_local(self, groups: Tensor) -> Tensor:
        """What the strips read of the 3x3 convolution, ``(B G, 1, H, W)``.

        They ask with their means, which the normalisation makes its biases. So the weighted sum
        of the channels of a convolution is one convolution, with the sum of the kernels.
        """
        asking = self.gn.bias.softmax(0)  # (C/G,)
        weight, bias = self._local_weights(groups)
        kernel = torch.einsum("o,oihw->ihw", asking, weight).unsqueeze(0)
        return F.conv2d(groups, kernel, torch.einsum("o,o->", asking, bias).view(1), padding=1)

    def _local_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = weights(self.conv3x3, x)
        assert bias is not None
        return weight, bias

    def _local_mean(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The mean over the positions of the 3x3 convolution, from those of rows and columns.

        Each tap of the kernel sees the map but for an outermost row, column, or both.
        """
        H, W = x.shape[2:]
        mean = rows.mean(2, keepdim=True)  # (B G, C/G, 1, 1)
        none = torch.zeros_like(mean)
        windows = []
        for row in (slice(-1, None), None, slice(0, 1)):
            for column in (slice(-1, None), None, slice(0, 1)):
                left_out = none if row is None else rows[:, :, row] / H
                left_out = left_out + (none if column is None else columns[..., column] / W)
                if row is not None and column is not None:
                    left_out = left_out - x[:, :, row, column] / (H * W)
                windows.append(mean - left_out)
        seen = torch.cat(windows, dim=3).unflatten(3, (3, 3)).squeeze(2)  # (B G, C/G, 3, 3)
        weight, bias = self._local_weights(x)
        return (torch.einsum("bihw,oihw->bo", seen, weight) + bias)[:, :, None, None]

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        gate = self.factors(x)["position"]  # (B, G, H, W)
        return {"position": gate.repeat_interleave(x.shape[1] // self.num_groups, dim=1)}

    def _weighed(self, x: Tensor) -> Tensor:
        return ops.scale(x, *self.factors(x).values())

    def forward(self, x: Tensor) -> Tensor:
        return ops.recomputed(self._weighed, x)
