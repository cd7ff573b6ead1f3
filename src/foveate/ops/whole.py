"""Which mechanisms one kernel computes whole, from the readings to the product."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from foveate import kernels

LEAST = 1 << 12
"""Elements of a map below which kernels need not be built for a single call."""


def whole(x: Tensor, kernel: str, *arguments: Tensor | None) -> Any | None:
    """The kernels, where that of a name stands for a whole mechanism.

    Args:
        x: The map, ``(B, C, H, W)``.
        kernel: Its name.
        arguments: The tensors that it takes with the map.

    Returns:
        None where there is no such kernel, where an argument has another type, dtype or device than
        the map, or where someone would miss the operations that the kernel stands for.
    """
    backend = kernels.pick(x, least=LEAST)
    if not hasattr(backend, kernel) or torch.is_autocast_enabled(x.device.type):
        return None
    for t in arguments:
        if t is not None and not (
            (type(t) is Parameter or type(t) is Tensor)
            and t.dtype == x.dtype
            and t.device == x.device
        ):
            return None
    return backend


def dense(x: Tensor) -> Tensor:
    """A map as kernels take it: contiguous or channels_last."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x if last or x.is_contiguous() else x.contiguous()


def like(t: Tensor, x: Tensor) -> Tensor:
    """A tensor of the shape of a dense map, laid out as that is."""
    last = not x.is_contiguous()
    return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def shared_out(
    found: Tensor, sizes: Sequence[int], parameters: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of parameters from one row of numbers, in which each has its place.

    Args:
        found: The row.
        sizes: How many of the numbers belong to each parameter, also to one that is not there.
        parameters: What they are gradients of.
        needed: Which of them are wanted.
    """
    parts = zip(found.split_with_sizes(sizes), parameters, needed, strict=True)
    return [
        part.view(t.shape).to(t.dtype) if need and t is not None else None
        for part, t, need in parts
    ]
