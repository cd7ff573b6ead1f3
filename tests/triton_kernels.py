"""The Triton kernels, each against its definition in float64; test_triton_kernels.py runs this."""

import importlib
import inspect
import itertools
import random
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.kernels import build

triton = importlib.import_module("foveate.kernels.triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Sums of 4355 and of 300 are cut into chunks, a row of 1100 and a column of 70 as well.
SHAPES = [
    (2, 3, 13, 17),
    (1, 40, 7, 7),
    (2, 1, 1, 1),
    (1, 70, 9, 33),
    (1, 2, 67, 65),
    (1, 300, 3, 5),
    (1, 2, 3, 1100),
    (2, 8, 70, 2),
]
# Largest error, in units of the largest value: what one rounding of the dtype makes, or for wide
# results some roundings of a sum.
BOUNDS = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 6e-4}
# The interpreter cuts digits off, the graphics card rounds.
BOUNDS[torch.bfloat16] = 4e-3 if DEVICE == "cuda" else 8e-3

YES_AND_NO = list(itertools.product([False, True], repeat=2))

CASES = [
    *itertools.product(SHAPES[:1], LAYOUTS, DTYPES),
    *(
        (shape, layout, DTYPES[(i + j) % 4])
        for (i, shape), (j, layout) in itertools.product(enumerate(SHAPES[1:]), enumerate(LAYOUTS))
    ),
]


def name_of(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).split(".")[-1]


every_case = pytest.mark.parametrize(("shape", "layout", "dtype"), CASES, ids=name_of)
both_layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])


