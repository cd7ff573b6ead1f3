"""``source * F + terms``, in one pass.

F is the product or the sum of gates that broadcast to the map; the terms are everything else that
the gradient of a map is made of.
"""

import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.triton.layout import alignment, launch, map_programs, map_tile
from foveate.kernels.triton.places import index, locate_in_map


@triton.jit
def joined(factor, gate, TOTAL: tl.constexpr):
    """One more gate."""
    return factor + gate if TOTAL else factor * gate


@triton.jit
def _combine(
    source, x,
    channel, spatial, rows, columns,
    add, linear, add_rows, add_columns,
    map, weight, map2, weight2,
    at, peak, channel_at, channel_peak, channel_gate, rows_at, rows_peak, columns_at, columns_peak,
    to,
    C, N, H, W, groups,
    WIDE: tl.constexpr, TOTAL: tl.constexpr, GROUPED: tl.constexpr,
    LAST: tl.constexpr, UNIT: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    if LAST:  # tells the compiler what it can load at once
        C = C // UNIT * UNIT
    else:
        N = N // UNIT * UNIT
    b, c, n = locate_in_map(C, N, CHANNELS, POSITIONS)
    c, n = c[:, None], n[None, :]
    h, w = n // W, n % W
    channels, positions = c < C, n < N
    mask = channels & positions
    place = index(b, c, n, C, N, LAST)
    of_channel = b * C + c
    line, file = index(b, c, h, C, H, LAST), index(b, c, w, C, W, LAST)
    if GROUPED:
        spot, spots = index(b, c // (C // groups), n, groups, N, LAST), mask
    else:
        spot, spots = b * N + n, positions

    factor = tl.full((1, 1), 0 if TOTAL else 1, WIDE)
    if channel is not None:
        factor = joined(factor, tl.load(channel + of_channel, mask=channels, other=0), TOTAL)
    if spatial is not None:
        factor = joined(factor, tl.load(spatial + spot, mask=spots, other=0), TOTAL)
    if rows is not None:
        factor = joined(factor, tl.load(rows + line, mask=mask, other=0), TOTAL)
    if columns is not None:
        factor = joined(factor, tl.load(columns + file, mask=mask, other=0), TOTAL)
    v = tl.load(source + place, mask=mask, other=0).to(WIDE) * factor

    if add is not None:
        v += tl.load(add + of_channel, mask=channels, other=0)
    if add_rows is not None:
        v += tl.load(add_rows + line, mask=mask, other=0)
    if add_columns is not None:
        v += tl.load(add_columns + file, mask=mask, other=0)
    if linear is not None:
        by = tl.load(linear + of_channel, mask=channels, other=0)
        v += tl.load(x + place, mask=mask, other=0).to(WIDE) * by
    if map is not None:
        by = tl.load(weight + of_channel, mask=channels, other=0)
        v += tl.load(map + spot, mask=spots, other=0) * by
    if map2 is not None:
        by = tl.load(weight2 + of_channel, mask=channels, other=0)
        v += tl.load(map2 + spot, mask=spots, other=0) * by

    if at is not None:
        hit = tl.load(at + of_channel, mask=channels, other=-1) == n
        v += tl.where(hit, tl.load(peak + of_channel, mask=channels, other=0), 0)
    if channel_at is not None:
        position = b * N + n
        hit = tl.load(channel_at + position, mask=positions, other=-1) == c
        value = tl.load(channel_peak + position, mask=positions, other=0)
        if channel_gate is not None:
            value *= tl.load(channel_gate + of_channel, mask=channels, other=0)
        v += tl.where(hit, value, 0)
    if rows_at is not None:
        hit = tl.load(rows_at + line, mask=mask, other=-1) == w
        v += tl.where(hit, tl.load(rows_peak + line, mask=mask, other=0), 0)
    if columns_at is not None:
        hit = tl.load(columns_at + file, mask=mask, other=-1) == h
        v += tl.where(hit, tl.load(columns_peak + file, mask=mask, other=0), 0)
    tl.store(to + place, v.to(to.dtype.element_ty), mask=mask)


def combine(
    source: Tensor,
    x: Tensor | None,
    total: bool,
    groups: int,
    channel: Tensor | None,
    spatial: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    add: Tensor | None,
    linear: Tensor | None,
    add_rows: Tensor | None,
    add_columns: Tensor | None,
    map: Tensor | None,
    weight: Tensor | None,
    map2: Tensor | None,
    weight2: Tensor | None,
    at: Tensor | None,
    peak: Tensor | None,
    channel_at: Tensor | None,
    channel_peak: Tensor | None,
    channel_gate: Tensor | None,
    rows_at: Tensor | None,
    rows_peak: Tensor | None,
    columns_at: Tensor | None,
    columns_peak: Tensor | None,
    to: Tensor,
) -> None:
    """Gate a map and add terms to it; every tensor but the first and the last may be absent.

    Args:
        source: What the gates multiply, ``(B, C, H, W)``, contiguous or channels_last.
        x: What ``linear`` multiplies.
        total: Whether gates are added to one another rather than multiplied.
        groups: Groups of adjacent channels that share ``spatial``, ``map`` and ``map2``.
        channel: Gate ``(B, C, 1, 1)``.
        spatial: Gate ``(B, groups, H, W)``.
        rows: Gate ``(B, C, H, 1)``.
        columns: Gate ``(B, C, 1, W)``.
        add: Added, ``(B, C, 1, 1)``.
        linear: Factors of ``x``, ``(B, C, 1, 1)``.
        add_rows: Added, ``(B, C, H, 1)``.
        add_columns: Added, ``(B, C, 1, W)``.
        map: Added, ``(B, groups, H, W)``, times ``weight``.
        weight: ``(B, C, 1, 1)``.
        map2: Added, ``(B, groups, H, W)``, times ``weight2``.
        weight2: ``(B, C, 1, 1)``.
        at: The position of each channel, ``(B, C, 1, 1)``, to which ``peak`` is added.
        peak: ``(B, C, 1, 1)``.
        channel_at: The channel of each position, ``(B, 1, H, W)``, to which ``channel_peak`` is
            added, times ``channel_gate`` of that channel.
        channel_peak: ``(B, 1, H, W)``.
        channel_gate: ``(B, C, 1, 1)``.
        rows_at: The column of each row, ``(B, C, H, 1)``, to which ``rows_peak`` is added.
        rows_peak: ``(B, C, H, 1)``.
        columns_at: The row of each column, ``(B, C, 1, W)``, to which ``columns_peak`` is added.
        columns_peak: ``(B, C, 1, W)``.
        to: Receives the result, of the shape, dtype and layout of ``source``.
    """
    if not source.numel():
        return
    _, C, H, W = source.shape
    last = not source.is_contiguous()
    tile_channels, tile_positions = map_tile(source)
    launch(
        _combine,
        map_programs(source),
        source,
        x,
        *(channel, spatial, rows, columns),
        *(add, linear, add_rows, add_columns),
        *(map, weight, map2, weight2),
        *(at, peak, channel_at, channel_peak, channel_gate),
        *(rows_at, rows_peak, columns_at, columns_peak),
        to,
        *(C, H * W, H, W, groups),
        WIDE=tl.float64 if source.element_size() == 8 else tl.float32,
        TOTAL=total,
        GROUPED=groups > 1,
        LAST=last,
        UNIT=alignment(C if last else H * W),
        CHANNELS=tile_channels,
        POSITIONS=tile_positions,
    )
