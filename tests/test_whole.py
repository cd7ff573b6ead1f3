"""Mechanisms that one kernel computes whole, against themselves in plain operations."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn.utils import parametrizations, prune

import foveate
from cases import CASES, Case
from foveate import kernels
from test_kernel_ops import values

KERNELS = {"se": "squeeze", "eca": "neighbours", "cbam": "cbam"}


def form(key: str, **options: object) -> Case:
    return replace(next(case for case in CASES if case.key == key), options=options)


FORMS = [
    *(form("se"), form("se", bias=False, reduction=3)),
    *(form("eca"), form("eca", kernel_size=7)),
    *(form("cbam"), form("cbam", norm=False, kernel_size=3)),
    form("cbam", kernel_size=9, reduction=2),
]
SHAPES = [
    *((2, 64, 14, 10), (3, 40, 9, 13), (1, 8, 33, 17), (5, 3, 1, 9), (2, 1, 1, 1)),
    *((4, 96, 7, 7), (1, 17, 70, 65), (2, 300, 5, 4), (9, 20, 16, 16)),
]
# Of the largest magnitude in the output.
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

every_form = pytest.mark.parametrize("case", FORMS, ids=lambda c: f"{c.key} {c.options}")
every_key = pytest.mark.parametrize("key", KERNELS)
both_formats = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with kernels.using("cpu"), torch.no_grad():
        yield


def plain(module: nn.Module, x: Tensor) -> Tensor:
    with kernels.using("eager"):
        return copy.deepcopy(module).double()(x.double())


def module_of(key: str, channels: int = 16, **options: object) -> nn.Module:
    return form(key, **options).randomised(channels, dtype=torch.float32)


@every_form
@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@both_formats
def test_it_is_what_plain_operations_compute(
    case: Case,
    init: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> None:
    module = case.randomised(shape[1], init=init, dtype=dtype).to(memory_format=layout)
    x = values(*shape, dtype=dtype).to(memory_format=layout)
    found, expected = module.whole(x), plain(module, x)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=layout)
    assert (found.double() - expected).abs().max() <= BOUND[dtype] * (expected.abs().max() + 1)


@every_key
@both_formats
def test_an_image_is_the_same_in_any_batch_and_on_any_number_of_threads(
    key: str, layout: torch.memory_format
) -> None:
    module = module_of(key, 48)
    x = values(9, 48, 30, 26, dtype=torch.float32).to(memory_format=layout)
    expected, threads = module(x), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for images in (slice(0, 9), slice(2, 3), slice(4, 7), slice(1, 9)):
                assert torch.equal(module(x[images]), expected[images])
    finally:
        torch.set_num_threads(threads)


@every_key
@both_formats
def test_large_images_are_taken_one_after_another(key: str, layout: torch.memory_format) -> None:
    module = module_of(key, 64)
    for count in (1, 2, 5):
        x = values(count, 64, 160, 150, dtype=torch.float32).to(memory_format=layout)
        torch.testing.assert_close(module(x).double(), plain(module, x), rtol=1e-4, atol=1e-5)


@every_key
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
@both_formats
def test_what_is_no_number_spreads_as_it_does_in_plain_operations(
    key: str, poison: float, layout: torch.memory_format
) -> None:
    for at in ((1, 2, 3, 4), (0, 0, 0, 0), (2, 15, 6, 4)):
        module, x = module_of(key), values(3, 16, 7, 5, dtype=torch.float32)
        x[at] = poison
        if poison == float("inf"):
            x[at[0], at[1], 1, 1] = -poison  # their sum is none; the largest of them is
        x = x.to(memory_format=layout)
        with kernels.using("eager"):
            expected = module(x)
        found = module.whole(x)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.isinf(), expected.isinf())


@every_key
def test_maps_of_any_strides_are_taken(key: str) -> None:
    module, wide = module_of(key), values(2, 32, 9, 14, dtype=torch.float32)
    for x in (
        wide[:, :16],
        wide[:, ::2, ::2, ::2],
        wide[:, :16].transpose(2, 3),
        wide[:1, :16].expand(3, -1, -1, -1),
        wide[:, :16, :1, :1].expand(-1, -1, 6, 5),
        wide[:, 16:].contiguous()[:, :, 1:],
    ):
        torch.testing.assert_close(module.whole(x).double(), plain(module, x), rtol=1e-4, atol=1e-5)
    assert module(wide[:0, :16]).shape == (0, 16, 9, 14)


@every_key
@pytest.mark.parametrize("training", [False, True])
@both_formats
def test_the_schemas_say_what_is_written(
    key: str, training: bool, layout: torch.memory_format
) -> None:
    module, x = module_of(key, init="identity"), values(2, 16, 7, 5, dtype=torch.float32)
    x = x.to(memory_format=layout)
    calls = []

    class Watched:
        def __getattr__(self, name: str) -> object:
            op = getattr(torch.ops.foveate_cpu, name)
            return lambda *arguments: calls.append((op, arguments)) or op(*arguments)

    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(training):
        patch.setattr(kernels, "pick", lambda x, least: Watched())
        y = module.train(training).whole(x.requires_grad_(training))
        if training:
            y.sum().backward()
    assert len(calls) == 1 + training
    for op, arguments in calls:
        plain = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
        opcheck(op.default, tuple(plain), test_utils=("test_schema",))


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("eca", {"circular": True}),
        ("eca", {"reduction": 4}),
        ("cbam", {"pooling": "avg"}),
        ("cbam", {"pooling": "blend"}),
        ("cbam", {"order": "parallel_product"}),
        ("cbam", {"order": "spatial_first"}),
    ],
)
def test_other_forms_are_left_to_their_operations(key: str, options: dict[str, object]) -> None:
    module, x = module_of(key, **options), values(2, 16, 7, 5, dtype=torch.float32)
    assert module.whole(x) is None
    torch.testing.assert_close(module(x).double(), plain(module, x), rtol=1e-4, atol=1e-5)


def hooked(module: nn.Module) -> None:
    list(module.modules())[-1].register_forward_hook(lambda *_: None)


def pruned(module: nn.Module) -> None:
    layers = [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
    prune.random_unstructured(layers[-1], "weight", 0.5)
    layers[-1].weight_orig.mul_(1.5)


def normed(module: nn.Module) -> None:
    layers = [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
    parametrizations.weight_norm(layers[0])


def derived(module: nn.Module) -> None:
    class Own(type(module)):
        def gate(self, x: Tensor) -> dict[str, Tensor]:
            return {name: gate / 2 for name, gate in super().gate(x).items()}

    module.__class__ = Own


@every_key
@pytest.mark.parametrize("change", [hooked, pruned, normed, derived])
def test_what_is_changed_is_seen(key: str, change: object) -> None:
    module, x = module_of(key), values(2, 16, 7, 5, dtype=torch.float32)
    change(module)
    assert module.whole(x) is None
    with kernels.using("eager"):
        expected = module(x)
    torch.testing.assert_close(module(x), expected)


def test_a_normalisation_of_another_kind_is_left_to_its_operations() -> None:
    x = values(4, 16, 7, 5, dtype=torch.float32)
    module = module_of("cbam").train()
    assert module.whole(x[:1, :, :1, :1]) is None  # one value has no variance
    module.spatial_gate.bn.momentum = None
    assert module.whole(x) is None
    module.spatial_gate.bn = nn.BatchNorm2d(1)
    assert module.whole(x) is None


def steps(module: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """What two steps give and leave behind."""
    module, x = copy.deepcopy(module), x.detach().requires_grad_()
    with torch.enable_grad():
        for _ in range(2):
            module(x).backward(grad)
    found = {name: p.grad for name, p in module.named_parameters()}
    return {"x": x.grad, **found, **dict(module.named_buffers())}


@every_form
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both_formats
def test_its_gradients_are_those_of_plain_operations(
    case: Case,
    training: bool,
    init: str,
    shape: tuple[int, ...],
    layout: torch.memory_format,
) -> None:
    module = case.randomised(shape[1], init=init).train(training)
    x, grad = (values(*shape, dtype=torch.float64, seed=s).to(memory_format=layout) for s in (0, 1))
    with kernels.using("eager"):
        expected = steps(module, x, grad)
    for name, found in steps(module, x, grad).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-8, atol=1e-10, msg=name)


@every_key
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@both_formats
def test_narrow_gradients_are_close_to_wide_ones(
    key: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    module = form(key).randomised(40, init="identity", dtype=dtype).train()
    x, grad = (values(3, 40, 21, 19, dtype=dtype, seed=s) for s in (0, 1))
    x, grad = (t.to(memory_format=layout) for t in (x, grad))
    exact = steps(copy.deepcopy(module).double(), x.double(), grad.double())
    for name, found in steps(module, x, grad).items():
        error = (found.double() - exact[name].double()).norm()
        scale = exact[name].double().norm() + 1e-3
        assert error <= 16 * torch.finfo(dtype).eps * scale, name


@every_key
@both_formats
def test_a_step_is_the_same_on_any_number_of_threads(key: str, layout: torch.memory_format) -> None:
    module = module_of(key, 48).train()
    x, grad = (
        values(5, 48, 30, 26, dtype=torch.float32, seed=s).to(memory_format=layout) for s in (0, 1)
    )
    expected, threads = steps(module, x, grad), torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = steps(module, x, grad)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    finally:
        torch.set_num_threads(threads)


@both_formats
def test_the_first_of_equal_values_and_of_no_numbers_has_the_gradient(
    layout: torch.memory_format,
) -> None:
    module = form("cbam", norm=False).randomised(16)
    for x in (
        torch.zeros(2, 16, 9, 7, dtype=torch.float64),
        values(2, 16, 9, 7, dtype=torch.float64).round(),
        torch.full((2, 16, 9, 7), -2.0, dtype=torch.float64),
    ):
        x, grad = x.to(memory_format=layout), values(2, 16, 9, 7, dtype=torch.float64, seed=1)
        with kernels.using("eager"):
            expected = steps(module, x, grad)
        for name, found in steps(module, x, grad).items():
            torch.testing.assert_close(found, expected[name], msg=name)


@every_key
def test_it_stands_back_where_someone_watches(key: str) -> None:
    module, x = module_of(key), values(2, 16, 7, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.whole(x) is None
    with kernels.using("eager"):
        assert module.whole(x) is None
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert module.whole(x) is None
    handle.remove()
    assert module.whole(x) is not None
    assert module.double().whole(x) is None
    each = torch.stack([module(one.double()[None]) for one in x])
    torch.testing.assert_close(torch.func.vmap(module)(x.double()[:, None]), each)


def test_the_identity_form_changes_no_bit() -> None:
    for key in KERNELS:
        module = foveate.create(key, 32, init="identity").eval()
        x = values(3, 32, 9, 7, dtype=torch.float32)
        x[:, :, 0, 0] = -0.0
        assert torch.equal(module.whole(x).view(torch.int32), x.view(torch.int32))


@both_formats
def test_means_of_large_planes_are_precise(layout: torch.memory_format) -> None:
    module = module_of("se", 4)
    x = torch.full((1, 4, 1100, 900), 0.1).to(memory_format=layout)
    kept = torch.empty(2 * 4 + 1)
    weights = (module.fc1.weight, module.fc1.bias, module.fc2.weight, module.fc2.bias)
    backend = kernels.serving(x.device)
    backend.squeeze(x, *weights, None, None, torch.empty_like(x), kept)
    torch.testing.assert_close(kept[:4], torch.full((4,), 0.1), rtol=4e-6, atol=0)
