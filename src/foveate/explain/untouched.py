"""Calls that leave no trace in a module."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def wanting(model: nn.Module, *, gradients: bool) -> Iterator[None]:
    """Compute with gradients, all parameters with them or all without, and give back what was.

    Without, a backward pass goes through the network and changes no parameter's gradient: what
    waits for these, as an optimizer may, does not run.
    """
    before = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    try:
        for p, _, _ in before:
            p.requires_grad_(gradients and p.is_floating_point())
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for p, grad, wanted in before:
            p.requires_grad_(wanted)
            p.grad = grad


@contextmanager
def untouched(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Compute something with a module, without gradients, and leave it and the random state alone.

    Running statistics are not updated, and what runs next draws the random numbers that were drawn
    here: a module that is called afterwards drops the same features.
    """
    if not module.training:  # nothing is drawn or updated
        with torch.no_grad():
            yield
        return
    own = [(one, dict(one._buffers)) for one in module.modules() if one._buffers]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        devices = [] if x.device.type == "cpu" else [x.device]
        stack.enter_context(torch.random.fork_rng(devices))
        try:
            for one, buffers in own:
                copies = {name: None if b is None else b.clone() for name, b in buffers.items()}
                one._buffers.update(copies)
            yield
        finally:
            for one, buffers in own:
                one._buffers.update(buffers)
