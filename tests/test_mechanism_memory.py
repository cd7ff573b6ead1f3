"""Attention from every position to every other holds no array of all pairs."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CASES, Case
from foveate.ops.additive_attention import CHUNK_ELEMENTS, chunked_backward, chunked_forward


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


def largest(case: Case, side: int, dtype: torch.dtype = torch.float32) -> int:
    """Elements of the largest tensor of one forward and backward pass."""
    module = case.create(case.fit(8), init="identity").to(dtype)
    x = torch.randn(1, case.fit(8), side, side, dtype=dtype, requires_grad=True)
    with LargestTensor() as recorded:
        module(x).sum().backward()
    return recorded.numel


every_all_pairs_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.all_pairs], ids=lambda case: case.id
)


@every_all_pairs_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_grows_with_the_number_of_positions(case: Case, dtype: torch.dtype) -> None:
    assert largest(case, 32, dtype) <= 4.5 * largest(case, 16, dtype)


@every_all_pairs_case
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_holds_no_pairs_on_channels_last_maps(case: Case, channels: int) -> None:
    channels = case.fit(channels)
    module = case.create(channels).to(memory_format=torch.channels_last)
    x = torch.randn(1, channels, 24, 24).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    with LargestTensor() as recorded:
        module(x).sum().backward()
    assert recorded.numel < 576 * 576 / 4


def test_criss_cross_holds_one_score_for_each_position_of_row_and_column() -> None:
    case = next(case for case in CASES if case.key == "criss_cross")
    assert largest(case, 24) == 24 * 24 * (24 + 24)


def test_additive_attention_holds_one_chunk() -> None:
    heads, n, width = 2, 2048, 8
    q, k, v, grad = (torch.randn(1, heads, n, width) for _ in range(4))
    weight = torch.randn(heads, width)
    with LargestTensor() as recorded:
        chunked_forward(q, k, v, weight)
        chunked_backward(grad, q, k, v, weight)
    assert recorded.numel <= CHUNK_ELEMENTS
    assert heads * n * n * width > 16 * CHUNK_ELEMENTS


def test_the_recorder_sees_the_pairs_of_a_quadratic_computation() -> None:
    tokens = torch.randn(1, 1, 256, 8, requires_grad=True)
    with LargestTensor() as recorded:
        (tokens @ tokens.mT).softmax(3).matmul(tokens).sum().backward()
    assert recorded.numel == 256 * 256
