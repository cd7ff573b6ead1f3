"""Coordinate attention whole, with its gradients: kernels read, compute the gates, and weigh."""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.ops.ledger import Ledger
from foveate.ops.partial import partial_gradients
from foveate.ops.whole import dense, like, shared_out, whole

Pair = tuple[Tensor, Tensor]


class CoordWeights(NamedTuple):
    """The parameters of the layers, and the strength of the identity form."""

    w1: Tensor
    b1: Tensor | None
    weight: Tensor | None
    """Of the normalisation, or None if there is none."""
    bias: Tensor | None
    wh: Tensor
    bh: Tensor | None
    ww: Tensor
    bw: Tensor | None
    strength: Tensor | None


def coord(
    x: Tensor, weights: CoordWeights, running: Pair | None, eps: float
) -> tuple[Tensor, Tensor | None] | None:
    """The map weighed by gates of its rows and columns, where kernels do that.

    Args:
        x: The map, ``(B, C, H, W)``.
        weights: Those of the layers.
        running: Mean and variance that the normalisation takes; None for those of the batch.
        eps: Of the normalisation.

    Returns:
        The weighed map; and mean and unbiased variance of the batch, ``(2, hidden)``, if the
        normalisation took those. None where no kernel stands for the layers.
    """
    backend = whole(x, "coord_forward", *weights, *(running or ()))
    if backend is None:
        return None
    x, batch = dense(x), weights.weight is not None and running is None
    if torch.is_grad_enabled():
        y, statistics = _Coord.apply(x, running, eps, backend, *weights)
        return y, statistics if batch else None
    y, _, statistics = _forward(x, weights, running, eps, backend)
    return y, statistics if batch else None


def definition(x: Tensor, *given: Any, running: Pair | None, eps: float) -> Tensor:
    """The same in plain operations; ``given`` are the weights."""
    of = CoordWeights(*given)
    H, W = x.shape[2:]
    z = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT], dim=2)  # (B, C, H + W, 1)
    z = F.conv2d(z, of.w1, of.b1)
    if of.weight is not None:
        mean, var = (None, None) if running is None else running
        z = F.batch_norm(z, mean, var, of.weight, of.bias, running is None, 0.0, eps)
    rows, columns = F.hardswish(z).split([H, W], dim=2)
    for z, weight, bias in ((rows, of.wh, of.bh), (columns.mT, of.ww, of.bw)):
        gate = F.conv2d(z, weight, bias).sigmoid()
        x = x * (gate if of.strength is None else (gate - 1) * of.strength + 1)
    return x


def _forward(
    x: Tensor, of: CoordWeights, running: Pair | None, eps: float, backend: Any
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """The weighed map; strips, gates, and what the layers keep; statistics of the batch."""
    B, C, H, W = x.shape
    hidden = of.w1.shape[0]
    y, ledger = torch.empty_like(x), Ledger(backend, x)
    strips, gates = ((ledger.room(x, B, C, H, 1), ledger.room(x, B, C, 1, W)) for _ in range(2))
    values = x.new_empty((B * (H + W) + 3) * hidden, dtype=ledger.wide)
    norm, layers = (
        (*(running or (None, None)), of.weight, of.bias, eps),
        (of.wh, of.bh, of.ww, of.bw),
    )
    kept = (*strips, *gates, values)
    backend.coord_forward(x, of.w1, of.b1, *norm, *layers, of.strength, *kept, y)
    return y, kept, values[-3 * hidden :].view(3, hidden)[::2].clone()


class _Coord(torch.autograd.Function):
    """Saves the map and small tensors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, running: Pair | None, eps: float, backend: Any, *given: Any
    ) -> tuple[Tensor, Tensor]:
        y, kept, statistics = _forward(x, CoordWeights(*given), running, eps, backend)
        ctx.save_for_backward(x, *kept, *given, *(running or ()))
        ctx.eps, ctx.kernels = eps, backend
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        kept, of, running = rest[:5], CoordWeights(*rest[5:14]), tuple(rest[14:]) or None
        if torch.is_grad_enabled():
            plain = partial(definition, running=running, eps=ctx.eps)
            gx, *grads = partial_gradients(plain, (x, *of), grad)
            return gx, None, None, None, *grads
        grad, batch = like(grad, x), of.weight is not None and running is None
        gx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        C, hidden = x.shape[1], of.w1.shape[0]
        sizes = [hidden * C, *[hidden] * 3, *[C * hidden, C] * 2, 1]
        found = kept[-1].new_empty(sum(sizes))
        norm, layers = (of.weight, of.bias, batch), (of.wh, of.ww, of.strength)
        ctx.kernels.coord_backward(x, grad, *kept, of.w1, *norm, *layers, gx, found)
        return gx, None, None, None, *shared_out(found, sizes, of, ctx.needs_input_grad[4:])
