"""What is going to be copied into a model, and what of a checkpoint does not fit it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from foveate.errors import UserError
from foveate.mechanisms.base import Attention, Replacement
from foveate.registry import create
from foveate.weights.layouts import Layout
from foveate.weights.matching import Group
from foveate.weights.report import shortened

_COUNTER = "num_batches_tracked"
"""Of normalisation; old checkpoints have none, and none is needed."""


@dataclass
class Draft:
    """A checkpoint on its way into the tensors of a model; nothing is copied yet."""

    own: Mapping[str, Tensor]
    given: Mapping[str, Tensor]
    values: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """Names in the checkpoint of what is in ``values``."""
    filled: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Names in the checkpoint of all that has a place in the model."""

    def add_host(self, wanted: Collection[str], names: Mapping[str, str], head: str) -> None:
        """Take the host's tensors by name; the module ``head`` only if all of it fits."""
        of_head = [name for name in wanted if head and name.startswith(f"{head}.")]
        theirs = {name: self.given[names[name]] for name in of_head if name in names}
        if [self.own[name].shape for name in of_head] != [t.shape for t in theirs.values()]:
            self.skipped += of_head
            self.used |= {names[name] for name in theirs}
        for name in wanted:
            if name in names and name not in self.skipped:
                self._take(name, names[name], self.given[names[name]])
            elif not name.endswith(_COUNTER) and name not in self.skipped:
                self.missing.append(name)

    def add_attention(self, site: str, module: Attention, group: Group, layout: Layout) -> None:
        """Take the tensors of one attention module."""
        self.used |= {*group.tensors.values()}
        values = {
            ours: layout.fixes.get(ours, _as_it_is)(self.given[theirs], module)
            for ours, theirs in group.tensors.items()
        }
        fit = _Fit(module, values, layout.zeros, layout.needs(group.seen, module))
        if fit.mismatches or fit.unmet:
            self.problems.append(f"'{site}' is {module!r}, but {fit.explanation()}")
            return
        for name, value in values.items():
            full = f"{site}.{name}".strip(".")
            self._take(full, group.tensors[name], value.reshape(self.own[full].shape))
        for name, number in fit.constants.items():
            self.filled[f"{site}.{name}".strip(".")] = number

    def _take(self, ours: str, theirs: str, value: Tensor) -> None:
        self.used.add(theirs)
        self.values[ours], self.sources[ours] = value, theirs
        if value.shape != self.own[ours].shape:
            self.problems.append(
                f"the model's '{ours}' has shape {tuple(self.own[ours].shape)}, but the "
                f"checkpoint's '{theirs}' has {tuple(value.shape)}"
            )


def _as_it_is(tensor: Tensor, module: Attention) -> Tensor:
    return tensor


class _Fit:
    """How the tensors of one attention module, by our names, agree with a mechanism."""

    def __init__(
        self,
        module: Attention,
        values: Mapping[str, Tensor],
        zeros: Collection[str],
        needs: Mapping[str, Any],
    ) -> None:
        self.module, self.values, self.needs = module, values, needs
        self.unmet = {k: value for k, value in needs.items() if getattr(module, k) != value}
        strengths = set() if isinstance(module, Replacement) else _strengths(module)
        absent = [name for name in module.state_dict() if name not in values]
        self.zeros = set(zeros) - values.keys()
        self.constants = {n: float(n in strengths) for n in absent if n in self.zeros | strengths}
        self.mismatches = list(self._mismatches(_shapes(module)))

    def _mismatches(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
        """What keeps the values from tensors of these shapes."""
        for name in {**shapes, **self.values}:
            if name in self.constants or name in self.zeros or name.endswith(_COUNTER):
                continue
            if name not in self.values:
                yield f"the checkpoint has no {name}"
            elif name not in shapes:
                yield f"the checkpoint has {name} as well"
            elif _core(self.values[name].shape) != _core(shapes[name]):
                theirs = tuple(self.values[name].shape)
                yield f"its {name} is {shapes[name]} and the checkpoint's {theirs}"

    def explanation(self) -> str:
        """What is wrong, and with which options the mechanism would be that of the checkpoint."""
        remedy = self._remedy()
        if remedy is None:
            advice = "no options of it give the shapes of the checkpoint"
        else:
            options = ", ".join(f"{name}={value!r}" for name, value in remedy.items())
            advice = f"insert it with {options}, as the checkpoint has it"
        return ": ".join([*([shortened(self.mismatches, 2)] if self.mismatches else []), advice])

    def _remedy(self) -> dict[str, Any] | None:
        """The fewest options with which the mechanism would fit."""
        now = {**self.module.settings(), "init": self.module.init}
        choices = {
            name: [self.needs[name]] if name in self.needs else self._choices(name, value)
            for name, value in now.items()
        }
        found = []
        for chosen in product(*choices.values()):
            options = dict(zip(choices, chosen, strict=True))
            try:
                shapes = _shapes(_rebuilt(self.module, options))
            except UserError:
                continue
            if not any(self._mismatches(shapes)):
                found.append({k: value for k, value in options.items() if value != now[k]})
        return min(found, key=len) if found else None

    def _choices(self, option: str, value: Any) -> list[Any]:
        """The value of an option, and others that the shapes suggest."""
        shapes = [value.shape for value in self.values.values() if value.ndim]
        others: set[Any] = set()
        if isinstance(value, bool):
            others = {not value}
        elif option == "init":
            others = {"paper", "identity"}
        elif option == "reduction":
            others = {max(1, self.module.channels // shape[0]) for shape in shapes}
        elif option == "kernel_size":
            others = {shape[-1] for shape in shapes}
        elif option == "size":
            others = {tuple(shape[-2:]) for shape in shapes if len(shape) > 2}
        elif option == "num_groups":
            others = {max(shape) for shape in shapes}
        return [value, *sorted(others - {value})]


def _shapes(module: Attention) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the sides of length 1 at its end: a linear layer is a convolution of 1 x 1."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _rebuilt(module: Attention, options: Mapping[str, Any]) -> Attention:
    """A mechanism without values, with these options instead of its own."""
    with torch.device("meta"):
        return create(module.key, module.channels, **{**module.settings(), **options})  # type: ignore[return-value]


def _strengths(module: Attention) -> set[str]:
    """Scalars that only the identity form has; at one it is the paper's form."""
    return module.state_dict().keys() - _rebuilt(module, {"init": "paper"}).state_dict().keys()
