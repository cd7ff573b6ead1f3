"""CCNet: Criss-Cross Attention for Semantic Segmentation, Huang et al., ICCV 2019 (1811.11721)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_positive
from foveate.mechanisms.base import Mixer, Published, bottleneck
from foveate.mechanisms.projection import project, stacked
from foveate.registry import register_mechanism


@register_mechanism("criss_cross")
class CrissCross(Mixer):
    r"""Adds to each position a mean over its row and column, weighted by likeness, and repeats.

    .. math:: y_i = x_i + s \sum_{j \in R_i \cup C_i} \mathrm{softmax}_j(q_i^\top k_j)\,v_j

    One softmax spans the :math:`H + W - 1` positions of row and column. The second pass, with the
    same weights, brings every position to every other. Where kernels serve it, training keeps the
    input of each pass and the projection of the last, and projects again for the others backward.

    Args:
        channels: Channels of the feature map; queries and keys have an eighth, at least 1.
        recurrence: Passes.
        init: Paper's form or identity, here the same: the scale :math:`s` starts at zero.

    Shape:
        - Input and output: ``(B, C, H, W)``
        - ``added``: ``(B, 1, H, W)``, the length of what all passes added

    Raises:
        ValueError: If ``recurrence`` is below 1.

    Note:
        The official training script has ``recurrence`` 0 unless told: no attention at all. Some
        copies take one softmax for the row and one for the column, do not mask the position
        itself in one of them or mask it in both, or give each pass weights of its own.

    Example:
        >>> import torch
        >>> CrissCross(64)(torch.rand(2, 64, 8, 6)).shape
        torch.Size([2, 64, 8, 6])
    """

    place = "head"
    published_scale = 0.0
    variants: ClassVar[dict[str, dict[str, Any]]] = {"single_pass": {"recurrence": 1}}
    results: ClassVar[tuple[Published, ...]] = (
        Published(
            "CCNet ResNet-101, one pass, three runs",
            "Cityscapes val mIoU %",
            "77.31, 77.91, 76.89",
            "",
            "CCNet README",
        ),
        Published(
            "CCNet ResNet-101, two passes, three runs",
            "Cityscapes val mIoU %",
            "79.74, 79.22, 78.40",
            "",
            "CCNet README",
        ),
    )

    def __init__(self, channels: int, *, recurrence: int = 2, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        check_positive(recurrence=recurrence)
        self.recurrence = recurrence
        hidden = bottleneck(channels, 8)
        self.query_conv = nn.Conv2d(channels, hidden, 1)
        self.key_conv = nn.Conv2d(channels, hidden, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)

    def mix(self, x: Tensor) -> Tensor:
        return ops.criss_cross_attention(self._project(x), self._dim)  # (B, C, H, W)

    def affinity(self, x: Tensor) -> ops.Affinity:
        """The weights of all passes, one after the other, without the map that each adds to."""
        projected = [self._project(y) for y in self._inputs(x)[:-1]]
        positions = x.shape[2] * x.shape[3]

        def rows(at: Tensor) -> Tensor:
            weights = F.one_hot(at, positions).to(x.dtype).unflatten(1, x.shape[2:])
            weights = weights.expand(len(x), -1, -1, -1)  # (B, P, H, W)
            for qkv in reversed(projected):
                weights = ops.criss_cross_spread(weights, qkv, self._dim)
            return weights.unsqueeze(1)

        return ops.Affinity(x.shape[2:], rows)

    @property
    def _dim(self) -> int:
        return self.query_conv.out_channels

    def _project(self, x: Tensor) -> Tensor:
        return project(x, self.query_conv, self.key_conv, self.value_conv, None)

    def _inputs(self, x: Tensor) -> list[Tensor]:
        """The input of each pass, and the output of the last."""
        weight, bias = stacked(x, self.query_conv, self.key_conv, self.value_conv, self.scale)
        found = [x]
        for number in range(self.recurrence):
            last = number == self.recurrence - 1
            layout = torch.contiguous_format if last and x.is_contiguous() else torch.channels_last
            y = ops.criss_cross_pass(found[-1], weight, bias, self._dim, keep=last, layout=layout)
            found.append(y)
        return found

    def forward(self, x: Tensor) -> Tensor:
        y = self._inputs(x)[-1]
        return y.contiguous() if x.is_contiguous() else y
