"""Gates that a value for each channel and a value for each position make together."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.ops.ledger import Ledger, Pair, unweighed
from foveate.ops.partial import partial_gradients

KINDS = ("add", "mul", "choice")


def pair_factor(channel: Tensor, position: Tensor, kind: str) -> Tensor:
    r"""The factor of each element of a map.

    Args:
        channel: Values :math:`c`, ``(B, C, 1, 1)``.
        position: Values :math:`p`, ``(B, 1, H, W)``.
        kind: ``"add"`` for :math:`1 + \sigma(c + p)`; ``"mul"`` for :math:`1 + \sigma(c\,p)`.

    Returns:
        Factors ``(B, C, H, W)``.
    """
    return 1 + (channel + position if kind == "add" else channel * position).sigmoid()


def scale_by_pair(
    x: Tensor, channel: Tensor, position: Tensor, kind: str, strength: Tensor | None = None
) -> Tensor:
    r"""A map times its :func:`pair_factor`, drawn towards 1 by a strength below 1.

    Args:
        x: The map, ``(B, C, H, W)``.
        channel: See :func:`pair_factor`.
        position: See :func:`pair_factor`.
        kind: See :func:`pair_factor`; or ``"choice"``, for :math:`c` or :math:`p`, whichever gives
            the larger product with :math:`x`.
        strength: 0 for the map itself, 1 and None for the factor itself; a scalar.

    Returns:
        The weighed map, of the shape and dtype of ``x``.
    """
    ledger = unweighed(x)
    if ledger is not None and hasattr(ledger.kernels, "pair_gate"):
        return _WeighByPair.apply(x, ledger, KINDS.index(kind), channel, position, strength)
    return _weighed(kind, x, channel, position, strength)


def _weighed(
    kind: str, x: Tensor, channel: Tensor, position: Tensor, strength: Tensor | None
) -> Tensor:
    if kind == "choice":
        y = torch.maximum(x * channel.to(x.dtype), x * position.to(x.dtype))
        return y if strength is None else (x + (y - x) * strength).to(x.dtype)
    factor = pair_factor(channel, position, kind)
    return x * (factor if strength is None else (factor - 1) * strength + 1).to(x.dtype)


class _WeighByPair(torch.autograd.Function):
    """Saves the map and the values of its channels and positions."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ledger: Ledger,
        kind: int,
        channel: Tensor,
        position: Tensor,
        strength: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, channel, position, strength)
        ctx.ledger, ctx.kind = ledger, kind
        return _pair(ledger, kind, channel, position, strength).apply(ledger, x, x, {})

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, channel, position, strength = ctx.saved_tensors
        ledger: Ledger = ctx.ledger
        if torch.is_grad_enabled():
            ledger.begin(x)
            definition = partial(_weighed, KINDS[ctx.kind])
            gx, *rest = partial_gradients(definition, (x, channel, position, strength), grad)
            return gx, None, None, *rest
        grad = ledger.dense(grad)
        pair = _pair(ledger, ctx.kind, channel, position, strength)
        if ctx.needs_input_grad[0]:
            ledger.begin(x, grad)
            ledger.pair = pair
        to = (torch.empty_like(pair.channel), torch.empty_like(pair.position))
        parts = torch.empty_like(pair.channel)
        values = (pair.channel, pair.position, pair.strength)
        ledger.kernels.pair_dot(x, grad, ctx.kind, *values, *to, parts)
        of_strength = None if strength is None else parts.sum().to(strength.dtype)
        return None, None, None, to[0].to(channel.dtype), to[1].to(position.dtype), of_strength


def _pair(
    ledger: Ledger, kind: int, channel: Tensor, position: Tensor, strength: Tensor | None
) -> Pair:
    wide = None if strength is None else strength.to(ledger.wide)
    return Pair(kind, ledger.small(channel), ledger.small(position), wide)
