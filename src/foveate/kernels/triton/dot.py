"""Dot products of a map over its positions or its channels, in one read of the map."""

import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.triton.layout import Matrices, launch, over_channels, over_positions
from foveate.kernels.triton.places import index, locate
from foveate.kernels.triton.reduce import merge, room


@triton.jit
def _dot(
    x, other, weight, plus,
    to,
    kept, reduced, chunk, count, span, groups, weight_outer, weight_group, weight_reduced,
    ALONG: tl.constexpr, UNIT: tl.constexpr, GROUPED: tl.constexpr,
    KEPT: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = to.dtype.element_ty
    if ALONG:  # tells the compiler what it can load at once
        reduced = reduced // UNIT * UNIT
    else:
        kept = kept // UNIT * UNIT
    outer, k, part, first, end = locate(kept, reduced, chunk, KEPT)
    r = tl.arange(0, REDUCED)
    sums = tl.zeros((KEPT, REDUCED), WIDE)
    for i in range(first, end, REDUCED):
        here = i + r
        mask = (k < kept)[:, None] & (here < end)[None, :]
        place = index(outer, k[:, None], here[None, :], kept, reduced, not ALONG)
        if GROUPED:
            group = k // span % groups
            by = (
                outer * weight_outer
                + group[:, None] * weight_group
                + here[None, :] * weight_reduced
            )
            there = mask
        else:
            by = outer * weight_outer + here[None, :] * weight_reduced
            there = (here < end)[None, :]
        v = tl.load(x + place, mask=mask, other=0).to(WIDE)
        if plus is not None:
            factor = tl.load(other + place, mask=mask, other=0).to(WIDE)
            factor *= tl.load(weight + by, mask=there, other=0)
            v *= factor + tl.load(plus + by, mask=there, other=0)
        else:
            if other is not None:
                v *= tl.load(other + place, mask=mask, other=0).to(WIDE)
            if weight is not None:
                v *= tl.load(weight + by, mask=there, other=0)
        sums += v
    place = part.to(tl.int64) * count + outer * kept + k
    tl.store(to + place, tl.sum(sums, 1), mask=k < kept)


def _run(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor | None,
    plus: Tensor | None,
    to: Tensor,
    m: Matrices,
    *,
    span: int,
    groups: int,
    weight_strides: tuple[int, int, int],
) -> None:
    """The index k that is kept has the weights of group ``k // span % groups``."""
    if not x.numel():
        return
    block_kept, block_reduced = m.tile
    found = room(m.chunks, (to, None, None, None))
    launch(
        _dot,
        m.programs * m.chunks,
        x,
        other,
        weight,
        plus,
        found[0],
        *(m.kept, m.reduced, m.chunk, m.outer * m.kept),
        *(span, groups, *weight_strides),
        ALONG=m.along,
        UNIT=m.unit,
        GROUPED=groups > 1,
        KEPT=block_kept,
        REDUCED=block_reduced,
    )
    merge(found, (to, None, None, None))


def channel_dot(
    x: Tensor, other: Tensor | None, weight: Tensor | None, groups: int, to: Tensor
) -> None:
    """Sums of ``x * other * weight`` over the channels of each group.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        other: A second map, or ones.
        weight: One for each channel, ``(B, C, 1, 1)``, or ones.
        groups: Groups of adjacent channels.
        to: Receives the sums, ``(B, groups, H, W)``.
    """
    C, width = x.shape[1], x.shape[1] // groups
    m = over_channels(x, groups)
    if m.along:
        _run(
            x, other, weight, None, to, m, span=1, groups=groups, weight_strides=(C, width, 1)
        )  # fmt: skip
    else:
        _run(x, other, weight, None, to, m, span=1, groups=1, weight_strides=(width, 0, 1))


def spatial_dot(
    x: Tensor,
    other: Tensor | None,
    map: Tensor | None,
    plus: Tensor | None,
    groups: int,
    to: Tensor,
) -> None:
    """Sums of ``x * other * map``, or of ``x * (other * map + plus)``, over the positions.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        other: A second map, or ones.
        map: Weights of the positions, ``(B, groups, H, W)``, or ones.
        plus: What is added to them, only together with both others.
        groups: Groups of adjacent channels that share weights.
        to: Receives the sums, ``(B, C, 1, 1)``.
    """
    m = over_positions(x)
    N = m.reduced
    strides = (groups * N, N, 1) if m.along else (groups * N, 1, groups)
    width = x.shape[1] // groups
    _run(x, other, map, plus, to, m, span=width, groups=groups, weight_strides=strides)


@triton.jit
def _peak_dot(
    x, at, weight,
    to,
    kept, reduced,
    ALONG: tl.constexpr, KEPT: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = to.dtype.element_ty
    outer, k, _, _, _ = locate(kept, reduced, reduced, KEPT)
    r = tl.arange(0, REDUCED)
    sums = tl.zeros((KEPT, REDUCED), WIDE)
    for i in range(0, reduced, REDUCED):
        here = i + r
        named = tl.load(at + outer * reduced + here, mask=here < reduced, other=-1)
        by = tl.load(weight + outer * reduced + here, mask=here < reduced, other=0)
        hit = (named[None, :] == k[:, None]) & (k < kept)[:, None]
        place = index(outer, k[:, None], here[None, :], kept, reduced, not ALONG)
        v = tl.load(x + place, mask=hit, other=0).to(WIDE)
        sums += tl.where(hit, v * by[None, :], 0)
    old = tl.load(to + outer * kept + k, mask=k < kept, other=0)
    tl.store(to + outer * kept + k, old + tl.sum(sums, 1), mask=k < kept)


def peak_dot(x: Tensor, at: Tensor, weight: Tensor, to: Tensor) -> None:
    """Add to each channel its values at the positions where it is the one named, weighted.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        at: A channel for each position, ``(B, 1, H, W)``.
        weight: Of the same shape.
        to: ``(B, C, 1, 1)``, added to.
    """
    if not x.numel():
        return
    m = over_positions(x)
    block_kept, block_reduced = min(8, m.tile[0]), min(256, triton.next_power_of_2(m.reduced))
    programs = m.outer * int(triton.cdiv(m.kept, block_kept))
    sizes = (m.kept, m.reduced)
    launch(
        _peak_dot, programs, x, at, weight, to, *sizes,
        ALONG=m.along, KEPT=block_kept, REDUCED=block_reduced,
    )  # fmt: skip
