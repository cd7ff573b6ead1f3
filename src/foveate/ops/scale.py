"""Application of gates to a feature map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.ops.ledger import Ledger, Term, unweighed
from foveate.ops.partial import partial_gradients
from foveate.ops.recomputed import again


def scale(x: Tensor, *gates: Tensor) -> Tensor:
    """Multiply a feature map by gates, each broadcast to it.

    Args:
        x: The map, ``(B, C, H, W)``.
        gates: Factors of shapes that broadcast to that of ``x``; or ``(B, G, H, W)``, one for each
            of ``G`` groups of adjacent channels.

    Returns:
        The gated map, in the dtype of ``x`` also where autocast made the gates narrower.
    """
    ledger = unweighed(x)
    if ledger is not None:
        return _weigh(x, ledger, gates, total=False)
    return _product(x, *gates)


def scale_by_mean(x: Tensor, *gates: Tensor) -> Tensor:
    """Multiply a feature map by the mean of gates, as :func:`scale` does by their product."""
    ledger = unweighed(x)
    if ledger is not None:
        return _weigh(x, ledger, [gate / len(gates) for gate in gates], total=True)
    first, *others = gates
    return scale(x, sum(others, start=first) / len(gates))


def shift(x: Tensor, channel: Tensor) -> Tensor:
    """Add ``(B, C, 1, 1)`` to a feature map, in the dtype of the map."""
    ledger = unweighed(x)
    if ledger is not None:
        return _Shift.apply(x, ledger, channel)
    return x + channel.to(x.dtype)


def _spread(gate: Tensor, x: Tensor) -> Tensor:
    """A gate for each group of channels as one for each channel; any other as it is."""
    groups = gate.shape[1]
    if groups in (1, x.shape[1]):
        return gate
    return gate.repeat_interleave(x.shape[1] // groups, dim=1)


def _kind(gate: Tensor, x: Tensor) -> str:
    height, width = gate.shape[2:]
    if (height, width) == (1, 1) and gate.shape[1] in (1, x.shape[1]):
        return "channel"
    if (height, width) == x.shape[2:]:
        return "spatial"
    return "rows" if width == 1 else "columns"


def _weigh(x: Tensor, ledger: Ledger, gates: Any, *, total: bool) -> Tensor:
    B, C, H, W = x.shape
    shapes = {"channel": (B, C, 1, 1), "rows": (B, C, H, 1), "columns": (B, C, 1, W)}
    kinds: Term = {}
    for gate in gates:
        kind = _kind(gate, x)
        gate = gate.expand(shapes.get(kind, (B, gate.shape[1], H, W)))
        known = kinds.get(kind)
        kinds[kind] = gate if known is None else known + gate if total else known * gate
    if not torch.is_grad_enabled():
        arguments, groups = _arguments(ledger, tuple(kinds), tuple(kinds.values()))
        return ledger.combine(x, arguments, total=total, groups=groups)
    return _Weigh.apply(x, ledger, total, tuple(kinds), *kinds.values())


class _Weigh(torch.autograd.Function):
    """A map times the product, or the sum, of gates of different kinds."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ledger: Ledger, total: bool, kinds: tuple[str, ...], *gates: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *gates)
        ctx.ledger, ctx.total, ctx.kinds = ledger, total, kinds
        if again():
            return torch.empty_like(x)  # all that is wanted now is what was saved
        arguments, groups = _arguments(ledger, kinds, gates)
        return ledger.combine(x, arguments, total=total, groups=groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *gates = ctx.saved_tensors
        ledger: Ledger = ctx.ledger
        if torch.is_grad_enabled():
            ledger.begin(x)
            definition = _total if ctx.total else _product
            gx, *rest = partial_gradients(definition, (x, *gates), grad)
            return gx, None, None, None, *rest
        grad = ledger.dense(grad)
        arguments, groups = _arguments(ledger, ctx.kinds, gates)
        if ctx.needs_input_grad[0]:
            ledger.begin(x, grad)
            ledger.gates, ledger.total, ledger.groups = arguments, ctx.total, groups
        needs = ctx.needs_input_grad[4:]
        wanted = [kind for kind, need in zip(ctx.kinds, needs, strict=True) if need]
        factors = {} if ctx.total else arguments
        grads = _gate_gradients(ledger, x, grad, factors, wanted, groups)
        cast = (
            grads[kind].to(gate.dtype) if kind in wanted else None
            for kind, gate in zip(ctx.kinds, gates, strict=True)
        )
        return None, None, None, None, *cast


def _arguments(ledger: Ledger, kinds: Sequence[str], gates: Sequence[Tensor]) -> tuple[Term, int]:
    """The gates as the kernel takes them, and the groups of the spatial one."""
    arguments = {kind: ledger.small(gate) for kind, gate in zip(kinds, gates, strict=True)}
    return arguments, arguments["spatial"].shape[1] if "spatial" in arguments else 1


def _product(x: Tensor, *gates: Tensor) -> Tensor:
    for gate in gates:
        x = x * _spread(gate, x).to(x.dtype)
    return x


def _total(x: Tensor, *gates: Tensor) -> Tensor:
    first, *others = (_spread(gate, x) for gate in gates)
    return x * sum(others, start=first).to(x.dtype)


class _Shift(torch.autograd.Function):
    """A map plus one value for each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ledger: Ledger, channel: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ledger, ctx.dtype = ledger, channel.dtype
        return ledger.combine(x, {"add": ledger.small(channel)})

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ledger: Ledger = ctx.ledger
        if torch.is_grad_enabled():
            ledger.begin(x)
            return grad, None, grad.sum((2, 3), keepdim=True).to(ctx.dtype)
        grad = ledger.dense(grad)
        if ctx.needs_input_grad[0]:
            ledger.begin(x, grad)
        mean = ledger.room(x, *x.shape[:2], 1, 1)
        ledger.kernels.spatial_pool(grad, mean, None, None, None)
        return None, None, (mean * (x.shape[2] * x.shape[3])).to(ctx.dtype)


def _gate_gradients(
    ledger: Ledger, x: Tensor, grad: Tensor, gates: Term, wanted: list[str], groups: int
) -> Term:
    """The gradients of the gates of the kinds wanted; ``gates`` are those multiplied together."""
    B, C, H, W = x.shape
    grads = {}
    if "channel" in wanted:
        other, weights = _outside(ledger, grad, gates, "channel", "spatial", groups)
        grads["channel"] = ledger.room(x, B, C, 1, 1)
        ledger.kernels.spatial_dot(x, other, weights, None, groups, grads["channel"])
    if "spatial" in wanted:
        other, weights = _outside(ledger, grad, gates, "spatial", "channel", groups)
        grads["spatial"] = ledger.room(x, B, groups, H, W)
        ledger.kernels.channel_dot(x, other, weights, groups, grads["spatial"])
    if "rows" in wanted or "columns" in wanted:
        rest = {kind: gate for kind, gate in gates.items() if kind not in ("rows", "columns")}
        other = ledger.combine(grad, rest, groups=groups) if rest else grad
        grads["rows"], grads["columns"] = ledger.room(x, B, C, H, 1), ledger.room(x, B, C, 1, W)
        ledger.kernels.strip_dot(
            x, other, gates.get("rows"), gates.get("columns"), grads["rows"], grads["columns"]
        )
    return grads


def _outside(
    ledger: Ledger, grad: Tensor, gates: Term, own: str, crossing: str, groups: int
) -> tuple[Tensor, Tensor | None]:
    """The gradient times all gates but ``own`` and ``crossing``, and the crossing one."""
    rest = {kind: gate for kind, gate in gates.items() if kind not in (own, crossing)}
    return ledger.combine(grad, rest, groups=groups) if rest else grad, gates.get(crossing)
