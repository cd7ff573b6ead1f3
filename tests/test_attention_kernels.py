"""Attention that kernels serve is, to rounding, the attention that is defined."""

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import foveate
from foveate import kernels, ops
from foveate.errors import InvalidValueError
from memory import peak_bytes

position = importlib.import_module("foveate.ops.position_attention")
criss_cross = importlib.import_module("foveate.ops.criss_cross_attention")

# Largest error, in units of the largest value: a few roundings of the dtype.
BOUNDS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SCALE = 0.7
DIM = 3


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    with kernels.using("cpu"):
        try:
            kernels.explain(torch.device("cpu"))
        except InvalidValueError as error:
            pytest.skip(str(error))
        yield


def all_pairs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (SCALE * query @ key.mT).softmax(3) @ value


def crosses(qkv: Tensor) -> Tensor:
    """Position by position."""
    H, W = qkv.shape[2:]
    query, key, value = qkv.split([DIM, DIM, qkv.shape[1] - 2 * DIM], dim=1)
    found = []
    for i, j in itertools.product(range(H), range(W)):
        cross = [(i, b) for b in range(W)] + [(a, j) for a in range(H) if a != i]
        keys, values = (torch.stack([t[:, :, a, b] for a, b in cross]) for t in (key, value))
        weights = (query[:, :, i, j] * keys).sum(2).softmax(0)  # (H + W - 1, B)
        found.append((weights.unsqueeze(2) * values).sum(0))
    return torch.stack(found, dim=2).unflatten(2, (H, W))


