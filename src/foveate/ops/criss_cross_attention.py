"""Attention of each position to its own row and column."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate import kernels

LEAST = 1 << 13
"""Elements of a map below which the kernel does not pay."""


def criss_cross_attention(qkv: Tensor, dim: int) -> Tensor:
    r"""For each position the mean of the values in its row and column, weighted by likeness.

    .. math:: y_i = \sum_{j \in R_i \cup C_i} \mathrm{softmax}_j(q_i^\top k_j)\,v_j

    One softmax spans row and column, :math:`H + W - 1` positions: the vertical scores of the
    position itself are masked, as it is already in its row. Kernels, where they serve, hold the
    scores of one line at a time and compute them anew backward; else ``HW (H + W)`` are held.

    Args:
        qkv: Queries, keys and values one after the other, ``(B, D + D + V, H, W)``.
        dim: Width ``D`` of queries and keys.

    Returns:
        Map ``(B, V, H, W)``.
    """
    if criss_cross_served(qkv):
        return (_op if torch.compiler.is_compiling() else _Eager.apply)(qkv, dim)[0]
    return _by_definition(qkv, dim)


def criss_cross_served(x: Tensor) -> bool:
    """Whether kernels serve such a map, which they read fastest where channels are adjacent."""
    if x.device.type != "cpu":
        return False
    if torch.compiler.is_compiling():
        return kernels.compiles(x)
    return kernels.pick(x, least=LEAST) is torch.ops.foveate_cpu


def _split(qkv: Tensor, dim: int) -> tuple[Tensor, ...]:
    return qkv.split([dim, dim, qkv.shape[1] - 2 * dim], dim=1)


def criss_cross_spread(weights: Tensor, qkv: Tensor, dim: int) -> Tensor:
    """Weights ``(B, P, H, W)`` of positions, handed on to those that these attend to."""
    vertical, horizontal = _weights(qkv, dim)
    to_column = torch.einsum("bphw,bhwg->bpgw", weights, vertical)
    return to_column + torch.einsum("bphw,bhwg->bphg", weights, horizontal)


def _weights(qkv: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Of the column ``(B, H, W, H)`` and of the row ``(B, H, W, W)``."""
    query, key, value = _split(qkv, dim)
    H, W = qkv.shape[2:]
    vertical = torch.einsum("bdhw,bdgw->bhwg", query, key)  # (B, H, W, H)
    horizontal = torch.einsum("bdhw,bdhg->bhwg", query, key)  # (B, H, W, W)
    itself = torch.eye(H, dtype=torch.bool, device=qkv.device).unsqueeze(1)  # (H, 1, H)
    scores = torch.cat([vertical.masked_fill(itself, -torch.inf), horizontal], dim=3)
    vertical, horizontal = scores.softmax(3).to(value.dtype).split([H, W], dim=3)
    return vertical, horizontal


def _by_definition(qkv: Tensor, dim: int) -> Tensor:
    value = qkv[:, 2 * dim :]
    vertical, horizontal = _weights(qkv, dim)
    from_column = torch.einsum("bhwg,bvgw->bvhw", vertical, value)
    from_row = torch.einsum("bhwg,bvhg->bvhw", horizontal, value)
    return from_column + from_row


def _room(like: Tensor, shape: Sequence[int]) -> Tensor:
    """For numbers in at least float32, with adjacent channels."""
    wide = torch.promote_types(like.dtype, torch.float32)
    layout = torch.channels_last
    return torch.empty(shape, dtype=wide, device=like.device, memory_format=layout)


def _rooms(qkv: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """For the output, and for the logarithms of the sums."""
    B, C, H, W = qkv.shape
    return _room(qkv, (B, C - 2 * dim, H, W)), _room(qkv, (B, 1, H, W))


def _forward(qkv: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    out, lse = _rooms(qkv, dim)
    torch.ops.foveate_cpu.expect(out)
    peak = torch.empty_like(lse)
    torch.ops.foveate_cpu.criss_cross_attention(*_split(qkv, dim), out, peak, lse)
    return out.to(qkv.dtype), lse


def _backward(grad: Tensor, qkv: Tensor, dim: int, lse: Tensor) -> Tensor:
    grad = grad.contiguous(memory_format=torch.channels_last)
    grads = _room(qkv, qkv.shape)
    torch.ops.foveate_cpu.expect(grads)
    torch.ops.foveate_cpu.criss_cross_attention_backward(
        grad, *_split(qkv, dim), lse, *_split(grads, dim), torch.empty_like(lse)
    )
    return grads.to(qkv.dtype)


def _backward_in_place(grad: Tensor, qkv: Tensor, dim: int, lse: Tensor) -> Tensor:
    """The gradients in the place of what they are the gradients of, which is lost."""
    if torch.promote_types(qkv.dtype, torch.float32) != qkv.dtype:
        return _backward(grad, qkv, dim, lse)  # sums need a wider dtype
    B, _, H, W = qkv.shape
    query, key, value = _split(qkv, dim)
    narrow = _room(qkv, (B, 2 * dim, H, W))
    torch.ops.foveate_cpu.criss_cross_attention_backward(
        grad, query, key, value, lse, *narrow.split(dim, dim=1), value, torch.empty_like(lse)
    )
    qkv[:, : 2 * dim] = narrow
    return qkv


_op = torch.library.custom_op("foveate::criss_cross_attention", _forward, mutates_args=())
_backward_op = torch.library.custom_op(
    "foveate::criss_cross_attention_backward", _backward, mutates_args=()
)


@_op.register_fake
def _(qkv: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    out, lse = _rooms(qkv, dim)
    return out.to(qkv.dtype), lse


@_backward_op.register_fake
def _(grad: Tensor, qkv: Tensor, dim: int, lse: Tensor) -> Tensor:
    return _room(qkv, qkv.shape).to(qkv.dtype)


def _save(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.dim = inputs
    ctx.save_for_backward(qkv, output[1])


def _differentiate(
    ctx: Any, grad: Tensor, _: Tensor, run: Callable[..., Tensor] = _backward
) -> tuple[Tensor, None]:
    qkv, lse = ctx.saved_tensors
    if torch.is_grad_enabled():
        held = _by_definition(qkv, ctx.dim)
        return torch.autograd.grad(held, qkv, grad, create_graph=True)[0], None
    return run(grad, qkv, ctx.dim, lse), None


_op.register_autograd(partial(_differentiate, run=_backward_op), setup_context=_save)


class _Eager(torch.autograd.Function):
    """The same outside of compiled programs, where the operator would load the compiler."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)
