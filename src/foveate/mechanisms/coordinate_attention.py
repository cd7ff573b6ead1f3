"""Coordinate Attention for Efficient Mobile Network Design, Hou et al., CVPR 2021 (2103.02907)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_choice
from foveate.mechanisms.base import Gate, Published, bare, bottleneck
from foveate.mechanisms.norm import GateNorm
from foveate.registry import register_mechanism

MERGES = ("product", "sum")


@register_mechanism("coord")
class CoordinateAttention(Gate):
    r"""Weighs each row and each column of each channel by gates from row and column means.

    .. math::
        [f_h; f_w] = \mathrm{hardswish}(\mathrm{BN}(W_1 [\mathrm{mean}_W(x); \mathrm{mean}_H(x)])),
        \quad y = x \cdot \sigma(W_h f_h) \cdot \sigma(W_w f_w)

    Args:
        channels: Channels of the feature map.
        reduction: Ratio of the bottleneck, whose width is ``channels // reduction``, at least 8.
        norm: Normalise the bottleneck.
        merge: ``"product"`` of the two gates, or ``"sum"``: one gate of the sum of both logits.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Gate`).

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``height``: ``(B, C, H, 1)``
        - ``width``: ``(B, C, 1, W)``; with ``merge="sum"`` only ``element``: ``(B, C, H, W)``

    Raises:
        ValueError: If ``reduction`` is below 1, or ``merge`` is neither of the two.

    Note:
        The paper's MobileNetV2 has it after the depthwise convolution, on the expanded width.
        timm leaves the biases out and has another width, so official weights do not fit it; its
        simple form has a sum, no normalisation, and a SiLU for the h-swish.

    Example:
        >>> import torch
        >>> CoordinateAttention(64)(torch.rand(2, 64, 8, 6)).shape
        torch.Size([2, 64, 8, 6])
    """

    timm: ClassVar[dict[str, dict[str, Any]]] = {
        "coord": {},
        "scoord": {"norm": False, "merge": "sum"},
    }
    results: ClassVar[tuple[Published, ...]] = (
        Published(
            "MobileNetV2", "ImageNet top-1 accuracy %", "74.3", "72.3", "CoordAttention README"
        ),
    )

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        norm: bool = True,
        merge: str = "product",
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        self.reduction, self.norm = reduction, norm
        self.merge = check_choice("merge", merge, MERGES)
        self.fused = merge == "product"  # a sum gives a gate as large as the map
        hidden = max(8, bottleneck(channels, reduction))
        self.conv1 = nn.Conv2d(channels, hidden, 1)
        self.bn1 = GateNorm(hidden) if norm else nn.Identity()
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        logits = self._logits(*ops.strip_pool(x))  # (B, C, H + W, 1)
        height, width = self._split(logits, x)
        if self.merge == "sum":
            return {"element": (height + width).sigmoid()}  # (B, C, H, W)
        return {"height": height.sigmoid(), "width": width.sigmoid()}

    def whole(
        self, x: Tensor, shortcut: Tensor | None = None, *, in_place: bool = False
    ) -> Tensor | None:
        bn = self.bn1
        if type(self) is not CoordinateAttention or self.merge != "product" or shortcut is not None:
            return None
        if not bare(self.conv1, bn, self.conv_h, self.conv_w, also=(GateNorm, nn.Identity)):
            return None
        scale = shift = running = None
        eps = 0.0
        if isinstance(bn, GateNorm):
            if bn.running_mean is None or bn.momentum is None or (bn.training and ops.again()):
                return None
            scale, shift, running, eps = bn.weight, bn.bias, bn.running(), bn.eps
        layers = (self.conv1, self.conv_h, self.conv_w)
        (w1, b1), (wh, bh), (ww, bw) = ((layer.weight, layer.bias) for layer in layers)
        weights = ops.CoordWeights(w1, b1, scale, shift, wh, bh, ww, bw, self.strength)
        found = ops.coord(x, weights, running, eps)
        if found is None:
            return None
        y, statistics = found
        if statistics is not None and isinstance(bn, GateNorm):
            bn.update(*statistics)
        return y

    def factors(self, x: Tensor) -> dict[str, Tensor]:
        if self.merge == "sum":
            return super().factors(x)
        strips = ops.recomputed(self._tempered, *ops.strip_pool(x))  # (B, C, H + W, 1)
        height, width = self._split(strips, x)
        return {"height": height, "width": width}

    def _tempered(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.temper(self._logits(rows, columns).sigmoid())

    def _split(self, strips: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = strips.split([x.shape[2], x.shape[3]], dim=2)
        return height, width.mT  # (B, C, H, 1), (B, C, 1, W)

    def _logits(self, rows: Tensor, columns: Tensor) -> Tensor:
        H, W = rows.shape[2], columns.shape[3]
        z = torch.cat([rows, columns.mT], dim=2)  # (B, C, H + W, 1)
        z = F.hardswish(self.bn1(self.conv1(z)))  # (B, hidden, H + W, 1)
        rows, columns = z.split([H, W], dim=2)
        return torch.cat([self.conv_h(rows), self.conv_w(columns)], dim=2)
