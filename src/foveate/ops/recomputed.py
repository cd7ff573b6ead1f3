"""Memory for time: what is cheap to compute again is not kept for the backward pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveate import kernels
from foveate.ops.ledger import ledger_of, with_ledger

LEAST = 1 << 14
"""Elements of the first argument below which there is too little memory to save."""

_again: ContextVar[bool] = ContextVar("computing again", default=False)


def recomputed(function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """The result of a function, which is called again in the backward pass.

    Between the passes only the arguments are kept. Programs that are compiled or traced call it
    once, and decide for themselves what to keep.

    Args:
        function: Without side effects, or with such that it leaves out :func:`again`.
        x: Its first argument.
        others: Its other arguments.
    """
    if not torch.is_grad_enabled() or x.numel() < LEAST or kernels.watched():
        return function(x, *others)
    ledger = ledger_of(x)

    def served(x: Tensor, *others: Tensor) -> Tensor:
        if ledger is None:
            return function(x, *others)
        ledger.weighed = False  # which the first run may have changed
        return function(with_ledger(x, ledger), *others)

    return checkpoint(served, x, *others, use_reentrant=False, context_fn=_contexts)


def again() -> bool:
    """Whether what now runs has run before, so that side effects would be doubled."""
    return not torch.compiler.is_compiling() and _again.get()


class _RunningAgain(AbstractContextManager[None]):
    """What is set while a function is called again; entered once for each backward pass."""

    def __enter__(self) -> None:
        self.token = _again.set(True)

    def __exit__(self, *error: object) -> None:
        _again.reset(self.token)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _RunningAgain()
