"""Gates that take the sum and the ReLU of a residual block along: the numbers of all three."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn import functional as F

from cases import DEFAULTS, Case
from foveate import kernels
from foveate.mechanisms.base import Gate
from test_kernel_ops import values

FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(2, 64, 14, 10), (3, 40, 9, 13), (1, 8, 33, 17), (5, 3, 1, 9), (4, 96, 7, 7)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def gates(*, ending: bool) -> list[Case]:
    found = []
    for case in DEFAULTS:
        with torch.device("meta"):
            module = case.create(case.fit(64))
        if isinstance(module, Gate) and module.ends_blocks is ending:
            found.append(case)
    return found


ENDING = gates(ending=True)
every_key = pytest.mark.parametrize("case", ENDING, ids=lambda case: case.key)
both_formats = pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    with kernels.using("cpu"):
        yield


def test_the_gates_that_end_blocks_are_known() -> None:
    assert {case.key for case in ENDING} == {"se", "eca", "cbam"}


@pytest.mark.parametrize("case", gates(ending=False), ids=lambda case: case.key)
def test_other_gates_take_no_shortcut(case: Case) -> None:
    x = values(2, case.fit(16), 8, 8, dtype=torch.float32)
    assert case.randomised(x.shape[1], dtype=torch.float32).whole(x, x.clone()) is None


@every_key
@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_formats
def test_one_pass_gives_the_bits_of_three(
    case: Case,
    init: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    module = case.randomised(shape[1], init=init, dtype=dtype).eval()
    x, shortcut = (values(*shape, dtype=dtype, seed=s).to(memory_format=layout) for s in (0, 1))
    with torch.no_grad():
        expected = F.relu(module(x) + shortcut)
        found = module.whole(x, shortcut)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)
        over = module.whole(x, shortcut, in_place=True)
    assert torch.equal(over, expected)
    assert over.data_ptr() == x.data_ptr()


def steps(module: nn.Module, end: object, x: Tensor, shortcut: Tensor) -> dict[str, Tensor]:
    module = copy.deepcopy(module)
    x, shortcut = (t.detach().requires_grad_() for t in (x, shortcut))
    for seed in (2, 3):
        y = end(module, x, shortcut)
        y.backward(values(*x.shape, dtype=x.dtype, seed=seed).to(memory_format=layout_of(x)))
    found = {name: p.grad for name, p in module.named_parameters()}
    return {"y": y.detach(), "x": x.grad, "shortcut": shortcut.grad, **found}


def layout_of(x: Tensor) -> torch.memory_format:
    return FORMATS[not x.is_contiguous()]


def apart(module: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
    return F.relu(module(x) + shortcut)


def at_once(module: nn.Module, x: Tensor, shortcut: Tensor) -> Tensor:
    y = module.whole(x, shortcut)
    assert y is not None
    return y


@every_key
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@both_formats
def test_gradients_are_those_of_three_operations(
    case: Case,
    training: bool,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    module = case.randomised(shape[1], init="identity", dtype=dtype).train(training)
    x, shortcut = (values(*shape, dtype=dtype, seed=s).to(memory_format=layout) for s in (0, 1))
    expected = steps(module, apart, x, shortcut)
    for name, found in steps(module, at_once, x, shortcut).items():
        assert torch.equal(found, expected[name]), name


@every_key
@both_formats
def test_gradients_are_those_of_finite_differences(case: Case, layout: torch.memory_format) -> None:
    module = case.randomised(4, init="identity").eval()
    x, shortcut = (values(2, 4, 4, 3, dtype=torch.float64, seed=s) for s in (0, 1))
    inputs = [t.to(memory_format=layout).requires_grad_() for t in (x, shortcut)]
    assert torch.autograd.gradcheck(module.whole, inputs)
    assert torch.autograd.gradgradcheck(module.whole, inputs)


@every_key
@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
@both_formats
def test_large_maps_are_written_past_the_caches_with_the_same_values(
    case: Case, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    shape = (1, 64, 256, 288)  # 9 MiB and more
    module = case.randomised(64, dtype=dtype).train()
    x, shortcut = (values(*shape, dtype=dtype, seed=s).to(memory_format=layout) for s in (0, 1))
    found = steps(module, at_once, x, shortcut)
    with kernels.using("eager"):
        expected = steps(copy.deepcopy(module).double(), apart, x.double(), shortcut.double())
    for name, tensor in found.items():
        error = (tensor.double() - expected[name]).norm() / (expected[name].norm() + 1e-3)
        assert error <= 32 * torch.finfo(dtype).eps, name


@every_key
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
@both_formats
def test_what_is_no_number_goes_through(
    case: Case, poison: float, layout: torch.memory_format
) -> None:
    module = case.randomised(16, dtype=torch.float32).eval()
    for of_shortcut in (False, True):
        x, shortcut = (values(2, 16, 7, 5, dtype=torch.float32, seed=s) for s in (0, 1))
        (shortcut if of_shortcut else x)[1, 2, 3, 4] = poison
        x, shortcut = x.to(memory_format=layout), shortcut.to(memory_format=layout)
        found, expected = (steps(module, end, x, shortcut) for end in (at_once, apart))
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, equal_nan=True)


@every_key
def test_maps_of_any_strides_are_taken(case: Case) -> None:
    module, wide = case.randomised(16).eval(), values(2, 32, 9, 14, dtype=torch.float64)
    for x in (wide[:, :16], wide[:, ::2, ::2, ::2], wide[:1, 16:].expand(3, -1, -1, -1)):
        for shortcut in (x + 1, torch.randn_like(x).to(memory_format=torch.channels_last)):
            expected = apart(module, x.contiguous(), shortcut)
            torch.testing.assert_close(module.whole(x, shortcut), expected)
            torch.testing.assert_close(module.whole(shortcut, x), apart(module, shortcut, x))


@every_key
@pytest.mark.parametrize("training", [False, True])
def test_the_schemas_say_what_is_written(case: Case, training: bool) -> None:
    module = case.randomised(16, init="identity", dtype=torch.float32).train(training)
    x, shortcut = (values(2, 16, 7, 5, dtype=torch.float32, seed=s) for s in (0, 1))
    calls = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            op = getattr(torch.ops.foveate_cpu, name)
            return lambda *arguments: calls.append((op, arguments)) or op(*arguments)

    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(training):
        patch.setattr(kernels, "pick", lambda x, least: Watched())
        y = module.whole(x.requires_grad_(training), shortcut)
        if training:
            y.sum().backward()
    assert len(calls) == 1 + training
    for op, arguments in calls:
        plain = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
        opcheck(op.default, tuple(plain), test_utils=("test_schema",))
