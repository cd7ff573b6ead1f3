"""Operations against their literal definitions, and their registration with PyTorch."""

import importlib

import pytest
import torch
from torch import Tensor

from foveate import ops

additive = importlib.import_module("foveate.ops.additive_attention")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture
def additive_inputs() -> tuple[Tensor, ...]:
    shapes = [(2, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 6), (3, 4)]
    return tuple(random(*s, seed=i).requires_grad_() for i, s in enumerate(shapes))


@pytest.mark.parametrize("chunk", [1, 2 * 3 * 5 * 4 * 3, 1 << 20])
def test_additive_attention_does_not_depend_on_its_chunks(
    additive_inputs: tuple[Tensor, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v, w = additive_inputs
    scores = ((q[:, :, :, None] + k[:, :, None]).tanh() * w[:, None, None]).sum(4)
    expected = scores.softmax(3) @ v
    grad = random(*expected.shape, seed=9)
    expected_grads = torch.autograd.grad(expected, additive_inputs, grad)
    monkeypatch.setattr(additive, "CHUNK_ELEMENTS", chunk)
    actual = ops.additive_attention(q, k, v, w)
    torch.testing.assert_close(actual, expected)
    for one, other in zip(
        torch.autograd.grad(actual, additive_inputs, grad), expected_grads, strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_additive_attention_is_registered_as_pytorch_wants(
    additive_inputs: tuple[Tensor, ...], dtype: torch.dtype
) -> None:
    inputs = [one.detach().to(dtype).requires_grad_() for one in additive_inputs]
    output = torch.ops.foveate.additive_attention.default
    torch.library.opcheck(output, inputs, rtol=1e-2, atol=1e-2)
    backward = torch.ops.foveate.additive_attention_backward.default
    q, k, v, w = (one.detach() for one in inputs)
    torch.library.opcheck(backward, (torch.ones_like(output(q, k, v, w)), q, k, v, w))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (6, 9), (40, 3)])
def test_rectified_attention_compares_all_pairs(n: int, m: int) -> None:
    a, b, v = random(2, n), random(2, m, seed=1), random(2, m, 4, seed=2)
    pairs = (a[:, :, None] + b[:, None]).relu()
    torch.testing.assert_close(ops.rectified_attention(a, b, v), pairs @ v / m)


def test_rectified_attention_takes_no_key_or_all() -> None:
    b, v = random(1, 6), random(1, 6, 2, seed=1)
    a = torch.tensor([[-100.0, 100.0]], dtype=torch.float64)
    y = ops.rectified_attention(a, b, v)
    assert (y[0, 0] == 0).all()
    torch.testing.assert_close(y[0, 1], ((100 + b[0])[:, None] * v[0]).mean(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rectified_attention_sums_in_float32(dtype: torch.dtype) -> None:
    n = 4096
    a, b = torch.ones(1, n, dtype=dtype), torch.ones(1, n, dtype=dtype)
    y = ops.rectified_attention(a, b, torch.full((1, n, 1), 20.0, dtype=dtype))
    assert y.dtype == dtype
    assert (y == 40).all()


def test_linear_attention_stays_inside_float16() -> None:
    tokens = torch.full((1, 1, 4096, 4), 8.0, dtype=torch.float16)
    y = ops.linear_attention(tokens / 8, tokens, tokens)
    assert (y == 4 * 8 * 8).all()


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_tokens_are_positions_and_come_back(heads: int, memory_format: torch.memory_format) -> None:
    x = random(2, 8, 3, 5).contiguous(memory_format=memory_format)
    tokens = ops.to_tokens(x, heads)
    assert tokens.shape == (2, heads, 15, 8 // heads)
    assert torch.equal(tokens[1, heads - 1, 7, -1], x[1, 7, 1, 2])
    assert torch.equal(ops.from_tokens(tokens, like=x), x)


def test_scale_keeps_the_dtype_of_the_map() -> None:
    x, gate = random(2, 3, 4, 5, dtype=torch.bfloat16), random(2, 3, 1, 1)
    y = ops.scale(x, gate, gate)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), x.double() * gate * gate, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 13), (28, 30)])
@pytest.mark.parametrize("cells", [(1, 1), (2, 3), (6, 6), (7, 12)])
def test_exported_cell_means_are_those_of_adaptive_pooling(
    size: tuple[int, int], cells: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    exported = importlib.import_module("foveate.ops.grid").exported_cell_means(x, cells)
    torch.testing.assert_close(exported, ops.cell_means(x, cells))
    assert exported.shape == (2, 3, *cells)


def test_cells_cover_a_length() -> None:
    covered = {length: ops.cells_across(length, 4) for length in (1, 4, 5, 8, 9)}
    assert covered == {1: 1, 4: 1, 5: 2, 8: 2, 9: 3}
