"""Gates that kernels serve are the gates that they are without."""

import copy
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import prune

import foveate
from cases import CASES, DEFAULTS, Case
from foveate import kernels
from foveate.mechanisms.base import Gate
from tolerances import TOLERANCES, assert_close

FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(1, 4, 7, 5), (2, 64, 14, 10), (1, 24, 17, 33), (2, 1, 1, 1)]


def is_fused(case: Case, channels: int = 256) -> bool:
    with torch.device("meta"):
        return case.create(case.fit(channels)).fused


FUSED = [case for case in CASES if is_fused(case)]
KEYS = {
    *("se", "ese", "eca", "cbam", "spatial", "bam", "coord", "gc", "simam", "triplet"),
    *("gct", "srm", "sge", "scse", "ge"),
}
RECOMPUTED = {"ema", "strip"}
GATES = [case for case in DEFAULTS if case.key in KEYS | RECOMPUTED]

every_fused = pytest.mark.parametrize("case", FUSED, ids=lambda case: case.id)
every_fused_default = pytest.mark.parametrize(
    "case", [case for case in FUSED if not case.options], ids=lambda case: case.id
)
both_formats = pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # The package has the function of that name.
    monkeypatch.setattr(sys.modules["foveate.ops.recomputed"], "LEAST", 0)
    with kernels.using("cpu"):
        yield


