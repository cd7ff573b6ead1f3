"""What a network loses if other gates take the place of a mechanism's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.explain.acting import Parts, See, needed, skipped, watched

KINDS = ("mean", "shuffled", "identity")
Z = 1.959964
"""Quantile of the normal distribution for 95 %."""


@dataclass(frozen=True)
class Effect:
    """What the metric loses, with a 95 % interval over the images."""

    loss: float
    low: float
    high: float

    @property
    def nothing(self) -> bool:
        """Whether the interval holds zero."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.loss:+.3f} [{self.low:.3f}, {self.high:.3f}]"


def bypasses(
    model: nn.Module,
    module: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    means: Parts,
    judge: Callable[[Tensor, Tensor], Tensor],
    outputs: Sequence[Tensor],
    scores: Tensor,
    seed: int,
) -> tuple[dict[str, Effect], float | None]:
    """The effect of each kind of bypass, and how much the output changes without the mechanism.

    The change is relative to the size of the output; None where nothing can stand in for the
    mechanism.
    """
    effects: dict[str, Effect] = {}
    change = None
    counted = bool((scores == scores.round()).all())
    for kind in KINDS:
        if kind == "identity":
            if needed(module):
                continue
            found = _without(model, module, batches)
            change = _relative(found, outputs)
        else:
            see = _mean(means) if kind == "mean" else _shuffled(seed)
            found = _run(model, module, batches, see)
        judged = [judge(y, labels) for y, (_, labels) in zip(found, batches, strict=True)]
        effects[kind] = effect(scores - torch.cat(judged), counted=counted)
    return effects, change


def effect(losses: Tensor, *, counted: bool = True) -> Effect:
    """The mean of paired differences, with an interval.

    Of differences of -1, 0 and 1 it is that of Agresti and Min (2005), which is not empty where no
    image differs; of others, and where ``counted`` says that the metric is a share of each image,
    the normal one.
    """
    losses = losses.double()
    n, mean = len(losses), float(losses.mean())
    if counted and bool(((losses == losses.round()) & (losses.abs() <= 1)).all()):
        worse, better = int((losses > 0).sum()), int((losses < 0).sum())
        middle = (worse - better) / (n + 2)
        variance = (worse + better + 1 - (worse - better) ** 2 / (n + 2)) / (n + 2) ** 2
    else:
        middle, variance = mean, float(losses.var()) / n
    half = Z * variance**0.5
    return Effect(mean, middle - half, middle + half)


def _run(
    model: nn.Module, module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], see: See
) -> list[Tensor]:
    with watched(module, see), torch.no_grad():
        return [model(images) for images, _ in batches]


def _mean(means: Parts) -> See:
    def see(parts: Parts) -> Parts:
        return {name: means[name].to(t.dtype).expand_as(t) for name, t in parts.items()}

    return see


def _shuffled(seed: int) -> See:
    generator = torch.Generator().manual_seed(seed)

    def see(parts: Parts) -> Parts:
        count = len(next(iter(parts.values())))
        order = torch.randperm(count, generator=generator)
        source = torch.empty_like(order)
        source[order] = order.roll(1)  # no image keeps its own, if there are two
        return {n: t[source.to(t.device)] if len(t) == count else t for n, t in parts.items()}

    return see


def _without(
    model: nn.Module, module: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    with skipped([module]), torch.no_grad():
        return [model(images) for images, _ in batches]


def _relative(found: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    pairs = list(zip(found, outputs, strict=True))
    change = sum(float((a - b).double().square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for _, b in pairs)
    return (change / size) ** 0.5 if size else 0.0
