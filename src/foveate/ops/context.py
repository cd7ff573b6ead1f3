"""The global context block whole, with its gradients: one kernel for each of the two passes."""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.ops.partial import partial_gradients
from foveate.ops.whole import dense, like, shared_out, whole


class ContextWeights(NamedTuple):
    """The parameters of the layers, and the strength of the identity form."""

    mask: Tensor
    mask_bias: Tensor | None
    w1: Tensor
    b1: Tensor | None
    weight: Tensor
    """Of the normalisation."""
    bias: Tensor
    w2: Tensor
    b2: Tensor | None
    strength: Tensor | None


def context(x: Tensor, weights: ContextWeights, eps: float, *, multiply: bool) -> Tensor | None:
    """The map with what its weighted mean says of each channel, where kernels do that.

    Args:
        x: The map, ``(B, C, H, W)``.
        weights: Those of the layers.
        eps: Of the normalisation.
        multiply: Whether what is said is a gate, not a summand.

    Returns:
        The new map; None where no kernel stands for the whole.
    """
    backend = whole(x, "context", *weights)
    if backend is None:
        return None
    x = dense(x)
    if torch.is_grad_enabled():
        return _Context.apply(x, eps, multiply, backend, *weights)
    y = torch.empty_like(x)
    backend.context(x, *_layers(weights, eps), multiply, y, None)
    return y


def definition(x: Tensor, *given: Any, eps: float, multiply: bool) -> Tensor:
    """The same in plain operations; ``given`` are the weights."""
    of = ContextWeights(*given)
    attention = F.conv2d(x, of.mask, of.mask_bias).flatten(2).softmax(2)  # (B, 1, H W)
    z = F.linear((x.flatten(2) * attention).sum(2), of.w1.flatten(1), of.b1)  # (B, hidden)
    z = F.layer_norm(z, z.shape[1:], of.weight.flatten(), of.bias.flatten(), eps).relu()
    z = F.linear(z, of.w2.flatten(1), of.b2)[:, :, None, None]
    if not multiply:
        return x + z
    gate = z.sigmoid()
    return x * (gate if of.strength is None else (gate - 1) * of.strength + 1)


def _layers(of: ContextWeights, eps: float) -> tuple[Any, ...]:
    return (of.mask, of.w1, of.b1, of.weight, of.bias, eps, of.w2, of.b2, of.strength)


class _Context(torch.autograd.Function):
    """Saves the map and small tensors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, multiply: bool, backend: Any, *given: Any
    ) -> Tensor:
        of = ContextWeights(*given)
        B, C, H, W = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        values = x.new_empty(B * (H * W + 2 * C + of.w1.shape[0]), dtype=wide)
        y = torch.empty_like(x)
        backend.context(x, *_layers(of, eps), multiply, y, values)
        ctx.save_for_backward(x, values, *given)
        ctx.eps, ctx.multiply, ctx.backend = eps, multiply, backend
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, *given = ctx.saved_tensors
        of = ContextWeights(*given)
        if torch.is_grad_enabled():
            plain = partial(definition, eps=ctx.eps, multiply=ctx.multiply)
            gx, *grads = partial_gradients(plain, (x, *of), grad)
            return gx, None, None, None, *grads
        grad = like(grad, x)
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        C, hidden = x.shape[1], of.w1.shape[0]
        sizes = [C, 1, hidden * C, hidden, hidden, hidden, C * hidden, C, 1]
        found = values.new_empty(sum(sizes))
        layers = (of.mask, of.w1, of.weight, of.bias, ctx.eps, of.w2, of.strength)
        ctx.backend.context_backward(x, grad, values, *layers, ctx.multiply, gx, found)
        return gx, None, None, None, *shared_out(found, sizes, of, ctx.needs_input_grad[4:])
