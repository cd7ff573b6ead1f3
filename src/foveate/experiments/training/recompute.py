"""Gradient checkpointing: blocks that recompute their activations instead of keeping them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_blocks(network: nn.Module) -> list[str]:
    """Let the blocks of a network recompute in the backward pass; returns their names.

    A block is a child of the network with layers of its own; a ``Sequential`` of such blocks, as
    the stages of a ResNet are, stands for its elements. Numbers, keys and buffers stay the same.
    """
    names = []
    for name, block in _blocks(network):
        block.forward = _Recomputed(block, block.forward)
        names.append(name)
    return names


def _blocks(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in network.named_children():
        if not any(True for _ in child.children()):
            continue
        nested = isinstance(child, nn.Sequential) and any(
            any(True for _ in element.children()) for element in child
        )
        if nested:
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


class _Recomputed:
    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        self.block, self.forward = block, forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs, **options)
        return checkpoint(
            self.forward,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _kept_statistics(self.block)),
            **options,
        )


@contextlib.contextmanager
def _kept_statistics(block: nn.Module) -> Iterator[None]:
    """The second forward pass must not count the batch again in the running statistics."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm, norm.momentum) for norm in norms]
    counts = [(norm, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in before:
            norm.momentum = momentum
        for norm, count in counts:
            norm.num_batches_tracked = count
