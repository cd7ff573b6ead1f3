"""From a recipe to an optimizer, its learning rate, and the parameters that may move."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from foveate.experiments.config import Recipe


def build_optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters of a network."""
    groups = parameter_groups(network, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, recipe.lr)


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights, which decay, and vectors and scalars, which do not.

    Biases, normalisation weights and the strengths of gates are kept from zero by nothing else
    than the loss: pulling them there would undo what they learn.
    """
    weights = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [(weights, weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


class Schedule:
    """The learning rate at each step: a linear warm-up, then cosine, plateau or constant."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._recipe = recipe
        self._total = recipe.epochs * steps_per_epoch
        self._warmup = round(recipe.warmup_epochs * steps_per_epoch)

    def at(self, step: int, cuts: int = 0) -> float:
        """Learning rate of the given step, counted from 0, after ``cuts`` plateaus."""
        rate = self._recipe.lr
        if step < self._warmup:
            return rate * (step + 1) / self._warmup
        if self._recipe.schedule == "cosine":
            done = (step - self._warmup) / max(1, self._total - self._warmup)
            return rate * (1 + math.cos(math.pi * done)) / 2
        return rate * self._recipe.plateau_factor**cuts


def plateau_cuts(losses: Iterable[float], patience: int) -> int:
    """How often the losses of all epochs so far failed to fall for more than ``patience`` epochs.

    Example:
        >>> plateau_cuts([3.0, 2.0, 2.0, 2.5], patience=1)
        1
    """
    best, waited, cuts = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited > patience:
            waited, cuts = 0, cuts + 1
    return cuts


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
