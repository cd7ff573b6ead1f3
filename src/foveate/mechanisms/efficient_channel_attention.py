"""ECA-Net: Efficient Channel Attention, Wang et al., CVPR 2020 (arXiv:1910.03151)."""

import math

from torch import Tensor, nn

from foveate.errors import InvalidValueError
from foveate.mechanisms.base import Gate, check_odd
from foveate.registry import register_mechanism


@register_mechanism("eca")
class EfficientChannelAttention(Gate):
    r"""Weighs each channel by a gate computed from the means of its neighbours.

    .. math:: y = x \cdot \sigma(\mathrm{conv}_k(\mathrm{mean}_{HW}(x)))

    Without ``kernel_size`` the width :math:`k` of the convolution along the channels is
    :math:`t = \lfloor|(\log_2 C + b) / \gamma|\rfloor`, or :math:`t + 1` where that is even.

    Args:
        channels: Channels of the feature map.
        kernel_size: Odd width of the convolution; None for the rule above.
        gamma: Divisor in the rule.
        b: Offset in the rule.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``kernel_size`` is even or below 1, or ``gamma`` is zero.

    Note:
        The released models do not follow the rule: ResNet-50 has kernels 3, 5, 5, 7 by stage,
        where the rule on the width of the output gives 5, 5, 5, 7. timm raises 1 to 3.

    Example:
        >>> EfficientChannelAttention(256)
        EfficientChannelAttention(256, kernel_size=5, gamma=2, b=1)
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        gamma: float = 2,
        b: float = 1,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        if gamma == 0:
            raise InvalidValueError(f"gamma must not be zero, but got {gamma=}")
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(channels, gamma, b)
        check_odd(kernel_size=kernel_size)
        self.kernel_size, self.gamma, self.b = kernel_size, gamma, b
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        z = x.mean((2, 3)).unsqueeze(1)  # (B, 1, C)
        z = self.conv(z).sigmoid()  # (B, 1, C)
        return {"channel": z.transpose(1, 2).unsqueeze(3)}  # (B, C, 1, 1)


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """Width of the convolution by the rule of the paper.

    Example:
        >>> adaptive_kernel_size(64), adaptive_kernel_size(256)
        (3, 5)
    """
    t = int(abs((math.log2(channels) + b) / gamma))
    return t if t % 2 else t + 1
