"""Statistics of a map over its positions or its channels, in one read of the map."""

import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.triton.layout import Matrices, launch, over_channels, over_positions
from foveate.kernels.triton.places import index, locate
from foveate.kernels.triton.reduce import (
    Statistics,
    across,
    displaces,
    merge,
    room,
    spread_across,
)


@triton.jit
def _pool(
    x, weight,
    total, peak, at, spread,
    kept, reduced, chunk, count, divisor,
    ALONG: tl.constexpr, UNIT: tl.constexpr, KEPT: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = total.dtype.element_ty
    if ALONG:  # tells the compiler what it can load at once
        reduced = reduced // UNIT * UNIT
    else:
        kept = kept // UNIT * UNIT
    outer, k, part, first, end = locate(kept, reduced, chunk, KEPT)
    r = tl.arange(0, REDUCED)
    # Each slot of the tile keeps statistics of its own; they meet once, at the end.
    sums = tl.zeros((KEPT, REDUCED), WIDE)
    if peak is not None:
        top = tl.full((KEPT, REDUCED), float("-inf"), WIDE)
        place = tl.zeros((KEPT, REDUCED), tl.int32) + (first + r)[None, :]
    if spread is not None:
        mean = tl.zeros((KEPT, REDUCED), WIDE)
        squares = tl.zeros((KEPT, REDUCED), WIDE)
    for i in range(first, end, REDUCED):
        here = i + r
        mask = (k < kept)[:, None] & (here < end)[None, :]
        place_in_x = index(outer, k[:, None], here[None, :], kept, reduced, not ALONG)
        v = tl.load(x + place_in_x, mask=mask, other=0).to(WIDE)
        if weight is not None:
            v *= tl.load(weight + outer * reduced + here, mask=here < end, other=0)[None, :]
        sums += v
        if peak is not None:
            better = mask & displaces(v, top)
            top = tl.where(better, v, top)
            place = tl.where(better, here[None, :], place)
        if spread is not None:  # Welford's
            gap = v - mean
            mean += tl.where(mask, gap / ((i - first) // REDUCED + 1), 0)
            squares += tl.where(mask, gap * (v - mean), 0)
    to = part.to(tl.int64) * count + outer * kept + k
    tl.store(total + to, tl.sum(sums, 1) / divisor, mask=k < kept)
    if peak is not None:
        best, where = across(top, place, 1)
        tl.store(peak + to, best, mask=k < kept)
        tl.store(at + to, where, mask=k < kept)
    if spread is not None:
        counts = ((end - first - r + REDUCED - 1) // REDUCED).to(WIDE)
        tl.store(spread + to, spread_across(mean, squares, counts[None, :]), mask=k < kept)


def _run(x: Tensor, weight: Tensor | None, wanted: Statistics, m: Matrices) -> None:
    if not x.numel():
        return
    block_kept, block_reduced = m.tile
    found = room(m.chunks, wanted)
    launch(
        _pool,
        m.programs * m.chunks,
        x,
        weight,
        *found,
        *(m.kept, m.reduced, m.chunk, m.outer * m.kept),
        m.reduced if m.chunks == 1 else 1,
        ALONG=m.along,
        UNIT=m.unit,
        KEPT=block_kept,
        REDUCED=block_reduced,
    )
    merge(found, wanted, chunk=m.chunk, length=m.reduced, divisor=m.reduced)


def spatial_pool(
    x: Tensor, mean: Tensor, peak: Tensor | None, at: Tensor | None, spread: Tensor | None
) -> None:
    """Statistics over the positions of each channel.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        mean: Receives the mean, ``(B, C, 1, 1)``.
        peak: Receives the largest value.
        at: Receives its position, that of the first of equal ones.
        spread: Receives the sum of squared deviations from the mean.
    """
    _run(x, None, (mean, peak, at, spread), over_positions(x))


def channel_pool(x: Tensor, gate: Tensor | None, peak: Tensor, mean: Tensor, at: Tensor) -> None:
    """Statistics over the channels at each position.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        gate: Factors of the channels, ``(B, C, 1, 1)``.
        peak: Receives the largest value, ``(B, 1, H, W)``.
        mean: Receives the mean.
        at: Receives the channel of the largest value, the first of equal ones.
    """
    _run(x, gate, (mean, peak, at, None), over_channels(x))
