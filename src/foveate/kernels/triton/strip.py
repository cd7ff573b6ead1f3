"""Statistics and dot products along each row and each column of every channel, in one read."""

import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.triton.layout import alignment, launch, split, tile
from foveate.kernels.triton.places import index
from foveate.kernels.triton.reduce import Statistics, across, displaces, merge, room


@triton.jit
def _strips(
    x, other, row_gate, column_gate,
    rows, rows_peak, rows_at, columns, columns_peak, columns_at,
    B, C, H, W, chunk, row_divisor, column_divisor,
    LAST: tl.constexpr, UNIT: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # Tiles are (channels, rows, columns). A program goes down a chunk of the rows; each slot of
    # its tile keeps statistics of a column, which meet at the end, those of a row at once.
    WIDE: tl.constexpr = rows.dtype.element_ty
    if LAST:  # tells the compiler what it can load at once
        C = C // UNIT * UNIT
    else:
        W = W // UNIT * UNIT
    program = tl.program_id(0)
    breadth, chunks, depth = tl.cdiv(W, COLUMNS), tl.cdiv(H, chunk), tl.cdiv(C, CHANNELS)
    left, part = program % breadth, program // breadth % chunks
    c = program // (breadth * chunks) % depth * CHANNELS + tl.arange(0, CHANNELS)
    b = (program // (breadth * chunks * depth)).to(tl.int64)
    w = left * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.arange(0, ROWS)
    first, end = part * chunk, tl.minimum((part + 1) * chunk, H)
    file = index(b, c[:, None], w[None, :], C, W, LAST)
    file_mask = (c < C)[:, None] & (w < W)[None, :]
    if column_gate is not None:
        by_column = tl.load(column_gate + file, mask=file_mask, other=0)
    sums = tl.zeros((CHANNELS, ROWS, COLUMNS), WIDE)
    if rows_peak is not None:
        top = tl.full((CHANNELS, ROWS, COLUMNS), float("-inf"), WIDE)
        place = tl.zeros((CHANNELS, ROWS, COLUMNS), tl.int32) + (first + r)[None, :, None]
    for i in range(first, end, ROWS):
        h = i + r
        line = index(b, c[:, None], h[None, :], C, H, LAST)
        line_mask = (c < C)[:, None] & (h < end)[None, :]
        n = h[:, None] * W + w[None, :]
        spot = index(b, c[:, None, None], n[None, :, :], C, H * W, LAST)
        mask = line_mask[:, :, None] & (w < W)[None, None, :]
        v = tl.load(x + spot, mask=mask, other=0).to(WIDE)
        if other is not None:
            v *= tl.load(other + spot, mask=mask, other=0).to(WIDE)
        of_rows, of_columns = v, v
        if column_gate is not None:
            of_rows = v * by_column[:, None, :]
        if row_gate is not None:
            by_row = tl.load(row_gate + line, mask=line_mask, other=0)
            of_columns = v * by_row[:, :, None]
        sums += of_columns
        line += left.to(tl.int64) * B * C * H
        tl.store(rows + line, tl.sum(of_rows, 2) / row_divisor, mask=line_mask)
        if rows_peak is not None:
            here = tl.zeros((CHANNELS, ROWS, COLUMNS), tl.int32) + w[None, None, :]
            best, where = across(tl.where(mask, v, float("-inf")), here, 2)
            tl.store(rows_peak + line, best, mask=line_mask)
            tl.store(rows_at + line, where, mask=line_mask)
            better = mask & displaces(v, top)
            top = tl.where(better, v, top)
            place = tl.where(better, h[None, :, None], place)
    file += part.to(tl.int64) * B * C * W
    tl.store(columns + file, tl.sum(sums, 1) / column_divisor, mask=file_mask)
    if rows_peak is not None:
        best, where = across(top, place, 1)
        tl.store(columns_peak + file, best, mask=file_mask)
        tl.store(columns_at + file, where, mask=file_mask)


def _run(
    x: Tensor,
    other: Tensor | None,
    row_gate: Tensor | None,
    column_gate: Tensor | None,
    rows: Statistics,
    columns: Statistics,
    *,
    mean: bool,
) -> None:
    if not x.numel():
        return
    B, C, H, W = x.shape
    last = not x.is_contiguous()
    if last:
        channels, width, height = tile(C, W, H, limits=(32, 64))
    else:
        width, height, channels = tile(W, H, C, limits=(1024,))
    breadth, depth = int(triton.cdiv(W, width)), int(triton.cdiv(C, channels))
    chunk = split(H, height, B * breadth * depth)
    chunks = int(triton.cdiv(H, chunk))
    row_divisor, column_divisor = (W, H) if mean else (1, 1)
    found_rows, found_columns = room(breadth, rows), room(chunks, columns)
    launch(
        _strips,
        B * depth * chunks * breadth,
        x,
        other,
        row_gate,
        column_gate,
        *found_rows[:3],
        *found_columns[:3],
        *(B, C, H, W, chunk),
        row_divisor if breadth == 1 else 1,
        column_divisor if chunks == 1 else 1,
        LAST=last,
        UNIT=alignment(C if last else W),
        CHANNELS=channels,
        ROWS=height,
        COLUMNS=width,
    )
    merge(found_rows, rows, divisor=row_divisor)
    merge(found_columns, columns, divisor=column_divisor)


def strip_pool(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    rows_peak: Tensor | None,
    rows_at: Tensor | None,
    columns_peak: Tensor | None,
    columns_at: Tensor | None,
) -> None:
    """Means, and where asked maxima, along the rows and along the columns of each channel.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        rows: Receives the means of rows, ``(B, C, H, 1)``.
        columns: Receives the means of columns, ``(B, C, 1, W)``.
        rows_peak: Receives the largest values of rows; all four that follow, or none.
        rows_at: Receives their columns, the first of equal ones.
        columns_peak: Receives the largest values of columns.
        columns_at: Receives their rows, the first of equal ones.
    """
    of_rows, of_columns = (rows, rows_peak, rows_at), (columns, columns_peak, columns_at)
    _run(x, None, None, None, (*of_rows, None), (*of_columns, None), mean=True)


def strip_dot(
    x: Tensor,
    other: Tensor,
    row_gate: Tensor | None,
    column_gate: Tensor | None,
    rows: Tensor,
    columns: Tensor,
) -> None:
    """Sums of ``x * other`` along the rows and along the columns of each channel.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        other: A second map.
        row_gate: Factors of the sums along columns, ``(B, C, H, 1)``, or ones.
        column_gate: Factors of the sums along rows, ``(B, C, 1, W)``, or ones.
        rows: Receives the sums of rows, ``(B, C, H, 1)``.
        columns: Receives the sums of columns, ``(B, C, 1, W)``.
    """
    nothing = (None, None, None)
    _run(x, other, row_gate, column_gate, (rows, *nothing), (columns, *nothing), mean=False)
