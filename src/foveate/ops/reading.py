"""Readings of a map: what kernels compute from it in small tensors, and how they differentiate."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foveate import kernels
from foveate.ops.ledger import Ledger, ledger_of

Tensors = tuple[Tensor, ...]


class Reading(ABC):
    """One kind of reading: small tensors from a map and from other small tensors."""

    @abstractmethod
    def run(self, ledger: Ledger, x: Tensor, *small: Tensor) -> Tensors:
        """What is read, by a kernel."""

    @abstractmethod
    def define(self, x: Tensor, *small: Tensor) -> Tensors:
        """The same, by its definition in plain operations."""

    def keep(self, read: Tensors) -> Tensors:
        """What of it the gradients need: the places of largest values, if not more."""
        return tuple(t for t in read if not t.is_floating_point())

    @abstractmethod
    def gradient(self, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors) -> Tensors:
        """The gradients of the map and of ``small``, in plain, differentiable operations."""

    @abstractmethod
    def enter(
        self, ledger: Ledger, x: Tensor, small: Tensors, kept: Tensors, grads: Tensors
    ) -> Tensors:
        """Enter the gradient of the map as terms; returns those of ``small``."""


class _Read(torch.autograd.Function):
    """A reading by kernels, whose gradient is entered into the ledger of its map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ledger: Ledger, reading: Reading, *small: Tensor) -> Tensors:
        read = reading.run(ledger, x, *small)
        ctx.ledger, ctx.reading, ctx.count = ledger, reading, len(small)
        # The gate that follows saves the map, if it has a gradient: once is enough.
        ctx.alone = not x.requires_grad
        ctx.save_for_backward(*small, *reading.keep(read), *((x,) if ctx.alone else ()))
        ctx.mark_non_differentiable(*(t for t in read if not t.is_floating_point()))
        return read

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ledger: Ledger = ctx.ledger
        saved = ctx.saved_tensors if ctx.alone else (*ctx.saved_tensors, ledger.x)
        small, kept, x = saved[: ctx.count], saved[ctx.count : -1], saved[-1]
        if x is None:
            raise RuntimeError("a map was read whose gate is not part of the gradient asked for")
        if torch.is_grad_enabled() or (ctx.needs_input_grad[0] and not ledger.open()):
            gx, *gsmall = ctx.reading.gradient(x, small, kept, grads)
            return gx, None, None, *gsmall
        return None, None, None, *ctx.reading.enter(ledger, x, small, kept, grads)


def register(
    name: str, make: Callable[..., Reading], options: str = ""
) -> Callable[..., list[Tensor]]:
    """Register a reading with PyTorch, for compiled programs.

    Args:
        name: Of the operator, behind ``foveate::``.
        make: The reading from its options.
        options: Their schema, such as ``", bool peak"``.

    Returns:
        The operator, from the map, the list of small tensors, and the options.
    """
    schema = f"(Tensor x, Tensor[] small{options}) -> Tensor[]"

    def run(x: Tensor, small: list[Tensor], *options: Any) -> list[Tensor]:
        backend = kernels.serving(x.device)
        if backend is None:
            return list(make(*options).define(x, *small))
        x = x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
        return [t.contiguous() for t in make(*options).run(Ledger(backend, x), x, *small)]

    def fake(x: Tensor, small: list[Tensor], *options: Any) -> list[Tensor]:
        return list(make(*options).define(x, *small))

    def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        x, small, *ctx.options = inputs
        ctx.count = len(small)
        kept = make(*ctx.options).keep(tuple(output))
        ctx.save_for_backward(x, *small, *kept)

    def differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        small, kept = tuple(saved[: ctx.count]), tuple(saved[ctx.count :])
        gx, *gsmall = make(*ctx.options).gradient(x, small, kept, tuple(grads))
        return gx, gsmall, *(None for _ in ctx.options)

    op = torch.library.custom_op(f"foveate::{name}", run, mutates_args=(), schema=schema)
    op.register_fake(fake)
    op.register_autograd(differentiate, setup_context=save)
    return op


def read(
    op: Callable[..., list[Tensor]], x: Tensor, reading: Reading, *small: Tensor, options: Any = ()
) -> Tensors | None:
    """What kernels read from a map; None where none serve it."""
    ledger = ledger_of(x)
    if ledger is not None and not torch.is_grad_enabled():
        return reading.run(ledger, x, *small)
    if ledger is not None:
        return _Read.apply(x, ledger, reading, *small)
    if kernels.compiles(x):
        return tuple(op(x, list(small), *options))
    return None


def wide(t: Tensor) -> Tensor:
    """A tensor in at least float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
