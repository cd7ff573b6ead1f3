"""Softmax attention between positions, in memory that grows with their number alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate import kernels

TILE = 128
"""Keys that the kernel takes at a time, backward."""
LEAST = 1 << 11
"""Elements of the queries below which the kernel does not pay."""

Tensors = tuple[Tensor, Tensor, Tensor]


def position_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    r"""For each query the mean of the values, weighted by its likeness to their keys.

    .. math:: y_i = \sum_j \mathrm{softmax}_j(s\,q_i^\top k_j)\,v_j

    No pair is held, forward or backward; only a second derivative, where kernels serve, forms all
    pairs.

    Args:
        query: Tokens ``(B, heads, N, D)``.
        key: Tokens ``(B, heads, M, D)``.
        value: Tokens ``(B, heads, M, V)``.
        scale: Factor :math:`s` of the scores.

    Returns:
        Tokens ``(B, heads, N, V)``.
    """
    if _served(query, key, value):
        run = _op if torch.compiler.is_compiling() else _Eager.apply
        return run(query, key, value, scale)[0]
    return _by_pytorch(query, key, value, scale)


def _served(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if query.device.type != "cpu" or not query.dtype == key.dtype == value.dtype:
        return False
    if torch.compiler.is_compiling():
        return kernels.compiles(query)
    return kernels.pick(query, least=LEAST) is torch.ops.foveate_cpu


def _by_pytorch(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """By PyTorch's kernels, in the widths that those want which hold no pairs.

    Others silently take a path that holds all. Zeros are added, which change no product.
    """
    dim, value_dim = query.shape[-1], value.shape[-1]
    if query.device.type == "cuda":  # multiples of 8
        width, value_width = -(-dim // 8) * 8, -(-value_dim // 8) * 8
    else:  # the same for all, and not 1, whose stride says nothing
        width = value_width = max(dim, value_dim, 2)
    query, key = (F.pad(t, (0, width - dim)).contiguous() for t in (query, key))
    value = F.pad(value, (0, value_width - value_dim)).contiguous()
    out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return out[..., :value_dim]


def _by_definition(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return (query * scale @ key.mT).softmax(3) @ value


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _room(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """For the output, laid out as the values are, and for the logarithms of the sums."""
    B, heads, N = query.shape[:3]
    V = value.shape[3]
    # Not a view, which may not be changed in place where it is one of two outputs.
    if value.stride(2) == 1 and value.stride(3) != 1:
        strides = (heads * V * N, V * N, 1, N)
    else:
        strides = (N * heads * V, V, heads * V, 1)
    out = value.new_empty_strided((B, heads, N, V), strides)
    return out, query.new_empty((B, heads, N), dtype=_wide(query))


def _forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = _room(query, value)
    torch.ops.foveate_cpu.position_attention(query, key, value, scale, out, lse)
    return out, lse


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Tensors:
    grad_query = torch.zeros_like(query, dtype=lse.dtype)
    grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    size = max(1, query.shape[2] * TILE)
    # Enough for all threads, as far as they take no more than the values do.
    tiles = min(4 * torch.get_num_threads(), max(1 << 20, value.numel()) // size)
    slopes = query.new_empty((max(1, tiles), size), dtype=lse.dtype)
    torch.ops.foveate_cpu.position_attention_backward(
        *(grad, query, key, value, out, lse, scale),
        *(grad_query, grad_key, grad_value, torch.empty_like(lse), slopes),
    )
    return grad_query.to(query.dtype), grad_key, grad_value


_op = torch.library.custom_op("foveate::position_attention", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "foveate::position_attention_backward", _backward, mutates_args=()
)


@_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _room(query, value)


@_backward_op.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> Tensors:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(
    ctx: Any, grad: Tensor, _: Tensor, run: Callable[..., Tensors] = _backward
) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse = ctx.saved_tensors
    if torch.is_grad_enabled():
        pairs = _by_definition(query, key, value, ctx.scale)
        return *torch.autograd.grad(pairs, (query, key, value), grad, create_graph=True), None
    return *run(grad, query, key, value, out, lse, ctx.scale), None


_op.register_autograd(partial(_differentiate, run=_backward_op), setup_context=_save)


class _Eager(torch.autograd.Function):
    """The same outside of compiled programs, where the operator would load the compiler."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)
