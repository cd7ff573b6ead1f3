"""BoTNet: Bottleneck Transformers, Srinivas et al., CVPR 2021 (arXiv:2101.11605)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import check_positive
from foveate.mechanisms.base import Replacement, check_divides
from foveate.registry import register_mechanism


@register_mechanism("bot")
class BottleneckTransformer(Replacement):
    r"""Attends from each position to all, by contents and by displacement.

    .. math::
        y_i = \sum_j \mathrm{softmax}_j(\bar q_i^\top k_j + \bar q_i^\top r^h_{\Delta h}
        + \bar q_i^\top r^w_{\Delta w})\,v_j, \quad \bar q = q / \sqrt{d}

    in each head, with :math:`d` its width and embeddings :math:`r` of row and column displacements
    that the heads share. A stride averages windows of the result. Memory grows with positions
    times rows plus columns, never with pairs of positions.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step of the output.
        dilation: Taken as convolutions have it, without effect: attention is global.
        num_heads: Heads, a divisor of ``out_channels``.
        size: Height and width, or both, of the maps that the embeddings are made for; on others
            they are resized linearly. ``insert`` passes those of the site.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C_out, H_out, W_out)``
        - ``output``: ``(B, 1, H_out, W_out)``

    Raises:
        ValueError: If ``num_heads`` does not divide ``out_channels``, or a number is below 1.

    Note:
        The position logits come from the scaled queries, and the projections start with a standard
        deviation of 0.01, as in the authors' code. timm leaves those logits unscaled unless told
        otherwise, and starts wider; its stride cuts odd borders off.

    Example:
        >>> import torch
        >>> BottleneckTransformer(32, stride=2)(torch.rand(2, 32, 14, 14)).shape
        torch.Size([2, 32, 7, 7])
    """

    sized = True
    timm: ClassVar[dict[str, dict[str, Any]]] = {"bottleneck": {}}

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        num_heads: int = 4,
        size: int | tuple[int, int] = 14,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        check_divides(num_heads=num_heads, out_channels=self.out_channels)
        height, width = (size, size) if isinstance(size, int) else size
        check_positive(height=height, width=width)
        self.num_heads, self.size = num_heads, size
        dim = self.out_channels // num_heads
        self.qkv = nn.Conv2d(channels, 3 * self.out_channels, 1, bias=False)
        nn.init.normal_(self.qkv.weight, std=0.01)
        self.rel_h = nn.Parameter(torch.randn(2 * height - 1, dim) * dim**-0.5)
        self.rel_w = nn.Parameter(torch.randn(2 * width - 1, dim) * dim**-0.5)

    def affinity(self, x: Tensor) -> ops.Affinity:
        q, k, _ = self._tokens(x)
        q, k = ops.displaced(q, k, self.rel_h, self.rel_w, size=x.shape[2:])
        return ops.softmax_affinity(q, k, scale=1.0, size=x.shape[2:])

    def _tokens(self, x: Tensor) -> list[Tensor]:
        return [ops.to_tokens(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=1)]

    def branch(self, x: Tensor) -> Tensor:
        q, k, v = self._tokens(x)
        y = ops.displacement_attention(q, k, v, self.rel_h, self.rel_w, size=x.shape[2:])
        y = ops.from_tokens(y, like=x)  # (B, C_out, H, W)
        return F.avg_pool2d(y, self.stride, ceil_mode=True) if self.stride > 1 else y
