"""ELA: Efficient Local Attention, Xu and Wan, 2024 (arXiv:2403.01123)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.mechanisms.base import Gate, check_divides, check_odd
from foveate.registry import register_mechanism


@register_mechanism("ela")
class EfficientLocalAttention(Gate):
    r"""Weighs each row and each column of each channel by gates from neighbouring rows and columns.

    .. math:: y = x \cdot g(\mathrm{mean}_W(x)) \cdot g(\mathrm{mean}_H(x)), \quad
        g(z) = \sigma(\mathrm{GN}(\mathrm{conv}_k(z)))

    One convolution along the strip and one normalisation serve both directions.

    Args:
        channels: Channels of the feature map.
        kernel_size: Odd width of the convolution.
        group_width: Channels in each group of the convolution, a divisor of ``channels``.
        num_groups: Groups of the normalisation, a divisor of ``channels``.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``height``: ``(B, C, H, 1)``
        - ``width``: ``(B, C, 1, W)``

    Raises:
        ValueError: If ``group_width`` or ``num_groups`` does not divide ``channels``, or
            ``kernel_size`` is even.

    Note:
        The paper names four sizes, T, B, S and L. timm's class of this name is another operator: a
        convolution for each direction, a normalisation over all channels, and a SiLU before the
        sigmoid.

    Example:
        >>> EfficientLocalAttention(64)
        EfficientLocalAttention(64, kernel_size=7, group_width=1, num_groups=16)
    """

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "T": {"kernel_size": 5, "num_groups": 32},
        "B": {},
        "S": {"kernel_size": 5, "group_width": 8},
        "L": {"group_width": 8},
    }
    timm: ClassVar[dict[str, dict[str, Any]]] = {"ela": {}}

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        group_width: int = 1,
        num_groups: int = 16,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        check_odd(kernel_size=kernel_size)
        check_divides(group_width=group_width, channels=channels)
        check_divides(num_groups=num_groups, channels=channels)
        self.kernel_size, self.group_width, self.num_groups = kernel_size, group_width, num_groups
        self.conv = nn.Conv1d(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=channels // group_width,
            bias=False,
        )
        self.norm = nn.GroupNorm(num_groups, channels)

    def _strip(self, z: Tensor) -> Tensor:
        # torch.group_norm, unlike the module, takes a strip of one value per group.
        norm = self.norm
        z = torch.group_norm(self.conv(z), self.num_groups, norm.weight, norm.bias, norm.eps)
        return z.sigmoid()  # (B, C, L)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        height, width = self._strip(x.mean(3)), self._strip(x.mean(2))  # (B, C, H), (B, C, W)
        return {"height": height.unsqueeze(3), "width": width.unsqueeze(2)}
