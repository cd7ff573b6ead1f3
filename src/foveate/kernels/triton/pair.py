"""Gates that a channel's and a position's value make together, elementwise in the map.

Kind 0 is ``1 + a sigma(c + p)``, kind 1 ``1 + a sigma(c p)``, and kind 2 ``1 + a (choice - 1)``,
where the choice is whichever of c and p gives the larger product with x.
"""

import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.triton.gates import logistic, strength_of
from foveate.kernels.triton.layout import (
    Matrices,
    alignment,
    launch,
    map_programs,
    map_tile,
    over_channels,
    over_positions,
)
from foveate.kernels.triton.places import index, locate, locate_in_map
from foveate.kernels.triton.reduce import merge, room


@triton.jit
def chosen_share(x, c, p):
    """What share of the choice is c, and the choice."""
    tie = (c == p) | ~((x > 0) | (x < 0))
    share = tl.where(tie, 0.5, tl.where((x > 0) == (c > p), 1.0, 0.0)).to(x.dtype)
    chosen = share * c + (1 - share) * p
    # An infinite x times a zero is no number, and the larger of that and anything neither.
    infinite = (x == x) & (x - x != 0)
    return share, tl.where(infinite & ((c == 0) | (p == 0)), x - x, chosen)


@triton.jit
def pair_of(x, c, p, a, KIND: tl.constexpr):
    """The factor of an element, and its derivatives by c, by p and by a."""
    if KIND == 2:
        share, chosen = chosen_share(x, c, p)
        by_c, by_p, by_a = share * a, (1 - share) * a, chosen - 1
    else:
        by_a = logistic(c + p if KIND == 0 else c * p)
        slope = a * by_a * (1 - by_a)
        by_c = slope if KIND == 0 else slope * p
        by_p = slope if KIND == 0 else slope * c
    return by_a * a + 1, by_c, by_p, by_a


