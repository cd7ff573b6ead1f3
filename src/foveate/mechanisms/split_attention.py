"""ResNeSt: Split-Attention Networks, Zhang et al., CVPR Workshops 2022 (arXiv:2004.08955)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.errors import InvalidValueError, check_positive
from foveate.mechanisms.base import Replacement, check_divides
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

MIN_WIDTH = 32


@register_mechanism("splat")
class SplitAttention(Replacement):
    r"""Convolves into several splits and weighs them against one another by channel.

    .. math::
        y = \sum_r a_r \cdot U_r, \quad
        a = \mathrm{softmax}_r(W_2\,\mathrm{relu}(\mathrm{BN}(W_1\,\mathrm{mean}_{HW}(\sum_r U_r))))

    with the splits :math:`U` those of one grouped 3x3 convolution, normalised and activated.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step of the output.
        dilation: Dilation of the convolution.
        radix: Splits, at least 2.
        num_groups: Cardinal groups, each with weights of its own.
        reduction: Ratio of the bottleneck, whose width is ``radix * channels // reduction``, at
            least 32.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C_out, H_out, W_out)``
        - ``split_1``, ``split_2`` ...: ``(B, C_out, 1, 1)``, which add up to 1

    Raises:
        ValueError: If ``radix`` is below 2, or ``radix * num_groups`` does not divide the channels.

    Note:
        In the network strided blocks keep stride 1 here and average 3x3 windows before; here the
        stride is that of the convolution.

    Example:
        >>> import torch
        >>> SplitAttention(64)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    timm: ClassVar[dict[str, dict[str, Any]]] = {"splat": {}}

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        radix: int = 2,
        num_groups: int = 1,
        reduction: int = 4,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        check_positive(num_groups=num_groups, reduction=reduction)
        if radix < 2:
            raise InvalidValueError(f"radix must be at least 2, but got {radix=}")
        groups = radix * num_groups
        check_divides(groups=groups, channels=channels)
        check_divides(num_groups=num_groups, out_channels=self.out_channels)
        self.radix, self.num_groups, self.reduction = radix, num_groups, reduction
        self.conv = nn.Conv2d(
            channels,
            radix * self.out_channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = GateNorm(radix * self.out_channels)
        hidden = max(radix * channels // reduction, MIN_WIDTH)
        check_divides(num_groups=num_groups, hidden=hidden)
        self.fc1 = nn.Conv2d(self.out_channels, hidden, 1, groups=num_groups)
        self.fc_norm = GateNorm(hidden)
        self.fc2 = nn.Conv2d(hidden, radix * self.out_channels, 1, groups=num_groups)

    def _splits(self, x: Tensor) -> Tensor:
        features = self.norm(self.conv(x)).relu()  # (B, R * C_out, H_out, W_out)
        return features.unflatten(1, (self.radix, -1))  # (B, R, C_out, H_out, W_out)

    def _weigh(self, splits: Tensor) -> Tensor:
        z = splits.sum(1).mean((2, 3), keepdim=True)  # (B, C_out, 1, 1)
        logits = self.fc2(self.fc_norm(self.fc1(z)).relu())  # (B, R * C_out, 1, 1)
        grouped = logits.unflatten(1, (self.num_groups, self.radix, -1))  # (B, K, R, C_out/K, 1, 1)
        return grouped.softmax(2).transpose(1, 2).flatten(2, 3)  # (B, R, C_out, 1, 1)

    def branch(self, x: Tensor) -> Tensor:
        splits = self._splits(x)
        return (splits * self._weigh(splits)).sum(1)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        weights = self._weigh(self._splits(x)).unbind(1)
        return {f"split_{r}": weight for r, weight in enumerate(weights, start=1)}
