"""What reductions share: comparisons, statistics of slots put together, and of chunks."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.triton.layout import launch, tile


@triton.jit
def displaces(value, top):
    """Where a later value takes the place of the largest: it is larger, or the first NaN."""
    return (value > top) | ((value != value) & (top == top))


@triton.jit
def across(top, at, AXIS: tl.constexpr):
    """The largest along an axis and its place; the first of equal ones, and of NaNs."""
    nans = top != top
    nan = tl.max(nans.to(tl.int32), AXIS) > 0
    best = tl.max(tl.where(nans, float("-inf"), top), AXIS)
    best = tl.where(nan, float("nan"), best)
    those = tl.where(tl.expand_dims(nan, AXIS), nans, top == tl.expand_dims(best, AXIS))
    return best, tl.min(tl.where(those, at, 0x7FFFFFFF), AXIS)


@triton.jit
def spread_across(mean, squares, count):
    """Sum of squared deviations along axis 1 from the means, sums and counts of parts of it."""
    whole = tl.sum(mean * count, 1) / tl.sum(count, 1)
    gap = mean - tl.expand_dims(whole, 1)
    return tl.sum(squares + gap * gap * count, 1)


@triton.jit
def _merge(
    totals, peaks, ats, spreads,
    total, peak, at, spread,
    count, parts, chunk, length, divisor,
    COUNT: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    p = tl.arange(0, PARTS)
    inside = i < count
    mask = inside[:, None] & (p < parts)[None, :]
    from_ = p.to(tl.int64)[None, :] * count + i[:, None]
    sums = tl.load(totals + from_, mask=mask, other=0)
    tl.store(total + i, tl.sum(sums, 1) / divisor, mask=inside)
    if peaks is not None:
        top = tl.load(peaks + from_, mask=mask, other=float("-inf"))
        where = tl.load(ats + from_, mask=mask, other=0x7FFFFFFF)
        best, place = across(top, where, 1)
        tl.store(peak + i, best, mask=inside)
        tl.store(at + i, place, mask=inside)
    if spreads is not None:
        lengths = tl.maximum(tl.minimum(chunk, length - p * chunk), 0)[None, :].to(sums.dtype)
        squares = tl.load(spreads + from_, mask=mask, other=0)
        found = spread_across(sums / tl.maximum(lengths, 1), squares, lengths)
        tl.store(spread + i, found, mask=inside)


Statistics = Sequence[Tensor | None]
"""Sums, largest values, their places, and spreads."""


def room(chunks: int, wanted: Statistics) -> list[Tensor | None]:
    """Where chunks of a reduction leave what they find: if there is but one, where it belongs."""
    if chunks == 1:
        return list(wanted)
    return [None if t is None else t.new_empty(chunks, t.numel()) for t in wanted]


def merge(
    found: Statistics, wanted: Statistics, *, chunk: int = 1, length: int = 1, divisor: int = 1
) -> None:
    """Put together what chunks have found, in their order.

    Args:
        found: The room that :func:`room` gave.
        wanted: The results.
        chunk: Elements of each chunk but the last; only spreads depend on it.
        length: Elements of all.
        divisor: What sums are divided by.
    """
    sums, total = found[0], wanted[0]
    assert sums is not None
    assert total is not None
    if sums is total:
        return
    parts, count = sums.shape
    side, block = tile(parts, count, limits=(parts * 2, 64))
    programs = int(triton.cdiv(count, block))
    sizes = (count, parts, chunk, length, divisor)
    launch(_merge, programs, sums, *found[1:], *wanted, *sizes, COUNT=block, PARTS=side)
