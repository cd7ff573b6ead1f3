"""Training and evaluation mode, set for a while and given back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module in one mode; afterwards each has its own back, also after an error.

    The flags are set directly: a host may override ``train`` to keep parts of it frozen.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes:
            module.training = mode
