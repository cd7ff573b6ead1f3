"""One mechanism with one choice of options, and what is known of it beforehand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]

ADDED = {"added": "B1HW"}
CHANNEL = {"channel": "BC11"}
OUTPUT = {"output": "B1HW"}
SPATIAL = {"spatial": "B1HW"}


@dataclass(frozen=True)
class Variant:
    """Every reference file ends with a list of these, ``VARIANTS``; the first has no options."""

    key: str
    reference: Callable[..., Tensor]
    """From the input, the weights, the options and ``training`` to the output."""
    maps: dict[str, str]
    """Names and shapes of the maps, in the letters B, C, H, W and digits."""
    parameters: Callable[..., int]
    """From the channels and the options to how many parameters the paper's form has."""
    options: dict[str, Any] = field(default_factory=dict)
    multiple: int = 1
    """What the channels must be a multiple of."""
    constant: tuple[str, ...] = ()
    """Parameters that the output provably does not depend on."""
    constant_in_training: tuple[str, ...] = ()
    """Those that it does not depend on where batch statistics are taken."""
    transposed: Callable[[Weights], Weights] | None = dict
    """Weights with which rows and columns change their parts; None if one always comes first."""
    least: int = 0
    """What sides must exceed in a dynamic export: a single cell makes another graph."""
    cancels: bool = False
    """Signed products cancel in its sums: narrow dtypes are held to the largest output's size."""
    all_pairs: bool = False
    """Attends from every position to every other."""

    @property
    def id(self) -> str:
        return "-".join([self.key, *(f"{name}={value}" for name, value in self.options.items())])

    def fit(self, channels: int) -> int:
        """The least number of channels that it takes and that is not below ``channels``."""
        return -(-channels // self.multiple) * self.multiple


def transpose(*names: str) -> Callable[[Weights], Weights]:
    """Weights whose kernels of these names are transposed."""
    return lambda weights: {n: w.mT if n in names else w for n, w in weights.items()}


def swap(**names: str) -> Callable[[Weights], Weights]:
    """Weights with parts of names exchanged, in both directions."""
    both = {**names, **{new: old for old, new in names.items()}}
    return lambda weights: {
        ".".join(both.get(part, part) for part in name.split(".")): weight
        for name, weight in weights.items()
    }
