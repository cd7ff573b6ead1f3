"""Kernels of rows and columns, at every way in which a row may fall into vectors."""

import copy

import pytest
import torch
from torch import Tensor, nn

import foveate
from cases import DEFAULTS
from foveate import kernels

COORD = next(case for case in DEFAULTS if case.key == "coord")
FORMATS = [torch.contiguous_format, torch.channels_last]
WIDTHS = [1, 3, 7, 8, 9, 14, 16, 17, 28, 31, 33, 56, 64, 65, 80]
# Of the sum of all magnitudes: the accumulators are float32 for all but float64.
BOUND = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}

every_width = pytest.mark.parametrize("width", WIDTHS)
both_formats = pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])


def values(*shape: int, seed: int, layout: torch.memory_format) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn.contiguous(memory_format=layout)


@every_width
@both_formats
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("gated", [True, False])
def test_products_are_summed_along_rows_and_columns(
    width: int, layout: torch.memory_format, dtype: torch.dtype, gated: bool
) -> None:
    B, C, H = 2, 37, 6
    wide = torch.promote_types(dtype, torch.float32)
    x, other = (values(B, C, H, width, seed=s, layout=layout).to(dtype) for s in (0, 1))
    row_gate = values(B, C, H, 1, seed=2, layout=layout).to(wide)
    column_gate = values(B, C, 1, width, seed=3, layout=layout).to(wide)
    rows, columns = torch.empty_like(row_gate), torch.empty_like(column_gate)
    # A row that ends in what is no number must not be seen by its neighbours.
    x[1, 5, 2, width - 1] = torch.nan
    gates = (row_gate, column_gate) if gated else (None, None)
    with kernels.using("cpu"):
        kernels.pick(x).strip_dot(x, other, *gates, rows, columns)

    product = x.double() * other.double()
    along = product * column_gate.double() if gated else product
    down = product * row_gate.double() if gated else product
    for found, terms, dim in ((rows, along, 3), (columns, down, 2)):
        exact, scale = (t.sum(dim, keepdim=True) for t in (terms, terms.abs()))
        assert torch.equal(found.isnan(), exact.isnan())
        error = (found.double() - exact).abs().nan_to_num()
        assert (error <= BOUND[dtype] * scale.nan_to_num() + 1e-30).all()


@every_width
@both_formats
def test_an_infinite_gate_stays_infinite(width: int, layout: torch.memory_format) -> None:
    x = values(2, 37, 6, width, seed=0, layout=layout).abs() + 1
    row_gate = torch.full((2, 37, 6, 1), torch.inf, dtype=x.dtype).contiguous(memory_format=layout)
    column_gate = torch.full((2, 37, 1, width), torch.inf, dtype=x.dtype).contiguous(
        memory_format=layout
    )
    rows, columns = torch.empty_like(row_gate), torch.empty_like(column_gate)
    with kernels.using("cpu"):
        kernels.pick(x).strip_dot(x, x, row_gate, column_gate, rows, columns)
    assert rows.isposinf().all()
    assert columns.isposinf().all()


@every_width
@both_formats
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("init", ["paper", "identity"])
def test_coordinate_attention_at_every_width(
    width: int, layout: torch.memory_format, dtype: torch.dtype, init: str
) -> None:
    module = COORD.randomised(37, init=init).to(dtype)
    equals_its_definition(module, *maps(2, 37, 31, width, layout=layout, dtype=dtype))


@both_formats
@pytest.mark.parametrize("channels", [1, 5, 515, 1040])
def test_coordinate_attention_of_any_number_of_channels(
    channels: int, layout: torch.memory_format
) -> None:
    module = COORD.randomised(channels)
    shape = (2, channels, 5000 // channels + 5, 3)
    equals_its_definition(module, *maps(*shape, layout=layout, dtype=torch.float64))


def maps(*shape: int, layout: torch.memory_format, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, grad = (values(*shape, seed=s, layout=layout).to(dtype) for s in (0, 1))
    return x, grad


def equals_its_definition(module: nn.Module, x: Tensor, grad: Tensor) -> None:
    exact = step(copy.deepcopy(module).double(), x.double(), grad.double(), "eager")
    found = step(module, x, grad, "cpu")
    assert found.keys() == exact.keys()
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 4e-2}[x.dtype]
    for name, tensor in exact.items():
        assert found[name].dtype == x.dtype
        assert (found[name].double() - tensor).norm() <= tolerance * tensor.norm(), name


def step(module: nn.Module, x: Tensor, grad: Tensor, path: str) -> dict[str, Tensor]:
    """The map, and what follows from a gradient of it."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with kernels.using(path):
        y = module(x)
        y.backward(grad)
    assert x.grad is not None
    of = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"map": y.detach(), "input": x.grad, **of}


@both_formats
def test_the_map_needs_no_gradient(layout: torch.memory_format) -> None:
    module = foveate.create("coord", 37).double()
    x, grad = maps(2, 37, 31, 9, layout=layout, dtype=torch.float64)
    found = []
    for path in ("eager", "cpu"):
        own = copy.deepcopy(module)
        with kernels.using(path):
            own(x).backward(grad)
        found.append([p.grad for p in own.parameters()])
    for expected, tensor in zip(*found, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-10, atol=1e-12)
