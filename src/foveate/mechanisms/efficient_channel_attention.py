"""ECA-Net: Efficient Channel Attention, Wang et al., CVPR 2020 (arXiv:1910.03151)."""

import math
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError
from foveate.mechanisms.base import Gate, Published, bare, bottleneck, check_odd
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
        circular: Let the first and the last channel be neighbours; beyond the ends are zeros else.
            Not in the paper.
        reduction: Put a layer of ``channels // reduction`` units with ReLU, at least 1, before the
            convolution, shared by all channels, and give both a bias; None for no such layer, as in
            the paper.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``channel``: ``(B, C, 1, 1)``

    Raises:
        ValueError: If ``kernel_size`` is even or below 1, or goes round a circle more
            than once, ``gamma`` is zero, or ``reduction`` is below 1.

    Note:
        The released models do not follow the rule: ResNet-50 has kernels 3, 5, 5, 7 by stage,
        where the rule on the width of the output gives 5, 5, 5, 7, and on the width inside the
        block 3, 5, 5, 5. :func:`foveate.models.create` has the released ones. timm raises the 1
        that the rule gives below 8 channels to 3; its ``ceca`` is circular, and its ``ecam`` has
        the hidden layer, of a width rounded to a multiple of 8: the same only where ``channels`` is
        a multiple of 64. Some copies have a bias, or 3 channels everywhere.

    Example:
        >>> EfficientChannelAttention(256)
        EfficientChannelAttention(256, kernel_size=5, gamma=2, b=1, circular=False, reduction=None)
    """

    fused = True
    mean_only = True
    ends_blocks = True
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        **{f"k{size}": {"kernel_size": size} for size in (3, 5, 7)},
        "circular": {"circular": True},
    }
    timm: ClassVar[dict[str, dict[str, Any]]] = {
        "eca": {},
        "ceca": {"circular": True},
        "ecam": {"reduction": 8},
    }
    results: ClassVar[tuple[Published, ...]] = tuple(
        Published(model, "ImageNet top-1 accuracy %", value, "", "ECANet README")
        for model, value in (
            ("ResNet-18, kernels 3, 5, 7, 7", "70.92"),
            ("ResNet-50, kernels 3, 5, 5, 7", "77.42"),
            ("ResNet-101", "78.65"),
            ("MobileNetV2", "72.56"),
        )
    )

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        gamma: float = 2,
        b: float = 1,
        circular: bool = False,
        reduction: int | None = None,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        if gamma == 0:
            raise InvalidValueError(f"gamma must not be zero, but got {gamma=}")
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(channels, gamma, b)
        check_odd(kernel_size=kernel_size)
        self.kernel_size, self.gamma, self.b = kernel_size, gamma, b
        if circular and kernel_size // 2 > channels:
            raise InvalidValueError(
                f"kernel_size must go round the circle at most once, but got {kernel_size=} "
                f"and {channels=}"
            )
        self.circular, self.reduction = circular, reduction
        width = 1 if reduction is None else bottleneck(channels, reduction)
        conv = nn.Conv1d(
            width,
            1,
            kernel_size,
            padding=kernel_size // 2,
            padding_mode="circular" if circular else "zeros",
            bias=reduction is not None,
        )
        first = [] if reduction is None else [nn.Conv1d(1, width, 1), nn.ReLU()]
        self.conv = nn.Sequential(*first, conv) if first else conv

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        (z,) = ops.spatial_pool(x, "mean")  # (B, C, 1, 1)
        z = z.flatten(1).unsqueeze(1)  # (B, 1, C)
        z = self.conv(z).sigmoid()  # (B, 1, C)
        return {"channel": z.transpose(1, 2).unsqueeze(3)}  # (B, C, 1, 1)

    def whole(
        self, x: Tensor, shortcut: Tensor | None = None, *, in_place: bool = False
    ) -> Tensor | None:
        own, conv = type(self) is EfficientChannelAttention, self.conv
        if not own or self.circular or not isinstance(conv, nn.Conv1d) or not bare(conv):
            return None
        return ops.neighbours(x, conv.weight, self.strength, shortcut, in_place=in_place)


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """Width of the convolution by the rule of the paper.

    Example:
        >>> adaptive_kernel_size(64), adaptive_kernel_size(256)
        (3, 5)
    """
    t = int(abs((math.log2(channels) + b) / gamma))
    return t if t % 2 else t + 1
