"""Attention between channels, each described by its whole map."""

import contextlib

import torch
from torch import Tensor


def channel_attention(x: Tensor) -> Tensor:
    r"""For each channel the mean of all channels, weighted by their unlikeness to it.

    .. math:: y_i = \sum_j \mathrm{softmax}_j(\max_k E_{ik} - E_{ij})\,x_j, \quad E = X X^\top

    The energies are sums over all positions, too large for float16 and too coarse in bfloat16:
    they are computed in at least float32, also under autocast.

    Args:
        x: The map, ``(B, C, H, W)``.

    Returns:
        The mixed map, ``(B, C, H, W)``, in the dtype of ``x``.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    with _without_autocast(x.device.type):
        tokens = x.flatten(2).to(wide)  # (B, C, HW)
        energy = tokens @ tokens.mT  # (B, C, C)
        affinity = (energy.amax(2, keepdim=True) - energy).softmax(2)
        return (affinity @ tokens).unflatten(2, x.shape[2:]).to(x.dtype)


def _without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off where it is on: elsewhere the context would only burden exports."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
