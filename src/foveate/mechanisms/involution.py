"""Involution: Inverting the Inherence of Convolution, Li et al., CVPR 2021 (arXiv:2103.06255)."""

import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError
from foveate.mechanisms.base import Replacement, bottleneck, check_divides, check_odd
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism


@register_mechanism("involution")
class Involution(Replacement):
    r"""Convolves each position with a kernel computed from it and shared within groups of channels.

    .. math::
        y_{i, c} = \sum_{u} H_{i, u, g(c)}\,x_{i + u, c}, \quad
        H_i = W_1\,\mathrm{relu}(\mathrm{BN}(W_0\,x_i))

    Args:
        channels: Channels of the input.
        out_channels: None, or as many as ``channels``: involution mixes no channels.
        stride: Step of the output; the kernels are computed from means over so many pixels.
        dilation: Distance between the places of a kernel.
        kernel_size: Odd side of the kernels.
        group_width: Channels that share a kernel, a divisor of ``channels``.
        reduction: Ratio of the bottleneck :math:`W_0`.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C, H_out, W_out)``
        - ``kernel``: ``(B, 1, H_out, W_out)``, the length of the kernels of each position

    Raises:
        ValueError: If ``group_width`` does not divide the channels, ``kernel_size`` is even, or
            ``out_channels`` differs from ``channels``.

    Example:
        >>> import torch
        >>> Involution(32)(torch.rand(2, 32, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        kernel_size: int = 7,
        group_width: int = 16,
        reduction: int = 4,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        if self.out_channels != channels:
            raise InvalidValueError(
                f"out_channels must equal channels, but got {out_channels=} and {channels=}"
            )
        check_odd(kernel_size=kernel_size)
        check_divides(group_width=group_width, channels=channels)
        self.kernel_size, self.group_width, self.reduction = kernel_size, group_width, reduction
        hidden = bottleneck(channels, reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = GateNorm(hidden)
        self.span = nn.Conv2d(hidden, kernel_size**2 * (channels // group_width), 1)

    def _kernels(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)  # (B, C, H_out, W_out)
        z = self.span(self.norm(self.reduce(x)).relu())  # (B, G * K^2, H_out, W_out)
        return z.unflatten(1, (self.channels // self.group_width, 1, -1))  # (B, G, 1, K^2, ...)

    def branch(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (-1, self.group_width))  # (B, G, C/G, H, W)
        y = ops.local_aggregation(
            groups,
            self._kernels(x),
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
        )
        return y.flatten(1, 2)  # (B, C, H_out, W_out)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        kernels = self._kernels(x).flatten(1, 3)  # (B, G * K^2, H_out, W_out)
        return {"kernel": kernels.norm(dim=1, keepdim=True)}