class Maps:
    """Random maps and small tensors of one dtype and layout."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        self.shape, self.dtype, self.layout = shape, dtype, layout
        self.wide = torch.promote_types(dtype, torch.float32)
        self.generator = torch.Generator().manual_seed(0)

    def map(self) -> Tensor:
        return self._random(self.shape, self.dtype)

    def small(self, *shape: int) -> Tensor:
        return self._random((self.shape[0], *shape), self.wide)

    def places(self, below: int, *shape: int) -> Tensor:
        found = torch.randint(below, (self.shape[0], *shape), generator=self.generator)
        return self.placed(found.int())

    def room(self, *shape: int) -> Tensor:
        return self.placed(torch.full((self.shape[0], *shape), torch.nan, dtype=self.wide))

    def index_room(self, *shape: int) -> Tensor:
        return self.placed(torch.full((self.shape[0], *shape), -7, dtype=torch.int32))

    def placed(self, t: Tensor) -> Tensor:
        return t.to(DEVICE).contiguous(memory_format=self.layout)

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        t = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.placed(t.to(dtype))


def check(actual: Tensor, expected: Tensor) -> None:
    finite = expected[expected.isfinite()].abs()
    bound = BOUNDS[actual.dtype] * (finite.max().item() if finite.numel() else 0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound, equal_nan=True)


def check_sum(actual: Tensor, terms: Tensor, *dims: int) -> None:
    """Compare with a sum; the bound is in units of that of the magnitudes."""
    expected = terms.sum(dims, keepdim=True)
    size = terms.abs().sum(dims).nan_to_num(0, 0).max().item()
    bound = BOUNDS[actual.dtype] * size
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound, equal_nan=True)


def check_mean(actual: Tensor, z: Tensor, *dims: int) -> None:
    check_sum(actual, z / prod(z.shape[dim] for dim in dims), *dims)


def first_largest(z: Tensor, dim: int) -> Tensor:
    """Where the first of equal largest values is, or the first NaN: as NumPy defines it."""
    at = np.expand_dims(z.cpu().numpy().argmax(dim), dim)
    return torch.from_numpy(at).int().to(z.device)


def check_peak(peak: Tensor, at: Tensor, z: Tensor, dim: int) -> None:
    expected = first_largest(z, dim)
    assert torch.equal(at, expected)
    check(peak, z.gather(dim, expected.long()))


def spread_groups(t: Tensor, channels: int) -> Tensor:
    return t.double().repeat_interleave(channels // t.shape[1], dim=1)


def groups_of(channels: int) -> list[int]:
    return [1, *[g for g in (10, 8, 3, 2) if channels % g == 0][:1]]


@pytest.mark.parametrize(("peak", "spread"), YES_AND_NO)
@every_case
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


@pytest.mark.parametrize("kind", ["ties", "nan", "infinite", "lowest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@both_layouts
@pytest.mark.parametrize("shape", [(2, 5, 13, 17), (1, 3, 67, 65), (1, 300, 3, 5), (1, 2, 2, 1100)])
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


@pytest.mark.parametrize(("two", "weighted"), YES_AND_NO)
@every_case
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


@pytest.mark.parametrize(("by_row", "by_column"), YES_AND_NO)
@every_case
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


NAMES = list(inspect.signature(triton.combine).parameters)[4:-1]
# What is added together; the rest of the arguments are gates.
TERMS = [
    ("add",),
    ("linear",),
    ("add_rows",),
    ("add_columns",),
    ("map", "weight"),
    ("map", "weight", "map2", "weight2"),
    ("at", "peak"),
    ("channel_at", "channel_peak"),
    ("channel_at", "channel_peak", "channel_gate"),
    ("rows_at", "rows_peak", "columns_at", "columns_peak"),
]
GATES = ["channel", "spatial", "rows", "columns"]


def combinations() -> list[tuple[str, ...]]:
    """Every gate and term alone, pairs of gates, everything, and some subsets."""
    some: list[tuple[str, ...]] = [(), *((gate,) for gate in GATES), *TERMS]
    some += itertools.combinations(GATES, 2)
    some.append(tuple(NAMES))
    draw = random.Random(0)
    for _ in range(10):
        gates = tuple(draw.sample(GATES, draw.randint(0, 4)))
        terms = itertools.chain(*draw.sample(TERMS, draw.randint(1, 4)))
        some.append(tuple(dict.fromkeys((*gates, *terms))))
    return some


def combined(
    source: Tensor, x: Tensor, given: dict[str, Tensor], *, total: bool
) -> tuple[Tensor, Tensor]:
    """The definition, term by term, and the sum of the sizes of all that is added."""
    C, H, W = source.shape[1:]
    wide = {name: spread_groups(t, C) if t.shape[1] != C else t for name, t in given.items()}
    gates = [wide[name].double() for name in GATES if name in given]
    gate: Tensor | float = float(not total)
    for g in gates:
        gate = gate + g if total else gate * g
    z = source.double() * gate
    size = z.abs()

    def add(term: Tensor) -> None:
        nonlocal z, size
        z, size = z + term, size + term.abs()

    for name in ("add", "add_rows", "add_columns"):
        if name in given:
            add(given[name].double())
    if "linear" in given:
        add(x.double() * given["linear"].double())
    for name in ("", "2"):
        if f"map{name}" in given:
            add(wide[f"map{name}"].double() * given[f"weight{name}"].double())
    here = torch.arange(H * W, device=z.device).view(H, W)
    row, column = torch.arange(H, device=z.device).view(H, 1), torch.arange(W, device=z.device)
    channel = torch.arange(C, device=z.device).view(C, 1, 1)
    where = {"at": here, "channel_at": channel, "rows_at": column, "columns_at": row}
    for name, index in where.items():
        if name in given:
            value = given[name.removesuffix("at") + "peak"].double()
            if name == "channel_at" and "channel_gate" in given:
                value = value * given["channel_gate"].double()
            add((given[name] == index) * value)
    return z, size


def some_arguments(maps: Maps, names: tuple[str, ...], groups: int) -> dict[str, Tensor]:
    C, H, W = maps.shape[1:]
    one, spot, line, file = (C, 1, 1), (groups, H, W), (C, H, 1), (C, 1, W)
    shapes = {
        **dict.fromkeys(("spatial", "map", "map2"), spot),
        **dict.fromkeys(("rows", "add_rows", "rows_peak"), line),
        **dict.fromkeys(("columns", "add_columns", "columns_peak"), file),
        "channel_peak": (1, H, W),
    }
    places = {
        "at": (H * W, one),
        "channel_at": (C, (1, H, W)),
        "rows_at": (W, line),
        "columns_at": (H, file),
    }
    given = {}
    for name in names:
        if name in places:
            below, shape = places[name]
            given[name] = maps.places(below, *shape)
        else:
            given[name] = maps.small(*shapes.get(name, one))
    return given


@pytest.mark.parametrize(
    ("names", "dtype", "total"),
    [(n, DTYPES[i % 4], i % 3 == 0) for i, n in enumerate(combinations())],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else name_of(value),
)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 6, 13, 17), 1), ((2, 6, 13, 17), 3), ((1, 70, 9, 33), 1), ((1, 300, 3, 5), 100)],
    ids=["6", "6 in 3", "70", "300 in 100"],
)
@both_layouts
def test_combine(
    layout: torch.memory_format,
    shape: tuple[int, ...],
    groups: int,
    names: tuple[str, ...],
    dtype: torch.dtype,
    total: bool,
) -> None:
    check_combine(Maps(shape, dtype, layout), names, groups, total=total)


@pytest.mark.parametrize("total", [False, True], ids=["product", "sum"])
@every_case
def test_combine_of_everything(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, total: bool
) -> None:
    check_combine(Maps(shape, dtype, layout), tuple(NAMES), 1, total=total)


def check_combine(maps: Maps, names: tuple[str, ...], groups: int, *, total: bool) -> None:
    source, x, to = maps.map(), maps.map(), torch.full_like(maps.map(), torch.nan)
    given = some_arguments(maps, names, groups)
    arguments = (given.get(name) for name in NAMES)
    triton.combine(source, x if "linear" in given else None, total, groups, *arguments, to)
    expected, size = combined(source, x, given, total=total)
    bound = BOUNDS[maps.dtype] * size + BOUNDS[maps.wide] * size.max()
    assert ((to.double() - expected).abs() <= bound).all()


@both_layouts
def test_values_that_are_no_numbers_go_where_they_belong(layout: torch.memory_format) -> None:
    maps = Maps((2, 5, 7, 11), torch.float32, layout)
    source, to, gate = maps.map(), torch.empty_like(maps.map()), maps.small(5, 1, 1)
    source[0, 1, 2, 3], source[1, 4, 6, 10], gate[1, 0] = torch.nan, torch.inf, torch.nan
    triton.combine(source, None, False, 1, gate, *[None] * 20, to)
    torch.testing.assert_close(to, source * gate, equal_nan=True)


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
    maps = Maps((2, 40, 67, 65), torch.float32, layout)
    x, other = maps.map(), maps.map()

    def run() -> list[Tensor]:
        rooms = [maps.room(*shape) for shape in ((40, 1, 1), (1, 67, 65), (40, 67, 1), (40, 1, 65))]
        triton.spatial_dot(x, other, None, None, 1, rooms[0])
        triton.channel_dot(x, other, None, 1, rooms[1])
        triton.strip_dot(x, other, None, None, *rooms[2:])
        return rooms

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def twins() -> list[tuple[str, Callable[..., None]]]:
    return [(name, f) for name, f in vars(triton).items() if inspect.isfunction(f)]


def test_arguments_are_those_of_the_processor_kernels() -> None:
    try:
        build.load()
    except build.BuildError as error:
        pytest.skip(str(error))
    found = twins()
    assert {name for name, _ in found} >= {"spatial_pool", "combine"}
    for name, f in found:
        schema = getattr(torch.ops.foveate_cpu, name).default._schema
        assert list(inspect.signature(f).parameters) == [a.name for a in schema.arguments], name
