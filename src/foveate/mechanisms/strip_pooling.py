"""SPNet: Strip Pooling: Rethinking Spatial Pooling, Hou et al., CVPR 2020 (arXiv:2003.13328)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.mechanisms.base import Gate, Mixer, blend, bottleneck
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

POOLED = (20, 12)
"""Sides of the two squares that the mixed pooling module averages into."""


def _conv_norm(channels: int, out: int, kernel_size: int | tuple[int, int]) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel_size, padding="same", bias=False)
    return nn.Sequential(conv, GateNorm(out))


@register_mechanism("strip")
class StripPooling(Gate):
    r"""Weighs each element by a gate computed from the means of its row and of its column.

    .. math:: y = x \cdot \sigma(W\,\mathrm{relu}(h + w) + b), \quad
        h = \mathrm{BN}(\mathrm{conv}_{3 \times 1}(\mathrm{mean}_W(x))), \quad
        w = \mathrm{BN}(\mathrm{conv}_{1 \times 3}(\mathrm{mean}_H(x)))

    Args:
        channels: Channels of the feature map.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``element``: ``(B, C, H, W)``

    Note:
        The official block returns the gate, and its caller multiplies. timm's class of this name
        is another operator: depthwise convolutions of both strips, summed and squashed.

    Example:
        >>> StripPooling(64)
        StripPooling(64)
    """

    place = "inner"
    timm: ClassVar[dict[str, dict[str, Any]]] = {"strip": {}}

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        self.conv_h = _conv_norm(channels, channels, (3, 1))
        self.conv_w = _conv_norm(channels, channels, (1, 3))
        self.conv = nn.Conv2d(channels, channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        return {"element": self._element(*ops.strip_pool(x))}  # (B, C, H, W)

    def _element(self, rows: Tensor, columns: Tensor) -> Tensor:
        element = self.conv_h(rows) + self.conv_w(columns)  # (B, C, H, 1) and (B, C, 1, W)
        return self.conv(element.relu()).sigmoid()  # (B, C, H, W)

    def _weighed(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return ops.scale(x, self.temper(self._element(rows, columns)))

    def forward(self, x: Tensor) -> Tensor:
        # Three maps as large as x would be kept between sum and gate.
        return ops.recomputed(self._weighed, x, *ops.strip_pool(x))


@register_mechanism("mixed_pooling")
class MixedPooling(Mixer):
    r"""Adds what pooling into strips and into squares gathers, through a narrow width.

    .. math:: y = \mathrm{relu}(x + \mathrm{BN}(W [s(x); p(x)]))

    The short range :math:`p` sums a 3x3 convolution of the map and of its means over 20x20 and
    12x12 cells, the long range :math:`s` those of row and column means.

    Args:
        channels: Channels of the feature map; both ranges have a quarter, at least 1.
        init: Paper's form, or identity: the scale draws the output from the input, at 0, to the
            paper's, at 1.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``

    Note:
        The network has two of these in a row before its classifier.

    Example:
        >>> import torch
        >>> MixedPooling(64)(torch.rand(2, 64, 24, 16)).shape
        torch.Size([2, 64, 24, 16])
    """

    place = "head"

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        width = bottleneck(channels, 4)
        self.reduce_short = _conv_norm(channels, width, 1)
        self.reduce_long = _conv_norm(channels, width, 1)
        self.local = _conv_norm(width, width, 3)
        self.squares = nn.ModuleList(_conv_norm(width, width, 3) for _ in POOLED)
        self.conv_w = _conv_norm(width, width, (1, 3))
        self.conv_h = _conv_norm(width, width, (3, 1))
        self.short = _conv_norm(width, width, 3)
        self.long = _conv_norm(width, width, 3)
        self.out = _conv_norm(2 * width, channels, 1)

    def mix(self, x: Tensor) -> Tensor:
        narrow = self.reduce_short(x).relu()  # (B, C/4, H, W)
        short = self.local(narrow)
        for side, conv in zip(POOLED, self.squares, strict=True):
            cells = conv(ops.cell_means(narrow, (side, side)))  # (B, C/4, side, side)
            short = short + F.interpolate(
                cells, size=x.shape[2:], mode="bilinear", align_corners=True
            )
        narrow = self.reduce_long(x).relu()  # (B, C/4, H, W)
        long = self.conv_w(narrow.mean(2, keepdim=True)) + self.conv_h(narrow.mean(3, keepdim=True))
        ranges = [self.short(short.relu()).relu(), self.long(long.relu()).relu()]
        return self.out(torch.cat(ranges, dim=1))  # (B, C, H, W)

    def forward(self, x: Tensor) -> Tensor:
        return blend(x, (x + self.mix(x)).relu(), self.scale)