@dataclass(frozen=True)
class Op:
    run: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    """Of the inputs; each tuple once."""

    def inputs(self, case: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        generator = torch.Generator().manual_seed(case)
        drawn = [
            torch.randn(s, generator=generator, dtype=torch.float64) for s in self.shapes[case]
        ]
        return [t.to(dtype).requires_grad_() for t in drawn]


def tokens(
    batch: int, heads: int, queries: int, keys: int, dim: int, value_dim: int
) -> tuple[tuple[int, ...], ...]:
    return (
        (batch, heads, queries, dim),
        (batch, heads, keys, dim),
        (batch, heads, keys, value_dim),
    )


POSITION = Op(
    lambda q, k, v: ops.position_attention(q, k, v, scale=SCALE),
    all_pairs,
    (
        tokens(2, 3, 7, 5, 4, 6),
        tokens(1, 1, 1, 1, 1, 1),
        tokens(1, 2, 130, 257, 17, 33),
        tokens(2, 1, 300, 129, 5, 100),
    ),
)
CRISS_CROSS = Op(
    lambda qkv: ops.criss_cross_attention(qkv, DIM),
    crosses,
    (((2, 11, 4, 5),), ((1, 7, 1, 1),), ((1, 9, 1, 20),), ((2, 40, 17, 1),), ((1, 9, 2, 140),)),
)
OPS = {"position": POSITION, "criss_cross": CRISS_CROSS}
CASES = [(name, case) for name, op in OPS.items() for case in range(len(op.shapes))]
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
every_case = pytest.mark.parametrize(("name", "case"), CASES)


def outcome(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of the inputs."""
    y = run(*inputs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [y, *torch.autograd.grad(y, inputs, grad.to(y.dtype))]


def wide(inputs: list[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in inputs]


def assert_near(actual: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        error = (one.double() - other).detach().abs().max()
        assert error <= bound * max(1.0, float(other.detach().abs().max())), error


def test_the_kernels_are_what_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, op in ((position, POSITION), (criss_cross, CRISS_CROSS)):
        monkeypatch.setattr(module, "_room", lambda *_: pytest.fail("served"))
        with pytest.raises(pytest.fail.Exception, match="served"):
            op.run(*op.inputs(0))


@every_op
def test_other_kernels_than_those_for_processors_are_not_asked(
    op: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "pick", lambda *_, **__: object())
    for module in (position, criss_cross):
        monkeypatch.setattr(module, "_room", lambda *_: pytest.fail("served"))
    torch.testing.assert_close(op.run(*op.inputs(0)), op.definition(*op.inputs(0)))


@every_case
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_equals_its_definition(name: str, case: int, dtype: torch.dtype) -> None:
    op = OPS[name]
    inputs = op.inputs(case, dtype)
    actual = outcome(op.run, inputs)
    assert all(t.dtype == dtype for t in actual)
    assert_near(actual, outcome(op.definition, wide(inputs)), BOUNDS[dtype])


@every_op
def test_gradients_are_those_of_differences(op: Op) -> None:
    assert torch.autograd.gradcheck(op.run, op.inputs(0))


@every_op
def test_differentiates_twice(op: Op) -> None:
    assert torch.autograd.gradgradcheck(op.run, op.inputs(0))


LAYOUTS = {
    "last dimension first": lambda t: t.detach().movedim(-1, 1).contiguous().movedim(1, -1),
    "second dimension last": lambda t: t.detach().movedim(1, -1).contiguous().movedim(-1, 1),
    "a slice": lambda t: torch.stack([t.detach(), t.detach()], dim=-1)[..., 0],
    "expanded": lambda t: t.detach()[:1, :, :, :1].expand(t.shape),
}


@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_any_strides(name: str, case: int, layout: str) -> None:
    op = OPS[name]
    inputs = [LAYOUTS[layout](t).requires_grad_() for t in op.inputs(case)]
    assert_near(outcome(op.run, inputs), outcome(op.definition, wide(inputs)), 1e-13)


@every_op
def test_takes_a_gradient_without_strides(op: Op) -> None:
    inputs = op.inputs(0)
    actual = torch.autograd.grad(op.run(*inputs).sum(), inputs)
    assert_near(actual, torch.autograd.grad(op.definition(*inputs).sum(), inputs), 1e-13)


@every_op
def test_takes_an_empty_batch(op: Op) -> None:
    inputs = [t.detach()[:0].requires_grad_() for t in op.inputs(0)]
    for one, other in zip(outcome(op.run, inputs), outcome(op.definition, inputs), strict=True):
        assert one.shape == other.shape


@every_op
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 2, -1])
def test_passes_on_what_is_not_finite(op: Op, dtype: torch.dtype, special: float, at: int) -> None:
    inputs = op.inputs(0, dtype)
    with torch.no_grad():
        for t in inputs[-1:] if at == -1 else inputs[:1]:
            t[0, at, 1, 2] = special
    # The literal form of crosses never sees the masked score, whose weight 0 makes inf a NaN.
    plain = functools.partial(criss_cross._by_definition, dim=DIM)
    definition = plain if op is CRISS_CROSS else op.definition
    actual, expected = op.run(*inputs), definition(*wide(inputs))
    torch.testing.assert_close(actual.double(), expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert not expected.isfinite().all()


def test_keys_without_any_weight_may_come_first() -> None:
    query, key = torch.ones(1, 1, 3, 1), torch.randn(1, 1, 300, 1)
    key[:, :, :200] = -torch.inf
    value = torch.randn(1, 1, 300, 2)
    actual = POSITION.run(query, key, value)
    torch.testing.assert_close(actual, POSITION.definition(query, key, value))
    assert actual.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e3, 1e18])
def test_large_scores_do_not_overflow(dtype: torch.dtype, size: float) -> None:
    for op in OPS.values():
        inputs = op.inputs(0, dtype)
        inputs[0] = (inputs[0].detach() * size).requires_grad_()
        assert_near([op.run(*inputs)], [op.definition(*wide(inputs))], 1e-3 * max(1, size**0.95))
        assert all(t.isfinite().all() for t in outcome(op.run, inputs))


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gives_the_same_bits_with_any_number_of_threads(op: Op, dtype: torch.dtype) -> None:
    inputs, before = op.inputs(2, dtype), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            found.append(outcome(op.run, inputs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
@pytest.mark.parametrize("case", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_is_registered_as_pytorch_wants(case: int, dtype: torch.dtype) -> None:
    tolerances = {"rtol": 1e-2, "atol": 1e-2}
    for name, op, option in (("position", POSITION, SCALE), ("criss_cross", CRISS_CROSS, DIM)):
        inputs = op.inputs(case, dtype)
        forward = getattr(torch.ops.foveate, f"{name}_attention").default
        torch.library.opcheck(forward, (*inputs, option), **tolerances)
        values = [t.detach() for t in inputs]
        out, lse = forward(*values, option)
        rest = (*values, out, lse, option) if name == "position" else (*values, option, lse)
        backward = getattr(torch.ops.foveate, f"{name}_attention_backward").default
        torch.library.opcheck(backward, (torch.ones_like(out), *rest), **tolerances)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # PyTorch's kernel
@every_op
def test_maps_over_a_dimension(op: Op) -> None:
    inputs = [torch.stack([t.detach(), 2 * t.detach()]) for t in op.inputs(0)]
    expected = torch.stack([op.definition(*(t[i] for t in inputs)) for i in range(2)])
    torch.testing.assert_close(torch.func.vmap(op.run)(*inputs), expected)


@every_op
def test_compiles_into_one_graph(op: Op) -> None:
    inputs = op.inputs(0, torch.float32)
    compiled = torch.compile(op.run, fullgraph=True, backend="aot_eager", dynamic=True)
    assert_near(outcome(compiled, inputs), outcome(op.definition, wide(inputs)), 1e-5)


@every_op
def test_exported_programs_know_no_kernels(op: Op) -> None:
    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return op.run(*inputs)

    inputs = tuple(t.detach() for t in op.inputs(0, torch.float32))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Module(), inputs, dynamic_shapes={"inputs": tuple({0: batch} for _ in inputs)}
    )
    assert not any("foveate" in str(node.target) for node in program.graph.nodes)
    more = [torch.cat([t, t, t]) for t in inputs]
    torch.testing.assert_close(program.module()(*more), op.definition(*more))


KEYS = ("nl", "mhsa", "danet_position", "a2", "efficient", "external", "criss_cross")


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_mechanisms_are_the_same(key: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    module = foveate.create(key, 24).to(dtype)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 24, 9, 14).to(dtype).contiguous(memory_format=layout).requires_grad_()
    inputs = [x, *module.parameters()]

    def run(*_: Tensor) -> Tensor:
        return module(x)

    actual = outcome(run, inputs)
    assert actual[0].is_contiguous(memory_format=layout)
    with kernels.using("eager"):
        expected = [t.double() for t in outcome(run, inputs)]
    scale = max(float(t.detach().abs().max()) for t in expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2 * BOUNDS[dtype] * scale)


def passes(frozen: str | None = None) -> tuple[torch.nn.Module, Tensor, list[Tensor]]:
    """Criss-cross attention in float64, an input, and what gradients are taken of."""
    torch.manual_seed(0)
    module = foveate.create("criss_cross", 24).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 24, 9, 14, dtype=torch.float64)
    for name, t in {"input": x, **dict(module.named_parameters())}.items():
        t.requires_grad_(frozen is None or not name.startswith(frozen))
    return module, x, [t for t in (x, *module.parameters()) if t.requires_grad]


@pytest.mark.parametrize("frozen", [None, "input", "value_conv", "query_conv.weight"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_passes_may_be_differentiated_again_and_again(
    frozen: str | None, layout: torch.memory_format
) -> None:
    module, x, wanted = passes(frozen)
    y = module(x.contiguous(memory_format=layout))
    grad = torch.randn_like(y)
    before = grad.clone()
    found = [torch.autograd.grad(y, wanted, grad, retain_graph=True) for _ in range(3)]
    with kernels.using("eager"):
        expected = torch.autograd.grad(module(x), wanted, grad)
    for gradients in found:
        assert_near(gradients, expected, 1e-13)
    assert torch.equal(grad, before)


def test_passes_differentiate_twice() -> None:
    module, x, wanted = passes()

    def second(path: str) -> tuple[Tensor, ...]:
        with kernels.using(path):
            slopes = torch.autograd.grad(module(x).sin().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in slopes), wanted)

    assert_near(second("cpu"), second("eager"), 1e-10)


@pytest.mark.parametrize("without", [["key"], ["query", "key", "value"]], ids=",".join)
def test_passes_need_no_biases(without: list[str]) -> None:
    module, x, _ = passes()
    for name in without:
        getattr(module, f"{name}_conv").bias = None
    wanted = [x, *module.parameters()]
    expected = x.detach()
    for _ in range(2):
        query, key, value = (c(expected) for c in module.children())
        qkv = torch.cat([query, key, value], dim=1)
        expected = expected + module.scale * criss_cross._by_definition(qkv, query.shape[1])
    actual = outcome(lambda *_: module(x), wanted)
    assert_near(actual[:1], [expected], 1e-13)
    with kernels.using("eager"):
        assert_near(actual, outcome(lambda *_: module(x), wanted), 1e-13)


def test_passes_compute_in_the_dtype_of_autocast() -> None:
    module, x, _ = passes()
    module, x = module.float(), x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, module(x), rtol=0.05, atol=0.05)
    y.sum().backward()
    assert x.grad is not None


COPIES = {"danet_position": 7, "criss_cross": 5, "nl": 7.5, "mhsa": 12}


@pytest.mark.parametrize("key", COPIES)
def test_training_holds_a_few_copies_of_the_map(key: str) -> None:
    module = foveate.create(key, 128)
    x = torch.randn(1, 128, 64, 64, requires_grad=True)
    grad = torch.ones_like(x)

    def step() -> None:
        y = module(x)
        y.backward(grad)

    step()
    x.grad = None
    module.zero_grad()
    assert peak_bytes(step) <= COPIES[key] * x.nbytes


def test_the_peak_of_a_computation_that_holds_all_pairs_is_seen() -> None:
    x = torch.randn(1, 512, 8)
    assert peak_bytes(lambda: (x @ x.mT).softmax(2)) >= 512 * 512 * 4
