"""The Triton kernels that read maps, by definition; test_triton_kernels.py runs this."""

import pytest
import torch
from torch import Tensor

from foveate.kernels import triton
from triton_maps import (
    DEVICE,
    DTYPES,
    YES_AND_NO,
    Maps,
    both_layouts,
    check_mean,
    check_peak,
    check_sum,
    every_case,
    every_case_and,
    groups_of,
    name_of,
    spread_groups,
)


@every_case_and(("peak", "spread"), *YES_AND_NO)
def test_spatial_pool(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    peak: bool,
    spread: bool,
) -> None:
    maps, C = Maps(shape, dtype, layout), shape[1]
    x, one = maps.map(), (C, 1, 1)
    mean, top, at = maps.room(*one), maps.room(*one), maps.index_room(*one)
    squares = maps.room(*one) if spread else None
    triton.spatial_pool(x, mean, top if peak else None, at if peak else None, squares)
    z = x.double().flatten(2)
    check_mean(mean.flatten(2), z, 2)
    if peak:
        check_peak(top.flatten(2), at.flatten(2), z, 2)
    if squares is not None:
        check_sum(squares.flatten(2), (z - z.mean(2, keepdim=True)).square(), 2)


@both_layouts
def test_the_spread_of_values_far_from_zero_is_exact(layout: torch.memory_format) -> None:
    maps = Maps((1, 3, 61, 41), torch.float32, layout)
    x = maps.placed(maps.map().double().mul(0.1).add(1000).float())
    mean, spread = maps.room(3, 1, 1), maps.room(3, 1, 1)
    triton.spatial_pool(x, mean, None, None, spread)
    z = x.double()
    expected = (z - z.mean((2, 3), keepdim=True)).square().sum((2, 3), keepdim=True)
    torch.testing.assert_close(spread.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("gated", [False, True])
@every_case
def test_channel_pool(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, gated: bool
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, gate = maps.map(), maps.small(C, 1, 1) if gated else None
    peak, mean, at = maps.room(1, H, W), maps.room(1, H, W), maps.index_room(1, H, W)
    triton.channel_pool(x, gate, peak, mean, at)
    # The largest is the one of the rounded products, so that they must be those of the kernel.
    z = (x.to(maps.wide) * gate if gated else x).double()
    check_mean(mean, z, 1)
    check_peak(peak, at, z, 1)


def awkward(maps: Maps, kind: str) -> Tensor:
    """Values among which the largest is not just the largest."""
    x = maps.map().double().clamp(-1, 1).round()  # many of each
    if kind == "nan":
        x[maps.map() > 1] = torch.nan
    if kind == "infinite":
        x[maps.map() > 1] = torch.inf
    if kind == "lowest":
        x = torch.full_like(x, -torch.inf)
    return maps.placed(x.to(maps.dtype))


AWKWARD = [(2, 5, 13, 17), (1, 3, 67, 65), (1, 300, 3, 5), (1, 2, 2, 1100)]


@pytest.mark.parametrize(
    ("shape", "kind", "dtype"),
    [
        (shape, kind, DTYPES[(i + j) % 4])
        for i, shape in enumerate(AWKWARD)
        for j, kind in enumerate(("ties", "nan", "infinite", "lowest"))
    ],
    ids=name_of,
)
@both_layouts
def test_the_first_of_equal_values_and_of_nans_is_the_largest(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, kind: str
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x = awkward(maps, kind)
    z = x.double()
    mean, peak, at = maps.room(C, 1, 1), maps.room(C, 1, 1), maps.index_room(C, 1, 1)
    triton.spatial_pool(x, mean, peak, at, None)
    check_peak(peak.flatten(2), at.flatten(2), z.flatten(2), 2)
    check_mean(mean, z, 2, 3)
    mean, peak, at = maps.room(1, H, W), maps.room(1, H, W), maps.index_room(1, H, W)
    triton.channel_pool(x, None, peak, mean, at)
    check_peak(peak, at, z, 1)
    check_mean(mean, z, 1)
    rows, row_peak, row_at = maps.room(C, H, 1), maps.room(C, H, 1), maps.index_room(C, H, 1)
    columns, peaks, places = maps.room(C, 1, W), maps.room(C, 1, W), maps.index_room(C, 1, W)
    triton.strip_pool(x, rows, columns, row_peak, row_at, peaks, places)
    check_peak(row_peak, row_at, z, 3)
    check_peak(peaks, places, z, 2)
    check_mean(rows, z, 3)
    check_mean(columns, z, 2)


@every_case_and(("two", "weighted"), *YES_AND_NO)
def test_channel_dot(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    two: bool,
    weighted: bool,
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, other = maps.map(), maps.map() if two else None
    weight = maps.small(C, 1, 1) if weighted else None
    z = x.double()
    z = z if other is None else z * other.double()
    z = z if weight is None else z * weight.double()
    for groups in groups_of(C):
        to = maps.room(groups, H, W)
        triton.channel_dot(x, other, weight, groups, to)
        check_sum(to.unsqueeze(2), z.unflatten(1, (groups, -1)), 2)


@pytest.mark.parametrize("factors", ["", "other", "map", "other map", "other map plus"])
@every_case
def test_spatial_dot(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, factors: str
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, other = maps.map(), maps.map() if "other" in factors else None
    for groups in groups_of(C):
        weights = maps.small(groups, H, W) if "map" in factors else None
        plus = maps.small(groups, H, W) if "plus" in factors else None
        to = maps.room(C, 1, 1)
        triton.spatial_dot(x, other, weights, plus, groups, to)
        factor = torch.ones(shape, dtype=torch.float64, device=DEVICE)
        factor = factor if other is None else other.double()
        factor = factor if weights is None else factor * spread_groups(weights, C)
        factor = factor if plus is None else factor + spread_groups(plus, C)
        check_sum(to, x.double() * factor, 2, 3)


@every_case
def test_peak_dot(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, at, weight = maps.map(), maps.places(C, 1, H, W), maps.small(1, H, W)
    to = maps.small(C, 1, 1)
    named = torch.arange(C, device=DEVICE).view(C, 1, 1) == at
    terms = torch.cat(
        [(x.double() * weight.double() * named).flatten(2), to.double().flatten(2)], 2
    )
    triton.peak_dot(x, at, weight, to)
    check_sum(to.flatten(2), terms, 2)


@every_case
def test_peak_dot_reads_no_other_values(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, at = maps.map(), maps.places(C, 1, H, W)
    x = maps.placed(torch.full_like(x, torch.nan).scatter(1, at.long(), x))
    to = maps.placed(torch.zeros_like(maps.small(C, 1, 1)))
    triton.peak_dot(x, at, maps.small(1, H, W), to)
    assert to.isfinite().all()


@pytest.mark.parametrize("peaks", [False, True])
@every_case
def test_strip_pool(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, peaks: bool
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, rows, columns = maps.map(), maps.room(C, H, 1), maps.room(C, 1, W)
    of_rows = (maps.room(C, H, 1), maps.index_room(C, H, 1))
    of_columns = (maps.room(C, 1, W), maps.index_room(C, 1, W))
    triton.strip_pool(x, rows, columns, *((*of_rows, *of_columns) if peaks else [None] * 4))
    z = x.double()
    check_mean(rows, z, 3)
    check_mean(columns, z, 2)
    if peaks:
        check_peak(*of_rows, z, 3)
        check_peak(*of_columns, z, 2)


@every_case_and(("by_row", "by_column"), *YES_AND_NO)
def test_strip_dot(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    by_row: bool,
    by_column: bool,
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, other, rows, columns = maps.map(), maps.map(), maps.room(C, H, 1), maps.room(C, 1, W)
    row_gate = maps.small(C, H, 1) if by_row else None
    column_gate = maps.small(C, 1, W) if by_column else None
    triton.strip_dot(x, other, row_gate, column_gate, rows, columns)
    z = x.double() * other.double()
    of_rows = z if column_gate is None else z * column_gate.double()
    of_columns = z if row_gate is None else z * row_gate.double()
    check_sum(rows, of_rows, 3)
    check_sum(columns, of_columns, 2)


@both_layouts
def test_empty_maps(layout: torch.memory_format) -> None:
    maps = Maps((0, 3, 4, 5), torch.float32, layout)
    x, c, n, r, f = (
        maps.map(),
        maps.small(3, 1, 1),
        maps.small(1, 4, 5),
        maps.small(3, 4, 1),
        maps.small(3, 1, 5),
    )
    triton.spatial_pool(x, c, c, maps.index_room(3, 1, 1), c)
    triton.channel_pool(x, c, n, n, maps.index_room(1, 4, 5))
    triton.channel_dot(x, x, c, 1, n)
    triton.spatial_dot(x, x, n, n, 1, c)
    triton.peak_dot(x, maps.index_room(1, 4, 5), n, c)
    triton.strip_pool(x, r, f, None, None, None, None)
    triton.strip_dot(x, x, r, f, r, f)
    triton.combine(x, None, False, 1, c, *[None] * 20, x)


@both_layouts
def test_repeats_to_the_bit(layout: torch.memory_format) -> None:
    maps = Maps((1, 4, 67, 65), torch.float32, layout)
    x, other = maps.map(), maps.map()

    def run() -> list[Tensor]:
        rooms = [maps.room(*shape) for shape in ((4, 1, 1), (1, 67, 65), (4, 67, 1), (4, 1, 65))]
        triton.spatial_dot(x, other, None, None, 1, rooms[0])
        triton.channel_dot(x, other, None, 1, rooms[1])
        triton.strip_dot(x, other, None, None, *rooms[2:])
        return rooms

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
