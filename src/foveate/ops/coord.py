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
    backend = whole(x, "coord_layers", *weights, *(running or ()))
    if backend is None:
        return None
    x, batch = dense(x), weights.weight is not None and running is None
    if torch.is_grad_enabled():
        y, statistics = _Coord.apply(x, running, eps, backend, *weights)
        return y, statistics if batch else None
    y, _, _, statistics = _forward(Ledger(backend, x), x, weights, running, eps)
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


def _drawn(gates: Pair, strength: Tensor | None) -> dict[str, Tensor]:
    """The gates as they act."""
    if strength is not None:
        gates = tuple((gate - 1) * strength.to(gate.dtype) + 1 for gate in gates)  # type: ignore[assignment]
    return dict(zip(("rows", "columns"), gates, strict=True))


def _forward(
    ledger: Ledger, x: Tensor, of: CoordWeights, running: Pair | None, eps: float
) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    """The weighed map; strips and gates; what the layers keep; statistics of the batch."""
    B, C, H, W = x.shape
    hidden = of.w1.shape[0]
    strips, gates = ((ledger.room(x, B, C, H, 1), ledger.room(x, B, C, 1, W)) for _ in range(2))
    values = x.new_empty((B * (H + W) + 3) * hidden, dtype=ledger.wide)
    ledger.kernels.strip_pool(x, *strips, None, None, None, None)
    last = not x.is_contiguous()
    norm = (*(running or (None, None)), of.weight, of.bias, eps)
    layers = (of.wh, of.bh, of.ww, of.bw)
    ledger.kernels.coord_layers(*strips, last, of.w1, of.b1, *norm, *layers, *gates, values)
    y = ledger.combine(x, _drawn(gates, of.strength))
    statistics = values[-3 * hidden :].view(3, hidden)[::2].clone()
    return y, (*strips, *gates), values, statistics


class _Coord(torch.autograd.Function):
    """Saves the map and small tensors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, running: Pair | None, eps: float, backend: Any, *given: Any
    ) -> tuple[Tensor, Tensor]:
        ledger = Ledger(backend, x)
        y, kept, values, statistics = _forward(ledger, x, CoordWeights(*given), running, eps)
        ctx.save_for_backward(x, *kept, values, *given, *(running or ()))
        ctx.eps, ctx.ledger = eps, ledger
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, columns, row_gates, column_gates, values, *rest = ctx.saved_tensors
        of, running = CoordWeights(*rest[:9]), tuple(rest[9:]) or None
        if torch.is_grad_enabled():
            plain = partial(definition, running=running, eps=ctx.eps)
            gx, *grads = partial_gradients(plain, (x, *of), grad)
            return gx, None, None, None, *grads
        ledger: Ledger = ctx.ledger
        grad, acting = like(grad, x), _drawn((row_gates, column_gates), of.strength)
        dots = (torch.empty_like(rows), torch.empty_like(columns))
        ledger.kernels.strip_dot(x, grad, acting["rows"], acting["columns"], *dots)
        wanted = ctx.needs_input_grad[0]
        adds = {"add_rows": torch.empty_like(rows), "add_columns": torch.empty_like(columns)}
        given = adds.values() if wanted else (None, None)
        C, hidden = x.shape[1], of.w1.shape[0]
        sizes = [hidden * C, *[hidden] * 3, *[C * hidden, C] * 2, 1]
        found = values.new_empty(sum(sizes))
        batch = of.weight is not None and running is None
        ledger.kernels.coord_layers_backward(
            *(rows, columns, row_gates, column_gates, *dots, not x.is_contiguous(), values),
            *(of.w1, of.weight, of.bias, batch, of.wh, of.ww, of.strength, *given, found),
        )
        gx = ledger.combine(grad, acting | adds) if wanted else None
        return gx, None, None, None, *shared_out(found, sizes, of, ctx.needs_input_grad[4:])
