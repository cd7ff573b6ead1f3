"""The energy gate of SimAM: ``y = x (1 + a (sigma(e^2 + 1/2) - 1))``.

Here ``e = (x - mean) s`` with ``s = (variance + lambda)^(-1/2) / 2``, of each channel's plane.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.kernels.triton.gates import logistic, strength_of
from foveate.kernels.triton.layout import (
    alignment,
    launch,
    map_programs,
    map_tile,
    over_positions,
)
from foveate.kernels.triton.places import index, locate, locate_in_map
from foveate.kernels.triton.pool import spatial_pool
from foveate.kernels.triton.reduce import merge, room


@triton.jit
def scale_of(spread, regularization, freedom):
    """What deviations are multiplied by."""
    return 0.5 / tl.sqrt(spread / freedom + regularization)


@triton.jit
def slopes(x, g, mean, scale, a):
    """The factor of an element; gradients of its deviation, of the scale and of the strength."""
    d = x - mean
    e = d * scale
    s = logistic(e * e + 0.5)
    of_e = g * x * a * s * (1 - s) * 2 * e
    return (s - 1) * a + 1, of_e * scale, of_e * d, g * x * (s - 1)


@triton.jit
def _sums(
    x, grad, mean, spread, strength,
    sums,
    kept, reduced, chunk, count, freedom,
    REGULARIZATION: tl.constexpr,
    ALONG: tl.constexpr, UNIT: tl.constexpr, KEPT: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = sums.dtype.element_ty
    if ALONG:  # tells the compiler what it can load at once
        reduced = reduced // UNIT * UNIT
    else:
        kept = kept // UNIT * UNIT
    outer, k, part, first, end = locate(kept, reduced, chunk, KEPT)
    inside = k < kept
    a = strength_of(strength, WIDE)
    middle = tl.load(mean + outer * kept + k, mask=inside, other=0)[:, None]
    spreads = tl.load(spread + outer * kept + k, mask=inside, other=1)[:, None]
    scale = scale_of(spreads, REGULARIZATION, freedom)
    r = tl.arange(0, REDUCED)
    deviations = tl.zeros((KEPT, REDUCED), WIDE)
    scales = tl.zeros((KEPT, REDUCED), WIDE)
    strengths = tl.zeros((KEPT, REDUCED), WIDE)
    for i in range(first, end, REDUCED):
        here = i + r
        mask = inside[:, None] & (here < end)[None, :]
        place = index(outer, k[:, None], here[None, :], kept, reduced, not ALONG)
        v = tl.load(x + place, mask=mask, other=0).to(WIDE)
        g = tl.load(grad + place, mask=mask, other=0).to(WIDE)
        _, by_deviation, by_scale, by_strength = slopes(v, g, middle, scale, a)
        deviations += tl.where(mask, by_deviation, 0)
        scales += tl.where(mask, by_scale, 0)
        strengths += tl.where(mask, by_strength, 0)
    to = sums + part.to(tl.int64) * 3 * count + outer * kept + k
    tl.store(to, tl.sum(deviations, 1), mask=inside)
    tl.store(to + count, tl.sum(scales, 1), mask=inside)
    tl.store(to + 2 * count, tl.sum(strengths, 1), mask=inside)


@triton.jit
def _apply(
    x, grad, mean, spread, strength, sums,
    to,
    B, C, N, freedom,
    REGULARIZATION: tl.constexpr,
    LAST: tl.constexpr, UNIT: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = mean.dtype.element_ty
    if LAST:  # tells the compiler what it can load at once
        C = C // UNIT * UNIT
    else:
        N = N // UNIT * UNIT
    b, c, n = locate_in_map(C, N, CHANNELS, POSITIONS)
    c, n = c[:, None], n[None, :]
    channels, mask = c < C, (c < C) & (n < N)
    place, of_channel = index(b, c, n, C, N, LAST), b * C + c
    a = strength_of(strength, WIDE)
    middle = tl.load(mean + of_channel, mask=channels, other=0)
    spreads = tl.load(spread + of_channel, mask=channels, other=1)
    scale = scale_of(spreads, REGULARIZATION, freedom)
    v = tl.load(x + place, mask=mask, other=0).to(WIDE)
    if grad is None:
        e = (v - middle) * scale
        y = v * ((logistic(e * e + 0.5) - 1) * a + 1)
    else:
        g = tl.load(grad + place, mask=mask, other=0).to(WIDE)
        factor, by_deviation, _, _ = slopes(v, g, middle, scale, a)
        shared = tl.load(sums + of_channel, mask=channels, other=0) / N
        of_scale = tl.load(sums + B * C + of_channel, mask=channels, other=0)
        by_spread = -4 * of_scale * scale * scale * scale / freedom
        y = g * factor + by_deviation - shared + (v - middle) * by_spread
    tl.store(to + place, y.to(to.dtype.element_ty), mask=mask)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel's plane."""
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, spread = (x.new_empty(x.shape[:2], dtype=wide) for _ in range(2))
    spatial_pool(x, mean, None, None, spread)
    return mean, spread


def _write(
    x: Tensor,
    grad: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    strength: Tensor | None,
    sums: Tensor | None,
    to: Tensor,
    regularization: float,
) -> None:
    """One pass over the map, for the gated map or, with a gradient and its sums, for its own."""
    channels, positions = map_tile(x)
    C, N = x.shape[1], x.shape[2] * x.shape[3]
    launch(
        _apply,
        map_programs(x),
        x,
        grad,
        *statistics,
        strength,
        sums,
        to,
        *(x.shape[0], C, N, max(N - 1, 1)),
        REGULARIZATION=regularization,
        LAST=not x.is_contiguous(),
        UNIT=alignment(N if x.is_contiguous() else C),
        CHANNELS=channels,
        POSITIONS=positions,
    )


def energy(x: Tensor, regularization: float, strength: Tensor | None, y: Tensor) -> None:
    """Weigh a map by its energy.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        regularization: The lambda.
        strength: The a, a scalar; 1 if it is not given.
        y: Receives the weighed map, laid out as ``x`` is.
    """
    if x.numel():
        _write(x, None, _statistics(x), strength, None, y, regularization)


def energy_gradient(
    x: Tensor,
    grad: Tensor,
    regularization: float,
    strength: Tensor | None,
    to: Tensor,
    of_strength: Tensor,
) -> None:
    """The gradients of :func:`energy`.

    Args:
        x: The map, ``(B, C, H, W)``, contiguous or channels_last.
        grad: The gradient of the weighed map, laid out as ``x`` is.
        regularization: The lambda.
        strength: The a, a scalar; 1 if it is not given.
        to: Receives the gradient of the map.
        of_strength: Receives that of the strength, in parts for each plane, ``(B, C)``.
    """
    if not x.numel():
        return
    statistics, m = _statistics(x), over_positions(x)
    sums = statistics[0].new_empty(3, *x.shape[:2])
    block_kept, block_reduced = m.tile
    found = room(m.chunks, (sums, None, None, None))
    launch(
        _sums,
        m.programs * m.chunks,
        x,
        grad,
        *statistics,
        strength,
        found[0],
        *(m.kept, m.reduced, m.chunk, m.outer * m.kept, max(m.reduced - 1, 1)),
        REGULARIZATION=regularization,
        ALONG=m.along,
        UNIT=m.unit,
        KEPT=block_kept,
        REDUCED=block_reduced,
    )
    merge(found, (sums, None, None, None))
    _write(x, grad, statistics, strength, sums, to, regularization)
    of_strength.copy_(sums[2].view_as(of_strength))
