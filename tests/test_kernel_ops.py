"""Operations that kernels compute are those that their definitions say."""

import contextvars
import math
import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from foveate import kernels
from foveate.errors import InvalidValueError
from foveate.kernels import build
from foveate.ops.channel_dot import ChannelDot
from foveate.ops.channel_pool import ChannelPool
from foveate.ops.ledger import Ledger
from foveate.ops.reading import Reading
from foveate.ops.spatial_dot import SpatialDot
from foveate.ops.spatial_length import SpatialSquare
from foveate.ops.spatial_pool import SpatialPool
from foveate.ops.stencil import stencil
from foveate.ops.strip_pool import StripPool

FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [(2, 16, 8, 8), (1, 4, 13, 17), (2, 68, 3, 5), (3, 40, 1, 9), (1, 8, 70, 34), (2, 4, 1, 1)]
# Of the sum of all magnitudes: the accumulators are float32 for all but float64.
BOUND = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 4e-6, torch.float16: 4e-6}


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def channels(x: Tensor) -> Tensor:
    return values(*x.shape[:2], 1, 1, dtype=torch.promote_types(x.dtype, torch.float32), seed=2)


def positions(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return values(x.shape[0], 1, *x.shape[2:], dtype=wide, seed=3)


READINGS: dict[str, tuple[Reading, tuple[object, ...], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "mean": (SpatialPool(False, False), (False, False), lambda x: ()),
    "mean max": (SpatialPool(True, False), (True, False), lambda x: ()),
    "mean max spread": (SpatialPool(True, True), (True, True), lambda x: ()),
    "square": (SpatialSquare(), (), lambda x: ()),
    "channel_pool": (ChannelPool(), (), lambda x: ()),
    "channel_pool gated": (ChannelPool(), (), lambda x: (channels(x),)),
    "channel_dot": (ChannelDot(1), (1,), lambda x: (channels(x),)),
    "channel_dot groups": (ChannelDot(4), (4,), lambda x: (channels(x),)),
    "spatial_dot": (SpatialDot(), (), lambda x: (positions(x),)),
    "strip_pool": (StripPool(False), (False,), lambda x: ()),
    "strip_pool max": (StripPool(True), (True,), lambda x: ()),
}
OPERATORS = {
    "mean": "spatial_pool",
    "mean max": "spatial_pool",
    "mean max spread": "spatial_pool",
    "square": "spatial_square",
    "channel_pool gated": "channel_pool",
    "channel_dot groups": "channel_dot",
    "strip_pool max": "strip_pool",
}

every_reading = pytest.mark.parametrize("name", READINGS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
both_formats = pytest.mark.parametrize("layout", FORMATS, ids=["contiguous", "channels_last"])
every_dtype = pytest.mark.parametrize("dtype", BOUND, ids=str)


def served(x: Tensor) -> Ledger:
    return Ledger(kernels.serving(x.device), x)


@pytest.fixture(autouse=True)
def on_the_processor():
    with kernels.using("cpu"):
        yield


@every_reading
@every_shape
@both_formats
@every_dtype
def test_a_reading_is_its_definition(
    name: str, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    reading, _, small_of = READINGS[name]
    x = values(*shape, dtype=dtype).to(memory_format=layout)
    small = small_of(x)
    found = reading.run(served(x), x, *small)
    exact = reading.define(x.double(), *(t.double() for t in small))
    sums = reading.define(x.double().abs(), *(t.double().abs() for t in small))
    for ours, ideal, size in zip(found, exact, sums, strict=True):
        assert ours.shape == ideal.shape
        if ours.is_floating_point():
            error = (ours.double() - ideal).abs()
            assert (error <= BOUND[dtype] * (size.abs() + 1)).all()
        elif "gated" not in name or dtype == torch.float64:  # else products may tie
            assert torch.equal(ours, ideal)


@every_reading
@both_formats
def test_a_reading_enters_the_gradient_of_its_definition(
    name: str, layout: torch.memory_format
) -> None:
    reading, _, small_of = READINGS[name]
    x = values(2, 8, 5, 6, dtype=torch.float64).to(memory_format=layout)
    inputs = [t.clone().requires_grad_() for t in (x, *small_of(x))]
    read = reading.define(*inputs)
    grads = tuple(values(*t.shape, dtype=torch.float64, seed=i) for i, t in enumerate(read))
    smooth = [i for i, t in enumerate(read) if t.requires_grad]
    expected = torch.autograd.grad([read[i] for i in smooth], inputs, [grads[i] for i in smooth])
    detached = [t.detach() for t in inputs]
    kept = reading.keep(reading.run(served(x), *detached))
    plain = reading.gradient(detached[0], tuple(detached[1:]), kept, grads)
    ledger = served(x)
    ledger.begin(detached[0], torch.zeros_like(x))
    of_small = reading.enter(ledger, detached[0], tuple(detached[1:]), kept, grads)
    for found in (plain, (ledger.settle(), *of_small)):
        for ours, ideal in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, ideal)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # in opcheck
@pytest.mark.parametrize("name", OPERATORS)
@both_formats
def test_an_operator_is_registered_as_torch_wants_it(
    name: str, layout: torch.memory_format
) -> None:
    _, options, small_of = READINGS[name]
    x = values(2, 8, 5, 6, dtype=torch.float32).to(memory_format=layout).requires_grad_()
    small = [t.requires_grad_() for t in small_of(x.detach())]
    opcheck(getattr(torch.ops.foveate, OPERATORS[name]).default, (x, small, *options))


@both_formats
def test_the_schemas_say_what_is_written(layout: torch.memory_format) -> None:
    """Of the kernels that no mechanism has to itself."""
    x = values(2, 8, 5, 6, dtype=torch.float32).to(memory_format=layout)
    channel, y = values(2, 8, 1, 1, dtype=torch.float32), torch.empty_like(x)
    backend = kernels.pick(x)
    weigh, expect = backend.weigh_channels, backend.expect
    opcheck(weigh.default, (x, channel, y), test_utils=("test_schema",))
    opcheck(expect.default, (y,), test_utils=("test_schema",))
    weigh(x, channel, y)
    expect(y)
    torch.testing.assert_close(y, x * channel)


@every_reading
@both_formats
def test_the_first_of_equal_values_and_of_no_numbers_is_the_largest(
    name: str, layout: torch.memory_format
) -> None:
    reading, _, small_of = READINGS[name]
    for x in (
        torch.zeros(2, 8, 6, 7),
        torch.full((2, 8, 6, 7), -math.inf),
        values(2, 8, 6, 7, dtype=torch.float32).round().nan_to_num(0),
        torch.where(values(2, 8, 6, 7, dtype=torch.float32) > 1, math.nan, 0.5),
    ):
        x = x.to(memory_format=layout)
        small = tuple(torch.ones_like(t) for t in small_of(x))
        found, expected = reading.run(served(x), x, *small), reading.define(x, *small)
        for ours, ideal in zip(found, expected, strict=True):
            if not ours.is_floating_point():
                assert torch.equal(ours, ideal)
            else:
                assert torch.equal(ours.isnan(), ideal.isnan())


@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("shape", [(2, 2, 9, 11), (1, 2, 3, 2), (3, 1, 40, 33), (2, 2, 1, 20)])
def test_a_stencil_is_a_convolution(side: int, shape: tuple[int, ...]) -> None:
    sizes = (shape, (1, shape[1], side, side))
    inputs = [values(*size, dtype=torch.float64).requires_grad_() for size in sizes]
    ours, expected = stencil(*inputs), torch.nn.functional.conv2d(*inputs, padding=side // 2)
    torch.testing.assert_close(ours, expected)
    grad = values(*ours.shape, dtype=torch.float64, seed=1)
    for a, b in zip(*(torch.autograd.grad(y, inputs, grad) for y in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradgradcheck(stencil, inputs, fast_mode=True)


def test_maps_of_more_elements_than_32_bits_count_are_read_to_the_end() -> None:
    # Pages that nobody has written all share one page of zeros: no memory is needed.
    shape = (1, 65_537, 181, 182)
    count = math.prod(shape)
    assert count > 2**31
    with mmap.mmap(-1, 2 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        x = torch.frombuffer(pages, dtype=torch.bfloat16).view(shape)
        x[0, -1, -1, -1] = 4
        mean, peak, at = SpatialPool(True, False).run(served(x), x)
        assert mean[0, -1].item() == pytest.approx(4 / (181 * 182))
        assert (peak[0, -1].item(), at[0, -1].item()) == (4, 181 * 182 - 1)
        assert not peak[0, :-1].any()
        del x


@pytest.mark.parametrize("path", ["auto", "eager", "cpu"])
def test_the_environment_chooses_the_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_KERNELS", path)
    chosen, reason = in_no_block(kernels.explain, torch.device("cpu"))
    assert chosen == ("eager" if path == "eager" else "cpu")
    assert reason


def in_no_block(function: Callable[..., object], *arguments: object) -> object:
    """Call a function outside the block that chooses the path for these tests."""
    return contextvars.Context().run(function, *arguments)


def test_an_unknown_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_KERNELS", "cuda")
    with pytest.raises(InvalidValueError, match=r"FOVEATE_KERNELS .cuda.; .*eager, triton"):
        in_no_block(kernels.explain, torch.device("cpu"))
    with pytest.raises(InvalidValueError, match="path 'fast'"), kernels.using("fast"):
        pass


def test_what_is_asked_for_and_cannot_be_had_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise build.BuildError("no compiler was found")

    monkeypatch.setattr(build, "load", fail)
    with pytest.raises(InvalidValueError, match="FOVEATE_KERNELS=cpu cannot be met: no compiler"):
        kernels.explain(torch.device("cpu"))
    with kernels.using("auto"):
        assert kernels.explain(torch.device("cpu")) == ("eager", "no compiler was found")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with kernels.using("triton"), pytest.raises(InvalidValueError, match="FOVEATE_KERNELS=triton"):
        kernels.explain(torch.device("cpu"))
    with pytest.raises(InvalidValueError, match="serve cpu tensors, not cuda tensors"):
        kernels.explain(torch.device("cuda"))


def test_small_maps_are_left_to_plain_operations() -> None:
    with kernels.using("auto"):
        assert kernels.pick(torch.randn(1, 8, 4, 4)) is None
        assert kernels.pick(torch.randn(2, 64, 32, 32)) is torch.ops.foveate_cpu
    assert kernels.pick(torch.randn(1, 8, 4, 4)) is torch.ops.foveate_cpu
    for x in (
        torch.ones(1, 8, 4, 4, dtype=torch.int64),
        torch.randn(8, 4, 4),
        torch.randn(0, 8, 4, 4),
        torch.randn(1, 8, 4, 4, device="meta"),
        torch.randn(1, 8, 4, 4, dtype=torch.complex64),
    ):
        assert kernels.pick(x) is None
