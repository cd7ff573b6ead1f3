"""The Triton kernels that write maps, by definition; test_triton_kernels.py runs this."""

import inspect
import itertools
import random
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cases import DEFAULTS, Case
from foveate import kernels
from foveate.kernels import build, triton
from triton_maps import (
    BOUNDS,
    DEVICE,
    DTYPES,
    Maps,
    both_layouts,
    check,
    every_case,
    every_case_and,
    name_of,
    spread_groups,
)

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


REGULARIZATION = 1e-2
WEAKENED = [(0, False), (0, True), (1, True), (1, False), (2, False), (2, True)]


def by_energy(x: Tensor, a: Tensor | float) -> Tensor:
    d = x - x.mean((2, 3), keepdim=True)
    variance = d.square().sum((2, 3), keepdim=True) / max(x[0, 0].numel() - 1, 1)
    gate = (d.square() / (4 * (variance + REGULARIZATION)) + 0.5).sigmoid()
    return x * (1 + a * (gate - 1))


def by_pair(x: Tensor, c: Tensor, p: Tensor, a: Tensor | float, kind: int) -> Tensor:
    if kind == 2:
        return x + a * (torch.maximum(x * c, x * p) - x)
    return x * (1 + a * (c + p if kind == 0 else c * p).sigmoid())


def differentiable(*tensors: Tensor) -> list[Tensor]:
    return [t.double().requires_grad_() for t in tensors]


def check_gradient(actual: Tensor, expected: Tensor) -> None:
    """A gradient is a longer computation than a sum: a few times its bound."""
    finite = 8 * BOUNDS[actual.dtype] * max(1, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=finite)


@pytest.mark.parametrize("weakened", [False, True])
@every_case
def test_energy(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, weakened: bool
) -> None:
    maps = Maps(shape, dtype, layout)
    x, grad, y, gx = maps.map(), maps.map(), maps.map(), maps.map()
    strength = torch.tensor(0.7, dtype=maps.wide, device=DEVICE) if weakened else None
    of_strength = torch.full(shape[:2], torch.nan, dtype=maps.wide, device=DEVICE)
    triton.energy(x, REGULARIZATION, strength, y)
    triton.energy_gradient(x, grad, REGULARIZATION, strength, gx, of_strength)
    wide = differentiable(x, torch.tensor(1.0) if strength is None else strength)
    expected = by_energy(*wide)
    check_gradient(y, expected.detach())
    expected.backward(grad.double())
    check_gradient(gx, wide[0].grad)
    check_gradient(of_strength.sum(), wide[1].grad)


@every_case_and(("kind", "weakened"), *WEAKENED)
def test_pair(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    kind: int,
    weakened: bool,
) -> None:
    maps, (_, C, H, W) = Maps(shape, dtype, layout), shape
    x, grad, y = maps.map(), maps.map(), maps.map()
    c, p = maps.small(C, 1, 1), maps.small(1, H, W)
    p[0, 0, 0, 0] = c[0, 0, 0, 0]  # neither is the choice
    strength = torch.tensor(0.7, dtype=maps.wide, device=DEVICE) if weakened else None
    rooms = maps.room(C, 1, 1), maps.room(1, H, W), maps.room(C, 1, 1)
    triton.pair_gate(x, x, kind, c, p, strength, None, None, None, y)
    triton.pair_dot(x, grad, kind, c, p, strength, *rooms)
    wide = differentiable(x, c, p, torch.tensor(1.0) if strength is None else strength)
    expected = by_pair(*wide, kind)
    check_gradient(y, expected.detach())
    expected.backward(grad.double())
    for actual, of in zip((*rooms[:2], rooms[2].sum()), wide[1:], strict=True):
        check_gradient(actual, of.grad)


@both_layouts
def test_pair_gate_of_another_map_with_terms(layout: torch.memory_format) -> None:
    maps = Maps((2, 6, 13, 17), torch.float32, layout)
    source, x, to = maps.map(), maps.map(), maps.map()
    c, p, add, weight = (maps.small(*shape) for shape in ((6, 1, 1), (1, 13, 17)) * 2)
    weight, map = maps.small(6, 1, 1), weight
    triton.pair_gate(source, x, 2, c, p, None, add, map, weight, to)
    chosen = torch.where((x > 0) == (c > p), c, p)
    check(to, (source * chosen).double() + add.double() + map.double() * weight.double())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, who interprets
@both_layouts
def test_an_infinite_value_times_a_zero_is_no_number(layout: torch.memory_format) -> None:
    maps = Maps((1, 2, 3, 5), torch.float32, layout)
    x, to, c, p = maps.map(), maps.map(), maps.small(2, 1, 1), maps.small(1, 3, 5)
    x[0, 0, 0, 0], x[0, 1, 2, 2], c[0, 0] = torch.inf, torch.nan, 0
    triton.pair_gate(x, x, 2, c, p, None, None, None, None, to)
    torch.testing.assert_close(to, torch.maximum(x * c, x * p), equal_nan=True)


def is_fused(case: Case) -> bool:
    with torch.device("meta"):
        return case.create(case.fit(16)).fused


@both_layouts
@pytest.mark.parametrize(
    "case", [case for case in DEFAULTS if is_fused(case)], ids=lambda case: case.id
)
def test_mechanisms(
    case: Case, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = case.randomised(case.fit(16)).to(DEVICE)
    # The package has the function of that name.
    monkeypatch.setattr(sys.modules["foveate.ops.recomputed"], "LEAST", 0)
    maps = Maps((2, case.fit(16), 7, 9), torch.float64, layout)
    x, grad = maps.map(), maps.map()
    served, eager = (gradients(module, x, grad, path) for path in ("triton", "eager"))
    for actual, expected in zip(served, eager, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def gradients(module: nn.Module, x: Tensor, grad: Tensor, path: str) -> list[Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with kernels.using(path):
        assert (kernels.pick(x) is triton) == (path == "triton")
        y = module(x)
        wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
        found = torch.autograd.grad(y, wanted, grad, allow_unused=True)
    return [y.detach(), *(t for t in found if t is not None)]


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