@triton.jit
def _gate(
    source, x, channel, position, strength, add, map, weight,
    to,
    C, N,
    KIND: tl.constexpr,
    LAST: tl.constexpr, UNIT: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = channel.dtype.element_ty
    if LAST:  # tells the compiler what it can load at once
        C = C // UNIT * UNIT
    else:
        N = N // UNIT * UNIT
    b, c, n = locate_in_map(C, N, CHANNELS, POSITIONS)
    c, n = c[:, None], n[None, :]
    channels, positions = c < C, n < N
    mask = channels & positions
    place, of_channel, spot = index(b, c, n, C, N, LAST), b * C + c, b * N + n
    by_channel = tl.load(channel + of_channel, mask=channels, other=0)
    by_position = tl.load(position + spot, mask=positions, other=0)
    v = tl.load(x + place, mask=mask, other=0).to(WIDE)
    factor, _, _, _ = pair_of(v, by_channel, by_position, strength_of(strength, WIDE), KIND)
    y = tl.load(source + place, mask=mask, other=0).to(WIDE) * factor
    if add is not None:
        y += tl.load(add + of_channel, mask=channels, other=0)
    if map is not None:
        by = tl.load(weight + of_channel, mask=channels, other=0)
        y += tl.load(map + spot, mask=positions, other=0) * by
    tl.store(to + place, y.to(to.dtype.element_ty), mask=mask)


@triton.jit
def _sums(
    x, grad, kept_values, reduced_values, strength,
    to, of_strength,
    kept, reduced, chunk, count,
    KIND: tl.constexpr,
    ALONG: tl.constexpr, UNIT: tl.constexpr, KEPT: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    # Sums over the positions come with those of the strength, sums over the channels do not.
    WIDE: tl.constexpr = to.dtype.element_ty
    if ALONG:  # tells the compiler what it can load at once
        reduced = reduced // UNIT * UNIT
    else:
        kept = kept // UNIT * UNIT
    outer, k, part, first, end = locate(kept, reduced, chunk, KEPT)
    r = tl.arange(0, REDUCED)
    inside = k < kept
    a = strength_of(strength, WIDE)
    own = tl.load(kept_values + outer * kept + k, mask=inside, other=0)[:, None]
    sums = tl.zeros((KEPT, REDUCED), WIDE)
    if of_strength is not None:
        strengths = tl.zeros((KEPT, REDUCED), WIDE)
    for i in range(first, end, REDUCED):
        here = i + r
        mask = inside[:, None] & (here < end)[None, :]
        place = index(outer, k[:, None], here[None, :], kept, reduced, not ALONG)
        other = tl.load(reduced_values + outer * reduced + here, mask=here < end, other=0)[None, :]
        v = tl.load(x + place, mask=mask, other=0).to(WIDE)
        g = v * tl.load(grad + place, mask=mask, other=0).to(WIDE)
        if of_strength is not None:
            _, slope, _, by_strength = pair_of(v, own, other, a, KIND)
            strengths += tl.where(mask, g * by_strength, 0)
        else:
            _, _, slope, _ = pair_of(v, other, own, a, KIND)
        sums += tl.where(mask, g * slope, 0)
    place = part.to(tl.int64) * count + outer * kept + k
    tl.store(to + place, tl.sum(sums, 1), mask=inside)
    if of_strength is not None:
        tl.store(of_strength + place, tl.sum(strengths, 1), mask=inside)


def pair_gate(
    source: Tensor,
    x: Tensor,
    kind: int,
    channel: Tensor,
    position: Tensor,
    strength: Tensor | None,
    add: Tensor | None,
    map: Tensor | None,
    weight: Tensor | None,
    to: Tensor,
) -> None:
    """``source`` times the gate, plus terms.

    Args:
        source: What the gate multiplies, ``(B, C, H, W)``, contiguous or channels_last.
        x: The map that the choice depends on.
        kind: See the top of this file.
        channel: The c, ``(B, C, 1, 1)``.
        position: The p, ``(B, 1, H, W)``.
        strength: The a, a scalar; 1 if it is not given.
        add: Added, ``(B, C, 1, 1)``.
        map: Added, ``(B, 1, H, W)``, times ``weight``.
        weight: ``(B, C, 1, 1)``.
        to: Receives the result, laid out as ``source`` is.
    """
    if not x.numel():
        return
    channels, positions = map_tile(x)
    C, N = x.shape[1], x.shape[2] * x.shape[3]
    launch(
        _gate,
        map_programs(x),
        source,
        x,
        *(channel, position, strength, add, map, weight),
        to,
        *(C, N),
        KIND=kind,
        LAST=not x.is_contiguous(),
        UNIT=alignment(N if x.is_contiguous() else C),
        CHANNELS=channels,
        POSITIONS=positions,
    )


def pair_dot(
    x: Tensor,
    grad: Tensor,
    kind: int,
    channel: Tensor,
    position: Tensor,
    strength: Tensor | None,
    of_channel: Tensor,
    of_position: Tensor,
    of_strength: Tensor,
) -> None:
    """The gradients of what the gate is made of.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        grad: The gradient of the gated map, laid out as ``x`` is.
        kind: See the top of this file.
        channel: The c, ``(B, C, 1, 1)``.
        position: The p, ``(B, 1, H, W)``.
        strength: The a, a scalar; 1 if it is not given.
        of_channel: Receives the gradient of c.
        of_position: Receives the gradient of p.
        of_strength: Receives that of a, in parts for each channel, ``(B, C, 1, 1)``.
    """
    if not x.numel():
        return
    values = (channel, position)
    _reduce(x, grad, kind, values, strength, (of_channel, of_strength), over_positions(x))
    _reduce(x, grad, kind, values[::-1], strength, (of_position, None), over_channels(x))


def _reduce(
    x: Tensor,
    grad: Tensor,
    kind: int,
    values: tuple[Tensor, ...],
    strength: Tensor | None,
    wanted: tuple[Tensor, Tensor | None],
    m: Matrices,
) -> None:
    """One of the two reductions; ``values`` are those kept and those reduced."""
    block_kept, block_reduced = m.tile
    found = room(m.chunks, wanted)
    launch(
        _sums,
        m.programs * m.chunks,
        x,
        grad,
        *values,
        strength,
        *found,
        *(m.kept, m.reduced, m.chunk, m.outer * m.kept),
        KIND=kind,
        ALONG=m.along,
        UNIT=m.unit,
        KEPT=block_kept,
        REDUCED=block_reduced,
    )
    for part, whole in zip(found, wanted, strict=True):
        if whole is not None:
            merge((part, None, None, None), (whole, None, None, None))
