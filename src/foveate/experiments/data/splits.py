"""Splits by class: a seeded share of every class is held out, none is left empty."""

import torch
from torch import Tensor

from foveate.errors import InvalidValueError


def by_share(labels: Tensor, seed: int) -> Tensor:
    """An order of the images whose every beginning holds each class in proportion.

    Within a class the order is random; any beginning at least as long as the number of classes
    holds them all.

    Args:
        labels: ``(N,)`` of int64.
        seed: Seed of the order.

    Returns:
        ``(N,)`` indices.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    counts = torch.bincount(labels)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    firsts = counts.cumsum(0) - counts
    rank = torch.arange(len(labels)) - firsts[labels[by_class]]  # within its class
    quantile = rank.double() / counts[labels[by_class]]
    return by_class[quantile.argsort(stable=True)]


def hold_out(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of a share held out, both ascending, with every class in each.

    Args:
        labels: ``(N,)`` of int64.
        fraction: Share to hold out, between 0 and 1.
        seed: Seed of the choice.

    Raises:
        ValueError: If a class has too few images to be on both sides.
    """
    counts = torch.bincount(labels)
    if (present := counts[counts > 0]).min() < 2:
        raise InvalidValueError(
            f"a split cannot be made: {int((present < 2).sum())} of {len(present)} classes have "
            "one image; each needs one for every split"
        )
    size = max(len(present), round(fraction * len(labels)))
    order = by_share(labels, seed)
    held, rest = order[:size].sort().values, order[size:].sort().values
    if len(labels[rest].unique()) < len(present):
        raise InvalidValueError(
            f"a split of {fraction=} leaves a class without images; give a smaller fraction"
        )
    return rest, held
