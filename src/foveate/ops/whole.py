"""Mechanisms that one kernel computes whole: readings, the layers between them, and the product."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from foveate import kernels

LEAST = 1 << 12
"""Elements of a map below which kernels need not be built for a single call."""


def whole(x: Tensor, name: str) -> Callable[..., Tensor | None] | None:
    """The kernel that makes the output of a map without a gradient.

    Its definition is the mechanism itself, in plain operations.

    Args:
        x: The map, ``(B, C, H, W)``.
        name: Of the kernel.

    Returns:
        The output as a function of the kernel's further arguments, which is None where these have
        another type, dtype or device than the map; or None where there is no such kernel, or
        someone would miss the operations in it.
    """
    if torch.is_grad_enabled():
        return None
    backend = kernels.pick(x, least=LEAST)
    if not hasattr(backend, name) or torch.is_autocast_enabled(x.device.type):
        return None
    return partial(_run, getattr(backend, name), x)


def _run(kernel: Any, x: Tensor, *arguments: Tensor | float | None) -> Tensor | None:
    given = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            plain = type(argument) is Parameter or type(argument) is Tensor
            if not plain or argument.dtype != x.dtype or argument.device != x.device:
                return None
            argument = argument.contiguous()
        given.append(argument)
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    y = torch.empty_like(x)
    kernel(x, *given, y)
    return y
