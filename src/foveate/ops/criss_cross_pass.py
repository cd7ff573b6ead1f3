"""A pass of criss-cross attention: what is projected, attended and added."""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate import kernels
from foveate.ops.criss_cross_attention import (
    _backward_in_place,
    _forward,
    criss_cross_attention,
    criss_cross_served,
)
from foveate.ops.partial import partial_gradients


def criss_cross_pass(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dim: int,
    *,
    keep: bool = True,
    layout: torch.memory_format = torch.channels_last,
) -> Tensor:
    r"""A map plus, for each position, attention to its own row and column.

    Where kernels serve, training holds the map and its projection, whose place the gradients take.

    Args:
        x: Map ``(B, C, H, W)``.
        weight: Of the convolution to queries, keys and values, ``(D + D + C, C, 1, 1)``.
        bias: Of the same convolution, ``(D + D + C,)``; None without.
        dim: Width ``D`` of queries and keys.
        keep: Whether the projection is kept, or computed again for the gradient.
        layout: Of the result, where kernels serve; else it is what the operations make it.

    Returns:
        Map ``(B, C, H, W)``.
    """
    if not criss_cross_served(x):
        return _by_definition(x, weight, bias, dim)
    if torch.compiler.is_compiling() or _mixed(x, weight):
        last = x.contiguous(memory_format=torch.channels_last)
        return _by_definition(last, weight, bias, dim)
    return _Pass.apply(x, weight, bias, dim, keep, layout)


def _by_definition(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    return x + criss_cross_attention(F.conv2d(x, weight, bias), dim).to(x.dtype)


def _mixed(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution would cast, or do what its weight has it do."""
    cast = torch.is_autocast_enabled(x.device.type) or x.dtype != weight.dtype
    return cast or type(weight) is not Tensor


def _laid_out(x: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """The map in a layout, in large pages, without which such copies took several times as long."""
    if x.is_contiguous(memory_format=layout):
        return x
    y = torch.empty_like(x, memory_format=layout)
    torch.ops.foveate_cpu.expect(y)
    return y.copy_(x)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dim: int,
        keep: bool,
        layout: torch.memory_format,
    ) -> Tensor:
        last = _laid_out(x)
        qkv = F.conv2d(last, weight, bias)
        mixed, lse = _forward(qkv, dim)
        ctx.save_for_backward(x, weight, bias, lse)
        ctx.dim, ctx.kept = dim, qkv if keep else None
        return _laid_out(mixed.add_(last), layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, lse = ctx.saved_tensors
        if torch.is_grad_enabled():
            with kernels.using("eager"):
                define = partial(_by_definition, dim=ctx.dim)
                return *partial_gradients(define, (x, weight, bias), grad), None, None, None
        x = _laid_out(x)
        # What is kept is used up: the gradients take its place. Another call computes it again.
        kept, ctx.kept = ctx.kept, None
        qkv = F.conv2d(x, weight, bias) if kept is None else kept
        del kept
        grads = _backward_in_place(_laid_out(grad), qkv, ctx.dim, lse)
        to_weight = _to_weight(grads, x, weight) if ctx.needs_input_grad[1] else None
        to_bias = grads.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        del x
        to_x = F.conv2d(grads, weight.transpose(0, 1)) if ctx.needs_input_grad[0] else None
        return None if to_x is None else to_x.add_(grad), to_weight, to_bias, None, None, None


def _to_weight(grads: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight of a 1x1 convolution."""
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    found = torch.ops.aten.convolution_backward(grads, x, weight, None, *options)
    return cast(Tensor, found[1])
