"""LKA of the Visual Attention Network, Guo et al. (2202.09741); LSKA, Lau et al. (2309.01439)."""

from torch import Tensor, nn

from foveate.errors import InvalidValueError
from foveate.mechanisms.base import Gate
from foveate.registry import register_mechanism

LSKA_KERNELS = {
    7: (3, 3, 2),
    11: (3, 5, 2),
    23: (5, 7, 3),
    35: (5, 11, 3),
    41: (5, 13, 3),
    53: (5, 17, 3),
}
"""By the whole kernel: the first, the dilated one, and its dilation."""


def _init(module: nn.Module) -> None:
    """Start as in the authors' networks, by the fan-out of a group, which is also its fan-in."""
    for name, parameter in module.named_parameters():
        if name.endswith(".weight"):
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)


@register_mechanism("lka")
class LargeKernelAttention(Gate):
    r"""Weighs each element by a convolution of 21x21, taken apart into three small ones.

    .. math:: y = x \cdot (W\,\mathrm{dw}_{7, d=3}(\mathrm{dw}_5(x)) + b)

    The factor is not squashed: it may be negative or above 1.

    Args:
        channels: Channels of the feature map.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``attention``: ``(B, C, H, W)``

    Note:
        In the network it stands between two pointwise convolutions with a GELU and a skip.

    Example:
        >>> LargeKernelAttention(64)
        LargeKernelAttention(64)
    """

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.conv0 = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv_spatial = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        _init(self)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        return {"attention": self.conv1(self.conv_spatial(self.conv0(x)))}  # (B, C, H, W)


@register_mechanism("lska")
class LargeSeparableKernelAttention(Gate):
    r"""Weighs each element by a large convolution, taken apart into rows and columns.

    .. math::
        y = x \cdot (W\,\mathrm{dw}_{k_2 \times 1}(\mathrm{dw}_{1 \times k_2}(z)) + b), \quad
        z = \mathrm{dw}_{k_1 \times 1}(\mathrm{dw}_{1 \times k_1}(x))

    where the second pair is dilated.

    Args:
        channels: Channels of the feature map.
        kernel_size: Whole width: 7, 11, 23, 35, 41 or 53.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``attention``: ``(B, C, H, W)``

    Raises:
        ValueError: If ``kernel_size`` is none of these.

    Example:
        >>> LargeSeparableKernelAttention(64)
        LargeSeparableKernelAttention(64, kernel_size=23)
    """

    def __init__(self, channels: int, *, kernel_size: int = 23, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        if kernel_size not in LSKA_KERNELS:
            raise InvalidValueError(
                f"kernel_size must be one of {list(LSKA_KERNELS)}, but got {kernel_size=}"
            )
        self.kernel_size = kernel_size
        first, second, dilation = LSKA_KERNELS[kernel_size]
        self.conv0h = self._strip(1, first)
        self.conv0v = self._strip(first, 1)
        self.conv_spatial_h = self._strip(1, second, dilation)
        self.conv_spatial_v = self._strip(second, 1, dilation)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        _init(self)

    def _strip(self, rows: int, columns: int, dilation: int = 1) -> nn.Conv2d:
        padding = (dilation * (rows // 2), dilation * (columns // 2))
        return nn.Conv2d(
            self.channels,
            self.channels,
            (rows, columns),
            padding=padding,
            dilation=dilation,
            groups=self.channels,
        )

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        z = self.conv0v(self.conv0h(x))  # (B, C, H, W)
        z = self.conv_spatial_v(self.conv_spatial_h(z))  # (B, C, H, W)
        return {"attention": self.conv1(z)}
