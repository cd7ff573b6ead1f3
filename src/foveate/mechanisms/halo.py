"""HaloNet: Scaling Local Self-Attention, Vaswani et al., CVPR 2021 (arXiv:2103.12731)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError, check_positive
from foveate.mechanisms.base import Replacement, check_divides
from foveate.registry import register_mechanism


@register_mechanism("halo")
class Halo(Replacement):
    r"""Attends from each position to those of its block and of a halo around the block.

    .. math:: y_i = \sum_{j \in N(i)} \mathrm{softmax}_j\Big(
        \frac{q_i^\top (k_j + r^h_{\Delta h} + r^w_{\Delta w})}{\sqrt{d}}\Big)\,v_j

    All positions of a block share one window :math:`N`, whose side is that of the block and twice
    the halo. Around the map all is zero, and takes part in the softmax. A dynamic export takes maps
    of more than one block.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step between queries, a divisor of ``block_size``.
        dilation: Must be 1.
        num_heads: Heads, a divisor of ``out_channels``.
        block_size: Side of the blocks.
        halo_size: Width of the halo.
        init: Paper's form, or identity (see :class:`~foveate.mechanisms.base.Replacement`).

    Shape:
        - Input: ``(B, C, H, W)``; output ``(B, C_out, H_out, W_out)``
        - ``output``: ``(B, 1, H_out, W_out)``

    Raises:
        ValueError: If ``num_heads`` does not divide ``out_channels``, ``stride`` does not divide
            ``block_size``, or ``dilation`` is not 1.

    Note:
        The embeddings are read by the scaled queries; timm leaves those logits unscaled unless told
        otherwise, reads them with a stride as if the queries were neighbours, and needs maps of
        whole blocks, to which the map is padded here. As there, displacements are counted from the
        corner of the window, so that the first ``2 * halo_size`` embeddings of a table are never
        read. A popular copy had its mask inverted, so that the valid keys were the hidden ones.
        A dynamic export of maps of several blocks does not take maps of one.

    Example:
        >>> import torch
        >>> Halo(64)(torch.rand(2, 64, 14, 9)).shape
        torch.Size([2, 64, 14, 9])
    """

    timm: ClassVar[dict[str, dict[str, Any]]] = {"halo": {}}

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        num_heads: int = 8,
        block_size: int = 8,
        halo_size: int = 3,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        check_positive(block_size=block_size, halo_size=halo_size)
        check_divides(num_heads=num_heads, out_channels=self.out_channels)
        if dilation != 1:
            raise InvalidValueError(f"dilation must be 1, but got {dilation=}")
        check_divides(stride=stride, block_size=block_size)
        self.num_heads, self.block_size, self.halo_size = num_heads, block_size, halo_size
        self.window = block_size + 2 * halo_size
        dim = self.out_channels // num_heads
        self.q = nn.Conv2d(channels, self.out_channels, 1, bias=False)
        self.kv = nn.Conv2d(channels, 2 * self.out_channels, 1, bias=False)
        self.rel_h = nn.Parameter(torch.randn(2 * self.window - 1, dim) * dim**-0.5)
        self.rel_w = nn.Parameter(torch.randn(2 * self.window - 1, dim) * dim**-0.5)

    def _queries(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Queries by block: ``(B * blocks, heads, side, side, D)``."""
        q = self.q(x[:, :, :: self.stride, :: self.stride])  # (B, C_out, rows * side, ...)
        side = self.block_size // self.stride
        q = q.unflatten(3, (columns, side)).unflatten(2, (rows, side))
        q = q.unflatten(1, (self.num_heads, -1))  # (B, heads, D, rows, side, columns, side)
        q = q.permute(0, 3, 5, 1, 4, 6, 2)  # (B, rows, columns, heads, side, side, D)
        return q.flatten(0, 2) * q.shape[-1] ** -0.5

    def _windows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values by window: ``(B * blocks, heads, window ** 2, D)``."""
        kv = F.pad(self.kv(x), [self.halo_size] * 4)
        kv = kv.unfold(2, self.window, self.block_size).unfold(3, self.window, self.block_size)
        kv = kv.unflatten(1, (2, self.num_heads, -1))  # (B, 2, heads, D, rows, columns, win, win)
        kv = kv.permute(1, 0, 4, 5, 2, 6, 7, 3).flatten(5, 6).flatten(1, 3)
        return kv[0], kv[1]

    def affinity(self, x: Tensor) -> ops.Affinity:
        """Of a window each; what is left to 1 goes to the zeros around the map."""
        (q, k, _), (grid_rows, columns), b = self._tokens(x), self._grid(x), self.block_size
        q, k = (t.unflatten(0, (x.shape[0], -1)) for t in (q, k))  # (B, blocks, heads, ..., D)
        side, (H, W), (height, width) = b // self.stride, x.shape[2:], self._size(x)
        edge, window = self.halo_size, self.window

        def rows(at: Tensor) -> Tensor:
            y, x_ = at // width, at % width
            block = y // side * columns + x_ // side
            asking = q[:, block, :, y % side * side + x_ % side]  # (P, B, heads, D)
            scores = torch.einsum("pbhd,bphkd->bhpk", asking, k[:, block])
            weights = scores.softmax(3).unflatten(3, (window, window))
            found = q.new_zeros(
                (*weights.shape[:3], grid_rows * b + 2 * edge, columns * b + 2 * edge)
            )
            for p, index in enumerate(block.tolist()):
                top, left = index // columns * b, index % columns * b
                found[:, :, p, top : top + window, left : left + window] = weights[:, :, p]
            return found[..., edge : edge + H, edge : edge + W]

        return ops.Affinity((height, width), rows)

    def _grid(self, x: Tensor) -> list[int]:
        """Rows and columns of blocks."""
        return [ops.cells_across(length, self.block_size) for length in x.shape[2:]]

    def _size(self, x: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        H, W = x.shape[2:]
        return (H - 1) // self.stride + 1, (W - 1) // self.stride + 1

    def _tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys whose products are the whole scores, and values, by block."""
        rows, columns = self._grid(x)
        b = self.block_size
        padded = F.pad(x, [0, columns * b - x.shape[3], 0, rows * b - x.shape[2]])
        q, (k, v) = self._queries(padded, rows, columns), self._windows(padded)
        column_logits = self._logits(q, self.rel_w)
        row_logits = self._logits(q.transpose(2, 3), self.rel_h).transpose(2, 3)
        q, k = ops.with_places(
            q.flatten(2, 3),
            k,
            row_logits=row_logits.flatten(2, 3),
            column_logits=column_logits.flatten(2, 3),
        )
        return q, k, v

    def branch(self, x: Tensor) -> Tensor:
        side = self.block_size // self.stride
        rows, columns = self._grid(x)
        y = ops.position_attention(*self._tokens(x), scale=1.0)  # (B * blocks, heads, side ** 2, D)
        y = y.unflatten(2, (side, side)).unflatten(0, (x.shape[0], rows, columns))
        y = y.permute(0, 3, 6, 1, 4, 2, 5).flatten(5).flatten(3, 4).flatten(1, 2)
        height, width = self._size(x)
        return F.pad(y, [0, width - y.shape[3], 0, height - y.shape[2]])  # cuts the padding off

    def _logits(self, q: Tensor, table: Tensor) -> Tensor:
        return ops.displacement_logits(q, table, self.window, step=self.stride)