def random_map(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def results(module: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The output, its gradients, and the buffers, after one pass in training mode."""
    module = copy.deepcopy(module)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y.backward(grad)
    found = {"output": y.detach(), "input": x.grad}
    found |= {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found | dict(module.named_buffers())


def eager_results(module: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    with kernels.using("eager"):
        return results(module, x, grad)


def test_the_gates_of_the_papers_are_served() -> None:
    assert {case.key for case in FUSED} >= KEYS


@every_fused
@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both_formats
def test_equals_its_reference(
    case: Case, init: str, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    shape = (shape[0], case.fit(shape[1]), *shape[2:])
    module, x = case.randomised(shape[1], init=init), random_map(*shape).to(memory_format=layout)
    assert_close(module(x), case.reference(x, module.state_dict(), **case.options))


@every_fused
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 16, 5, 4), (1, 8, 3, 17), (2, 64, 7, 7)], ids=str)
@both_formats
def test_gradients_are_those_without_kernels(
    case: Case, training: bool, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    shape = (shape[0], case.fit(shape[1]), *shape[2:])
    module = case.randomised(shape[1], init="identity").train(training)
    x, grad = (random_map(*shape, seed=s).to(memory_format=layout) for s in (0, 1))
    expected = eager_results(module, x, grad)
    found = results(module, x, grad)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], **TOLERANCES[torch.float64], msg=name)


@every_fused_default
@both_formats
def test_maps_that_are_written_past_the_caches_have_the_same_values(
    case: Case, layout: torch.memory_format
) -> None:
    shape = (1, case.fit(32), 272, 256)  # 8.5 MiB
    module = case.randomised(shape[1], dtype=torch.float32).eval()
    x, grad = (random_map(*shape, seed=s).float().to(memory_format=layout) for s in (0, 1))
    exact = eager_results(copy.deepcopy(module).double(), x.double(), grad.double())
    found, eager = results(module, x, grad), eager_results(module, x, grad)
    for name, tensor in exact.items():
        if not tensor.is_floating_point():
            continue
        error, allowed = ((r[name].double() - tensor).norm() for r in (found, eager))
        assert error <= 4 * allowed + 1e-5 * tensor.norm(), name


@every_fused_default
@both_formats
def test_gradients_are_those_of_finite_differences(case: Case, layout: torch.memory_format) -> None:
    module = case.randomised(case.fit(4), init="identity").train()
    names = [name for name, _ in module.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        fresh = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(
            module, fresh | dict(zip(names, parameters, strict=True)), x
        )

    x = random_map(2, case.fit(4), 4, 3).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, *module.parameters()), fast_mode=True)


@every_fused_default
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@both_formats
def test_narrow_dtypes_are_as_close_to_float64_as_they_can_be(
    case: Case, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    shape = (2, case.fit(64), 28, 28)
    module = case.randomised(shape[1], dtype=dtype)
    x, grad = (random_map(*shape, dtype=dtype, seed=s).to(memory_format=layout) for s in (0, 1))
    with kernels.using("eager"):
        exact = results(copy.deepcopy(module).double(), x.double(), grad.double())
        eager = results(module, x, grad)
    found = results(module, x, grad)
    for name, tensor in exact.items():
        if not tensor.is_floating_point():
            continue
        assert found[name].dtype == eager[name].dtype
        error, allowed = (
            (r[name].double() - tensor).norm() / tensor.norm().clamp(min=1e-9)
            for r in (found, eager)
        )
        assert error <= 4 * allowed + 8 * torch.finfo(dtype).eps, name


@every_fused_default
@both_formats
def test_the_identity_form_is_the_identity_to_the_last_bit(
    case: Case, layout: torch.memory_format
) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        module = case.create(case.fit(32), init="identity").to(dtype)
        x = random_map(2, case.fit(32), 9, 7, dtype=dtype).to(memory_format=layout)
        x[:, :, 0, 0] = -0.0 if isinstance(module, Gate) else 0.0  # a sum loses the sign
        y = module(x)
        bits = torch.int16 if y.element_size() == 2 else torch.int32
        assert torch.equal(y.view(bits), x.view(bits))
        assert y.is_contiguous(memory_format=layout)


@every_fused_default
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
@both_formats
def test_what_is_no_number_spreads_as_without_kernels(
    case: Case, poison: float, layout: torch.memory_format
) -> None:
    module = case.randomised(case.fit(16), dtype=torch.float32)
    x = random_map(3, case.fit(16), 7, 5, dtype=torch.float32).to(memory_format=layout)
    x[1, 2, 3, 4] = poison
    with kernels.using("eager"), torch.no_grad():
        expected = module(x)
    with torch.no_grad():
        found = module(x)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    assert found[0].isfinite().all()


@every_fused_default
def test_maps_of_any_strides_are_taken(case: Case) -> None:
    module, C = case.randomised(case.fit(16), init="identity"), case.fit(16)
    wide = random_map(2, 2 * C, 9, 14)
    for x in (
        wide[:, :C],
        wide[:, ::2, ::2, ::2],
        wide[:, :C].transpose(2, 3),
        wide[:1, :C].expand(3, -1, -1, -1),
        wide[:, :1].expand(-1, C, -1, -1),
        wide[:, :C, :1, :1].expand(-1, -1, 6, 5),
    ):
        with kernels.using("eager"):
            expected = module(x)
        torch.testing.assert_close(module(x), expected, **TOLERANCES[torch.float64])


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom:UserWarning")  # of no values
@every_fused_default
def test_an_empty_batch_stays_empty(case: Case) -> None:
    module = case.create(case.fit(16)).eval()
    x = torch.randn(0, case.fit(16), 5, 4, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.shape == x.shape


@every_fused_default
@both_formats
def test_every_run_and_every_number_of_threads_gives_the_same_bits(
    case: Case, layout: torch.memory_format
) -> None:
    C = case.fit(64)
    x, grad = (
        random_map(3, C, 28, 26, dtype=torch.float32, seed=s).to(memory_format=layout)
        for s in (0, 1)
    )
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            module = case.randomised(C, dtype=torch.float32).train()
            first, second = results(module, x, grad), results(module, x, grad)
            assert all(torch.equal(first[name], second[name]) for name in first)
    finally:
        torch.set_num_threads(threads)


# The second derivative of a hard sigmoid is not implemented in torch.
every_smooth_default = pytest.mark.parametrize(
    "case",
    [case for case in FUSED if not case.options and case.key != "ese"],
    ids=lambda case: case.id,
)


@every_smooth_default
@both_formats
def test_it_differentiates_twice(case: Case, layout: torch.memory_format) -> None:
    module = case.randomised(case.fit(4), init="identity")
    x = random_map(1, case.fit(4), 3, 4).to(memory_format=layout).requires_grad_()
    assert torch.autograd.gradgradcheck(module, (x,), fast_mode=True, atol=1e-4)


@every_smooth_default
def test_a_penalty_on_the_gradient_trains_all_parameters(case: Case) -> None:
    found = []
    for path in ("cpu", "eager"):
        with kernels.using(path):
            module = case.randomised(case.fit(8), init="identity")
            x = random_map(2, case.fit(8), 5, 6).requires_grad_()
            y = module(x)
            (gx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            (y.sum() + gx.square().sum()).backward()
            found.append([x.grad, *(p.grad for p in module.parameters())])
    for ours, eager in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, **TOLERANCES[torch.float64])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # in torch's own jvp
@every_fused_default
def test_functions_of_it_can_be_transformed(case: Case) -> None:
    module = case.randomised(case.fit(8), init="identity")
    x, direction = random_map(3, 2, case.fit(8), 5, 4), random_map(2, case.fit(8), 5, 4, seed=1)
    each = torch.stack([module(one) for one in x])
    torch.testing.assert_close(torch.func.vmap(module)(x), each, **TOLERANCES[torch.float64])
    _, slope = torch.func.jvp(module, (x[0],), (direction,))
    (transposed,) = torch.func.vjp(module, x[0])[1](direction)
    torch.testing.assert_close((slope * direction).sum(), (transposed * direction).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], direction)
        tangent = torch.autograd.forward_ad.unpack_dual(module(dual)).tangent
    torch.testing.assert_close(tangent, slope)


@every_fused_default
def test_a_graph_that_is_kept_gives_the_same_gradients_again(case: Case) -> None:
    module = case.randomised(case.fit(16), init="identity").train()
    x = random_map(2, case.fit(16), 6, 5).requires_grad_()
    y = module(x)
    weighted = (y * random_map(*y.shape, seed=1)).sum()
    inputs = [x, *module.parameters()]
    whole = torch.autograd.grad(weighted, inputs, retain_graph=True)
    if len(inputs) > 1:
        parts = torch.autograd.grad(weighted, inputs[1:], retain_graph=True)
        assert all(map(torch.equal, parts, whole[1:]))
    alone = torch.autograd.grad(weighted, x, retain_graph=True)
    assert torch.equal(alone[0], whole[0])
    again = torch.autograd.grad(weighted, inputs)
    assert all(map(torch.equal, again, whole))


@every_fused_default
@pytest.mark.parametrize("frozen", ["input", "parameters"])
def test_what_is_frozen_gets_no_gradient_and_changes_none(case: Case, frozen: str) -> None:
    module = case.randomised(case.fit(16), init="identity")
    x = random_map(2, case.fit(16), 6, 5)
    expected = results(module, x, torch.ones_like(x))
    if frozen == "input":
        module(x).sum().backward()
        found = {name: p.grad for name, p in module.named_parameters()}
    else:
        x.requires_grad_()
        module.requires_grad_(False)(x).sum().backward()
        found = {"input": x.grad}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCES[torch.float64])


@every_fused_default
@pytest.mark.parametrize("reentrant", [False, True])
def test_it_can_be_checkpointed(case: Case, reentrant: bool) -> None:
    module = case.randomised(case.fit(16), init="identity")
    x = random_map(2, case.fit(16), 6, 5).requires_grad_()
    expected = results(module, x, torch.ones_like(x))
    with warnings.catch_warnings():  # the reentrant form is discouraged
        warnings.simplefilter("ignore")
        torch.utils.checkpoint.checkpoint(module, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(x.grad, expected["input"])
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("case", GATES, ids=lambda case: case.id)
@pytest.mark.parametrize("frozen", [False, True])
@both_formats
def test_it_keeps_its_map_and_little_else(
    case: Case, frozen: bool, layout: torch.memory_format
) -> None:
    C = case.fit(256)
    x = torch.randn(2, C, 56, 56).to(memory_format=layout).requires_grad_(not frozen)
    module = case.create(C, init="identity").train()
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    assert y.requires_grad or frozen
    assert sum(kept.values()) <= 1.1 * x.untyped_storage().nbytes()


@every_fused_default
def test_the_compiler_sees_the_product_and_calls_kernels_for_the_rest(case: Case) -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    module = case.randomised(case.fit(16), init="identity")
    x = random_map(2, case.fit(16), 7, 5)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), module(x), **TOLERANCES[torch.float64])
    called = {str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"}
    assert not any("combine" in name or "Weigh" in name for name in called)
    assert any(
        name.startswith(("<built-in function mul", "<built-in function add")) for name in called
    )


@every_fused_default
def test_it_compiles_with_its_gradients(case: Case) -> None:
    torch.compiler.reset()
    module = case.randomised(case.fit(16), init="identity").train()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    x, grad = (random_map(2, case.fit(16), 7, 5, seed=s) for s in (0, 1))
    expected = results(module, x, grad)
    x = x.requires_grad_()
    compiled(x).backward(grad)
    torch.testing.assert_close(x.grad, expected["input"], **TOLERANCES[torch.float64])
    for name, parameter in compiled._orig_mod.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **TOLERANCES[torch.float64])


@every_fused_default
def test_exported_programs_know_no_kernels(case: Case) -> None:
    module, x = case.create(case.fit(16)).eval(), torch.randn(2, case.fit(16), 7, 5)
    program = torch.export.export(module, (x,))
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not any("foveate" in name for name in targets)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_fused_default
def test_autocast_is_obeyed(case: Case, dtype: torch.dtype) -> None:
    module = case.randomised(case.fit(16), dtype=torch.float32)
    x = random_map(2, case.fit(16), 7, 5, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = module(x)
    assert y.dtype == torch.float32
    y.sum().backward()
    with kernels.using("eager"), torch.autocast("cpu", dtype):
        torch.testing.assert_close(y, module(x), **TOLERANCES[dtype])
    assert x.grad.isfinite().all()


@both_formats
def test_the_first_of_equal_maxima_gets_the_gradient(layout: torch.memory_format) -> None:
    module = foveate.create("cbam", 8).double()
    x = torch.zeros(2, 8, 5, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    found, expected = (call(module, x, torch.ones_like(x)) for call in (results, eager_results))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.id)
def test_layers_can_be_pruned(case: Case) -> None:
    module = case.randomised(case.fit(16), init="identity")
    x = random_map(2, case.fit(16), 7, 5)
    pruned = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    for layer in pruned:
        prune.random_unstructured(layer, "weight", 0.5)
        layer.weight_orig.data.mul_(1.5)  # what a step of training does
    found = module(x)
    for layer in pruned:
        prune.remove(layer, "weight")
    torch.testing.assert_close(found, module(x), **TOLERANCES[torch.float64])
