"""Convolution of a few planes to one."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate import kernels
from foveate.ops.partial import partial_gradients


def stencil(z: Tensor, weight: Tensor) -> Tensor:
    """The convolution that a spatial gate makes of its statistics, with zeros around the map.

    Args:
        z: Planes, ``(B, K, H, W)``.
        weight: Kernel of odd sides, ``(1, K, h, w)``.

    Returns:
        One plane, ``(B, 1, H, W)``.
    """
    backend = kernels.pick(z, least=0)
    if (
        not hasattr(backend, "stencil")
        or z.dtype != weight.dtype
        or z.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled(z.device.type)
    ):
        return _definition(z, weight)
    return _Stencil.apply(z, weight, backend)


def _definition(z: Tensor, weight: Tensor) -> Tensor:
    rows, columns = weight.shape[2:]
    return F.conv2d(z, weight, padding=(rows // 2, columns // 2))


class _Stencil(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, backend: Any) -> Tensor:
        z, weight = z.contiguous(), weight.contiguous()
        ctx.save_for_backward(z, weight)
        ctx.backend = backend
        out = z.new_empty(z.shape[0], 1, *z.shape[2:])
        backend.stencil(z, weight, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *partial_gradients(_definition, (z, weight), grad), None
        grad = grad.contiguous()
        of_z, of_weight = None, None
        if ctx.needs_input_grad[0]:
            of_z = torch.empty_like(z)
            ctx.backend.stencil_input(grad, weight, of_z)
        if ctx.needs_input_grad[1]:
            parts = z.new_empty(z.shape[0], *weight.shape[1:])
            ctx.backend.stencil_weight(grad, z, parts)
            of_weight = parts.sum(0, keepdim=True)
        return of_z, of_weight, None
