"""Memory for time: what is cheap to compute again is not kept for the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveate import kernels

LEAST = 1 << 15
"""Elements of a map below which there is too little memory to save."""


def recomputed(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """The result of a function, which is called again in the backward pass.

    Between the passes only the arguments are kept. Programs that are compiled or traced call it
    once, and decide for themselves what to keep.

    Args:
        function: Without side effects.
        x: A map, its first argument.
        others: Its other arguments.
    """
    if not torch.is_grad_enabled() or x.numel() < LEAST or kernels.watched():
        return function(x, *others)
    return checkpoint(function, x, *others, use_reentrant=False, preserve_rng_state=False)
