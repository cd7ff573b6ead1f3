"""What every mechanism keeps, whatever it computes."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import foveate
from cases import CASES, DEFAULTS, Case
from tolerances import TOLERANCES, assert_close

WIDE = 128
"""Channels that leave a bottleneck several units: a single one may be cut off by its ReLU."""
SHAPES = [(2, 16, 8, 8), (1, 3, 7, 5), (2, 1, 1, 1), (3, 40, 1, 9), (2, 64, 14, 10)]
INITS = ["paper", "identity"]


def has_batch_norm(case: Case) -> bool:
    with torch.device("meta"):
        return any(
            isinstance(child, nn.BatchNorm2d) for child in case.create(case.fit(1)).modules()
        )


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_default = pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.id)
every_variant = pytest.mark.parametrize(
    "case", [case for case in CASES if case.options], ids=lambda case: case.id
)
NORMALISED = [case for case in CASES if has_batch_norm(case)]
every_normalised = pytest.mark.parametrize("case", NORMALISED, ids=lambda case: case.id)
both_inits = pytest.mark.parametrize("init", INITS)


def random_map(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def fitted(case: Case, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with channels that the mechanism takes."""
    return (shape[0], case.fit(shape[1]), *shape[2:])


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a random weighting of the output, with respect to all parameters."""
    y = module(x)
    named = dict(module.named_parameters())
    if not named:
        return {}
    weighted = (y * random_map(*y.shape, seed=1)).sum()
    return dict(zip(named, torch.autograd.grad(weighted, named.values()), strict=True))


@every_case
@both_inits
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_reference(case: Case, init: str, shape: tuple[int, ...]) -> None:
    shape = fitted(case, shape)
    module, x = case.randomised(shape[1], init=init), random_map(*shape)
    assert_close(module(x), case.reference(x, module.state_dict(), **case.options))


@every_normalised
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_reference_in_training(case: Case, shape: tuple[int, ...]) -> None:
    shape = fitted(case, shape)
    module, x = case.randomised(shape[1], init="identity").train(), random_map(*shape)
    weights = copy.deepcopy(module.state_dict())
    assert_close(module(x), case.reference(x, weights, **case.options, training=True))


@pytest.mark.parametrize(
    ("case", "training"),
    [(case, False) for case in CASES] + [(case, True) for case in NORMALISED],
    ids=lambda value: getattr(value, "id", None),
)
def test_gradients_are_those_of_finite_differences(case: Case, training: bool) -> None:
    module = case.randomised(case.fit(4), init="identity").train(training)
    names = [name for name, _ in module.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        weights = {**dict(zip(names, parameters, strict=True)), **buffers}
        return torch.func.functional_call(module, weights, x)

    x = random_map(2, case.fit(4), 2, 3).requires_grad_()
    inputs = (x, *module.parameters())
    many = sum(tensor.numel() for tensor in inputs) > 400
    assert torch.autograd.gradcheck(function, inputs, fast_mode=many)


@every_case
@both_inits
@pytest.mark.parametrize("training", [False, True])
def test_every_parameter_matters(case: Case, init: str, training: bool) -> None:
    module, x = case.randomised(case.fit(WIDE), init=init), random_map(3, case.fit(WIDE), 6, 5)
    module.train(training)
    constant = {*case.constant, *(case.constant_in_training if training else ())}
    assert constant <= dict(module.named_parameters()).keys()
    for name, gradient in gradients(module, x).items():
        if name not in constant:
            assert gradient.abs().max() > 1e-6, name
    before = module(x)
    for name in constant:
        parameter = module.get_parameter(name)
        with torch.no_grad():
            parameter.add_(random_map(*parameter.shape))
    torch.testing.assert_close(module(x), before, rtol=0, atol=1e-10)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_identity_form_changes_no_bit(case: Case, dtype: torch.dtype, training: bool) -> None:
    module = case.create(case.fit(16), init="identity").to(dtype).train(training)
    x = random_map(2, case.fit(16), 7, 5, dtype=dtype)
    assert torch.equal(module(x), x)


@every_case
def test_identity_form_moves_every_parameter_in_two_steps(case: Case) -> None:
    torch.manual_seed(0)
    module = case.create(case.fit(WIDE), init="identity")
    before = copy.deepcopy(dict(module.named_parameters()))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(2):
        x = random_map(4, case.fit(WIDE), 6, 5, dtype=torch.float32, seed=step)
        optimizer.zero_grad()
        (module(x) * random_map(*x.shape, dtype=torch.float32, seed=step + 2)).sum().backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        if name not in (*case.constant, *case.constant_in_training):
            assert not torch.equal(parameter, before[name]), name


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_dtypes_are_kept_and_close_to_float64(case: Case, dtype: torch.dtype) -> None:
    narrow, x = (
        case.randomised(case.fit(16), init="identity", dtype=dtype),
        random_map(2, case.fit(16), 7, 5),
    )
    wide = copy.deepcopy(narrow).double()
    x = x.to(dtype)
    y, expected = narrow(x), wide(x.double())
    assert y.dtype == dtype
    largest = float(expected.detach().abs().max()) if case.cancels else 1.0
    assert_close(y / largest, expected / largest)


@every_case
def test_autocast_keeps_the_dtype_of_the_input(case: Case) -> None:
    module = case.randomised(case.fit(16), init="identity", dtype=torch.float32)
    x = random_map(2, case.fit(16), 7, 5, dtype=torch.float32)
    expected = copy.deepcopy(module).double()(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        narrow = module(x.bfloat16())
    y.sum().backward()
    assert (y.dtype, narrow.dtype) == (torch.float32, torch.bfloat16)
    largest = float(expected.detach().abs().max()) if case.cancels else 1.0
    torch.testing.assert_close(
        y.double() / largest, expected / largest, **TOLERANCES[torch.bfloat16]
    )
    assert all(p.grad.isfinite().all() for p in module.parameters())


@every_case
def test_memory_format_is_kept(case: Case) -> None:
    module, x = case.randomised(case.fit(16), init="identity"), random_map(2, case.fit(16), 7, 5)
    y = module(x)
    last = module(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y, **TOLERANCES[torch.float64])


@every_case
@both_inits
@pytest.mark.parametrize("side", [1, 3])
def test_trains_on_a_batch_of_one(case: Case, init: str, side: int) -> None:
    module, x = case.create(case.fit(8), init=init).double(), random_map(1, case.fit(8), side, side)
    x.requires_grad_()
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@every_case
@pytest.mark.parametrize("training", [False, True])
def test_an_empty_map_is_no_trap(case: Case, training: bool) -> None:
    module = case.randomised(case.fit(16), init="identity").train(training)
    x = torch.zeros(2, case.fit(16), 5, 4, dtype=torch.float64, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(t.grad.isfinite().all() for t in (x, *module.parameters()))


@every_case
@pytest.mark.parametrize("channels", [1, 3, 17])
def test_takes_any_number_of_channels(case: Case, channels: int) -> None:
    channels *= case.multiple
    x = random_map(2, channels, 5, 4)
    y = case.randomised(channels)(x)
    assert y.shape == x.shape
    assert not torch.equal(y, x)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.multiple > 1], ids=lambda case: case.id
)
def test_other_numbers_of_channels_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=f"={case.multiple + 1}"):
        case.create(case.multiple + 1)


@every_case
def test_has_the_parameters_of_the_paper(case: Case) -> None:
    for channels in (1, 3, 16, 40, 64, 512):
        with torch.device("meta"):
            module = case.create(case.fit(channels))
        expected = case.parameters(case.fit(channels), **case.options)
        assert sum(parameter.numel() for parameter in module.parameters()) == expected


@every_case
def test_builds_without_memory(case: Case) -> None:
    module = case.randomised(case.fit(16), init="identity")
    with torch.device("meta"):
        empty = case.create(case.fit(16), init="identity").double()
        assert empty(torch.empty(2, case.fit(16), 7, 5, dtype=torch.float64)).shape == (
            2,
            case.fit(16),
            7,
            5,
        )
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    filled = empty.to_empty(device="cpu").eval()
    filled.load_state_dict(module.state_dict())
    x = random_map(2, case.fit(16), 7, 5)
    assert torch.equal(filled(x), module(x))


@every_case
@both_inits
def test_copies_are_the_same_module(case: Case, init: str) -> None:
    module, x = case.randomised(case.fit(16), init=init), random_map(2, case.fit(16), 7, 5)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = case.create(case.fit(16), init=init).double().eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(twin(x), module(x))


@every_case
@both_inits
def test_repr_builds_it_again(case: Case, init: str) -> None:
    module = case.create(case.fit(16), init=init)
    again = eval(repr(module), vars(foveate.mechanisms))
    assert repr(again) == repr(module)
    assert {**again.settings(), "init": again.init} == {**module.settings(), "init": init}
    again.load_state_dict(module.state_dict())
    for name, value in case.options.items():
        assert module.settings()[name] == value


@every_case
def test_one_image_does_not_see_another(case: Case) -> None:
    module, x = case.randomised(case.fit(16), init="identity"), random_map(3, case.fit(16), 7, 5)
    alone = torch.cat([module(image) for image in x.split(1)])
    torch.testing.assert_close(module(x), alone, **TOLERANCES[torch.float64])


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.transposed is not None], ids=lambda case: case.id
)
def test_rows_and_columns_are_treated_alike(case: Case) -> None:
    module, x = case.randomised(case.fit(16)), random_map(2, case.fit(16), 7, 5)
    twin = copy.deepcopy(module)
    twin.load_state_dict(case.transposed(module.state_dict()))
    torch.testing.assert_close(twin(x.mT).mT, module(x), **TOLERANCES[torch.float64])


@every_case
def test_maps_have_their_names_and_shapes(case: Case) -> None:
    module, x = case.randomised(case.fit(16), init="identity"), random_map(2, case.fit(16), 7, 5)
    sizes = {"B": 2, "C": case.fit(16), "H": 7, "W": 5}
    shapes = {name: tuple(one.shape) for name, one in module.maps(x).items()}
    assert shapes == {
        name: tuple(sizes.get(letter) or int(letter) for letter in letters)
        for name, letters in case.maps.items()
    }


@every_variant  # the defaults below, with their gradients
def test_compiles_to_one_graph(case: Case) -> None:
    torch.compiler.reset()
    module, x = case.randomised(case.fit(16), init="identity"), random_map(2, case.fit(16), 7, 5)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), module(x), **TOLERANCES[torch.float64])


@every_default
def test_compiles_with_its_gradients(case: Case) -> None:
    torch.compiler.reset()
    module, x = case.randomised(case.fit(16), init="identity"), random_map(2, case.fit(16), 7, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), **TOLERANCES[torch.float64])
    expected = gradients(module, x)
    for name, gradient in gradients(compiled, x).items():
        torch.testing.assert_close(
            gradient, expected[name.removeprefix("_orig_mod.")], **TOLERANCES[torch.float64]
        )


def test_compiles_to_machine_code() -> None:
    torch.compiler.reset()
    (case,) = (case for case in DEFAULTS if case.key == "se")
    module, x = case.randomised(case.fit(16), init="identity"), random_map(2, case.fit(16), 7, 5)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x), **TOLERANCES[torch.float64])


@every_variant  # the defaults where they are exported to ONNX, from the same graph
def test_exports_with_any_batch_and_size(case: Case) -> None:
    def image(batch: int, height: int, width: int) -> Tensor:
        return random_map(batch, case.fit(16), height + case.least, width + case.least)

    module = case.randomised(case.fit(16), init="identity")
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(module, (image(2, 7, 5),), dynamic_shapes=(sizes,))
    exported = program.module()
    # Where a mechanism halves the map, torch before 2.12 exports for sides of one parity.
    halves = {"sub_sample", "extent"} & case.options.keys()
    old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)
    others = ((3, 9, 9), (5, 11, 7)) if halves and old else ((3, 6, 9), (5, 11, 4))
    for x in (image(*shape) for shape in others):
        torch.testing.assert_close(exported(x), module(x), **TOLERANCES[torch.float64])
