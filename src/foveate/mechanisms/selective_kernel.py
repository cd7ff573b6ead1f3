"""SKNet: Selective Kernel Networks, Li, Wang, Hu and Yang, CVPR 2019 (arXiv:1903.06586)."""

from typing import Any, ClassVar

from torch import Tensor, nn

from foveate.errors import check_positive
from foveate.mechanisms.base import Published, Replacement, check_divides
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

MIN_WIDTH = 32


@register_mechanism("sk")
class SelectiveKernel(Replacement):
    r"""Convolves at several dilations and weighs the results against one another by channel.

    .. math::
        y = \sum_m a_m \cdot U_m, \quad
        U_m = \mathrm{relu}(\mathrm{BN}(\mathrm{conv}_{3, m}(x))), \quad
        a = \mathrm{softmax}_m(W_m\,\mathrm{relu}(\mathrm{BN}(W\,\mathrm{mean}_{HW}(\sum_m U_m))))

    Branch :math:`m` has a 3x3 kernel of dilation :math:`m`.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step of the output.
        dilation: Factor of all dilations.
        num_branches: Dilations from 1 to this.
        num_groups: Groups of each convolution, a divisor of both numbers of channels.
        reduction: Ratio of the bottleneck, whose width is at least 32.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C_out, H_out, W_out)``
        - ``branch_1``, ``branch_2`` ...: ``(B, C_out, 1, 1)``, which add up to 1

    Raises:
        ValueError: If ``num_groups`` does not divide the channels, or a number is below 1.

    Note:
        The second branch is a dilated 3x3, as in the official code, not a 5x5. Popular copies take
        kernels of 5 or 7, leave the normalisation out between the two projections, or give these
        biases; timm gives each branch its own half of the input unless told otherwise.

    Example:
        >>> import torch
        >>> module = SelectiveKernel(64, stride=2)
        >>> module(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 4, 4])
    """

    timm: ClassVar[dict[str, dict[str, Any]]] = {"sk": {"num_groups": 1}}
    results: ClassVar[tuple[Published, ...]] = (
        Published("SKNet-50", "ImageNet top-1 error %", "20.79", "22.23", "SKNet README"),
        Published("SKNet-101", "ImageNet top-1 error %", "20.19", "", "SKNet README"),
    )

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        num_branches: int = 2,
        num_groups: int = 32,
        reduction: int = 16,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        check_positive(num_branches=num_branches, reduction=reduction)
        check_divides(num_groups=num_groups, channels=channels)
        check_divides(num_groups=num_groups, out_channels=self.out_channels)
        self.num_branches, self.num_groups, self.reduction = num_branches, num_groups, reduction
        self.branches = nn.ModuleList(self._branch(m + 1) for m in range(num_branches))
        hidden = max(self.out_channels // reduction, MIN_WIDTH)
        self.fc1 = nn.Conv2d(self.out_channels, hidden, 1, bias=False)
        self.norm = GateNorm(hidden)
        self.fc2 = nn.Conv2d(hidden, num_branches * self.out_channels, 1, bias=False)
        for fc in (self.fc1, self.fc2):
            nn.init.normal_(fc.weight, std=0.01)

    def _branch(self, dilation: int) -> nn.Module:
        dilation *= self.dilation
        conv = nn.Conv2d(
            self.channels,
            self.out_channels,
            3,
            stride=self.stride,
            padding=dilation,
            dilation=dilation,
            groups=self.num_groups,
            bias=False,
        )
        return nn.Sequential(conv, GateNorm(self.out_channels), nn.ReLU())

    def _weigh(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        z = sum(features[1:], start=features[0]).mean((2, 3), keepdim=True)  # (B, C_out, 1, 1)
        logits = self.fc2(self.norm(self.fc1(z)).relu())  # (B, M * C_out, 1, 1)
        return logits.unflatten(1, (self.num_branches, -1)).softmax(1).unbind(1)

    def branch(self, x: Tensor) -> Tensor:
        features = [branch(x) for branch in self.branches]
        weighed = [f * w for f, w in zip(features, self._weigh(features), strict=True)]
        return sum(weighed[1:], start=weighed[0])

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        weights = self._weigh([branch(x) for branch in self.branches])
        return {f"branch_{m}": weight for m, weight in enumerate(weights, start=1)}
