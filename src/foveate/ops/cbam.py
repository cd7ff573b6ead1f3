"""CBAM whole, with its gradients: one kernel for each of the two passes."""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.ops.partial import partial_gradients
from foveate.ops.whole import dense, like, shared_out, whole

Pair = tuple[Tensor, Tensor]


class CBAMWeights(NamedTuple):
    """The parameters of the layers, and the strength of the identity form."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    kernel: Tensor
    weight: Tensor | None
    """Of the normalisation, or None if there is none."""
    bias: Tensor | None
    strength: Tensor | None


def cbam(
    x: Tensor,
    weights: CBAMWeights,
    running: Pair | None,
    eps: float,
    shortcut: Tensor | None = None,
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None] | None:
    """The map weighed by its channels, then by its positions, where kernels do that.

    Args:
        x: The map, ``(B, C, H, W)``.
        weights: Those of the layers.
        running: Mean and variance that the normalisation takes; None for those of the batch.
        eps: Of the normalisation.
        shortcut: A map to add before a ReLU, as residual blocks end; None for the weighed map.
        in_place: Without gradients, write over the map, which nobody else may hold then.

    Returns:
        The weighed map, or the end of the block; and mean, 1 / deviation and unbiased variance of
        the batch, if the normalisation took those. None where no kernel stands for the whole.
    """
    backend = whole(x, "cbam", *weights, *(running or ()), shortcut)
    if backend is None:
        return None
    x, batch = dense(x), weights.weight is not None and running is None
    shortcut = None if shortcut is None else like(shortcut, x)
    weights = weights._replace(kernel=weights.kernel.contiguous())
    if batch or torch.is_grad_enabled():
        y, statistics = _Cbam.apply(x, shortcut, running, eps, backend, *weights)
        return y, statistics if batch else None
    y = x if in_place else torch.empty_like(x)
    norm = (*(running or (None, None)), weights.weight, weights.bias, eps)
    backend.cbam(x, *weights[:5], *norm, weights.strength, shortcut, y)
    return y, None


def definition(x: Tensor, *given: Any, running: Pair | None, eps: float) -> Tensor:
    """The same in plain operations; ``given`` are the weights."""
    of = CBAMWeights(*given)

    def temper(gate: Tensor) -> Tensor:
        return gate if of.strength is None else (gate - 1) * of.strength + 1

    pools = torch.stack([x.mean((2, 3)), x.flatten(2).max(2).values])  # (2, B, C)
    hidden = F.linear(pools, of.w1.flatten(1), of.b1).relu()
    channel = temper(F.linear(hidden, of.w2.flatten(1), of.b2).sum(0).sigmoid())  # (B, C)
    gated = x * channel[:, :, None, None]
    z = torch.cat([gated.max(1, keepdim=True).values, gated.mean(1, keepdim=True)], dim=1)
    z = F.conv2d(z, of.kernel, padding=of.kernel.shape[2] // 2)
    if of.weight is not None:
        mean, var = (None, None) if running is None else running
        z = F.batch_norm(z, mean, var, of.weight, of.bias, running is None, 0.0, eps)
    return gated * temper(z.sigmoid())


class _Cbam(torch.autograd.Function):
    """Saves the map, small tensors, and what a block ends in."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        shortcut: Tensor | None,
        running: Pair | None,
        eps: float,
        backend: Any,
        *given: Any,
    ) -> tuple[Tensor, Tensor]:
        of = CBAMWeights(*given)
        B, C, H, W = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        count = B * (3 * C + 2 * of.w1.shape[0] + 3 * H * W) + 3
        values = x.new_empty(count, dtype=wide)
        places = x.new_empty(B * (C + H * W), dtype=torch.int32)
        y = torch.empty_like(x)
        layers = (of.w1, of.b1, of.w2, of.b2, of.kernel)
        norm = (*(running or (None, None)), of.weight, of.bias, eps)
        backend.cbam_forward(x, *layers, *norm, of.strength, shortcut, y, values, places)
        ended = None if shortcut is None else y
        ctx.save_for_backward(x, values, places, ended, *given, *(running or ()))
        ctx.eps, ctx.backend = eps, backend
        statistics = values[-3:]
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, values, places, y, *rest = ctx.saved_tensors
        of, running = CBAMWeights(*rest[:8]), tuple(rest[8:]) or None
        grad = like(grad, x)
        if torch.is_grad_enabled():
            through = grad if y is None else grad.masked_fill(y <= 0, 0)
            plain = partial(definition, running=running, eps=ctx.eps)
            gx, *grads = partial_gradients(plain, (x, *of), through)
            return gx, None if y is None else through, None, None, None, *grads
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        branch = None if y is None else torch.empty_like(x)
        C, hidden, taps = x.shape[1], of.w1.shape[0], of.kernel.numel()
        sizes = [hidden * C, hidden, C * hidden, C, taps, 1, 1, 1]
        found = values.new_empty(sum(sizes))
        layers = (of.w1, of.w2, of.kernel, of.weight, of.bias)
        batch = of.weight is not None and running is None
        given = (x, grad, values, places, *layers, batch, of.strength, y, branch, gx, found)
        ctx.backend.cbam_backward(*given)
        grads = shared_out(found, sizes, of, ctx.needs_input_grad[5:])
        return gx, branch, None, None, None, *grads
