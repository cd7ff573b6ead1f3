"""The gates of a network at chosen steps of its training."""

import torch
from torch import Tensor, nn

from foveate.explain import Evolution
from foveate.explain.acting import mechanisms

IMAGES = 64
"""Validation images whose gates are kept, the same at every step."""


class Snapshots:
    """Takes the gates at equal distances, the first before training and the last after it.

    Args:
        module: The network.
        images: A batch, normalised.
        count: How many snapshots; with fewer than two, or without attention, there are none.
        steps: Optimiser steps of the whole training.
    """

    def __init__(self, module: nn.Module, images: Tensor, count: int, steps: int) -> None:
        self._evolution = Evolution(module, images)
        wanted = count > 1 and next(mechanisms(module), None) is not None
        at = {round(i * steps / (count - 1)) for i in range(count)} if wanted else set()
        self.steps = frozenset(at)
        """After how many steps a snapshot is wanted."""

    def take(self, step: int) -> dict[str, list[float]]:
        """The percentiles of each gate as they are now, after ``step`` steps."""
        with torch.random.fork_rng():  # a mechanism may draw while it is looked at
            return self._evolution.snapshot(step)
