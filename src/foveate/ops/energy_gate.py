"""The gate of SimAM, which depends on nothing but the channel that an element is in."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate import kernels
from foveate.ops.partial import partial_gradients
from foveate.ops.spatial_variance import spatial_variance


def energy(x: Tensor, regularization: float) -> Tensor:
    r"""How far each element stands out from its channel: :math:`\sigma(d / (4(v+\lambda)) + 1/2)`.

    Args:
        x: The map, ``(B, C, H, W)``.
        regularization: The :math:`\lambda`.

    Returns:
        Gates of the shape of ``x``.
    """
    scale = (spatial_variance(x) + regularization).rsqrt() / 2  # (B, C, 1, 1)
    # Scaled first: the bare square of a deviation can be too large for float16.
    deviation = (x - x.mean((2, 3), keepdim=True)) * scale  # (B, C, H, W)
    return torch.sigmoid(deviation.square() + 0.5)


def energy_gate(x: Tensor, regularization: float, strength: Tensor | None = None) -> Tensor:
    """A map weighed by its :func:`energy`, drawn towards 1 by a strength below 1.

    Args:
        x: The map, ``(B, C, H, W)``.
        regularization: See :func:`energy`.
        strength: 0 for the map itself, 1 and None for the gate itself; a scalar.

    Returns:
        The weighed map, of the shape and dtype of ``x``.
    """
    backend = kernels.pick(x)
    if hasattr(backend, "energy"):
        dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
        return _EnergyGate.apply(x if dense else x.contiguous(), regularization, strength, backend)
    return _weighed(regularization, x, strength)


def _weighed(regularization: float, x: Tensor, strength: Tensor | None) -> Tensor:
    gate = energy(x, regularization)
    return x * (gate if strength is None else (gate - 1) * strength + 1).to(x.dtype)


class _EnergyGate(torch.autograd.Function):
    """Saves the map alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, regularization: float, strength: Tensor | None, backend: Any
    ) -> Tensor:
        ctx.save_for_backward(x, strength)
        ctx.regularization, ctx.backend = regularization, backend
        y = torch.empty_like(x)
        backend.energy(x, regularization, _wide(strength, x), y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, strength = ctx.saved_tensors
        if torch.is_grad_enabled():
            gx, gs = partial_gradients(partial(_weighed, ctx.regularization), (x, strength), grad)
            return gx, None, gs, None
        last = not x.is_contiguous()
        grad = grad.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        gx, wide = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
        parts = x.new_empty(x.shape[:2], dtype=wide)
        ctx.backend.energy_gradient(x, grad, ctx.regularization, _wide(strength, x), gx, parts)
        return gx, None, None if strength is None else parts.sum().to(strength.dtype), None


def _wide(strength: Tensor | None, x: Tensor) -> Tensor | None:
    return None if strength is None else strength.to(torch.promote_types(x.dtype, torch.float32))
