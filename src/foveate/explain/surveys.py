"""Gates over many images: their spread, what classes they tell apart, how training moved them."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import InvalidValueError, require
from foveate.explain.acting import is_gate, mechanisms
from foveate.explain.diagnosis import Loss
from foveate.explain.recording import Record, record
from foveate.explain.sheets import short
from foveate.explain.untouched import wanting
from foveate.modes import in_mode

if TYPE_CHECKING:
    from foveate.figures import Figure

DATA_FIGURES = ("gate-histograms", "gates-by-depth", "class-profiles", "gradients-by-depth")
"""The names of what :func:`over_data` draws."""
SHARES = (5, 25, 50, 75, 95)
"""The percentiles that are kept of a gate."""
BINS = 60
PROFILES = 4
"""Layers whose gates are drawn class by class."""
_SAMPLE = 8192
"""Values that are kept of a gate and a batch."""


@dataclass
class GateSurvey:
    """One gate of one layer over images."""

    layer: str
    part: str
    _values: list[Tensor] = field(default_factory=list, repr=False)
    _by_class: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)
    _shared: bool = False

    def update(self, gate: Tensor, labels: Tensor) -> None:
        """Take in the gates ``(B, ...)`` of images with these labels."""
        values = gate.detach().float().cpu()
        self._values.append(_some(values.flatten(), seed=len(self._values)))
        self._shared |= len(values) != len(labels)
        if self._shared:
            self._by_class.clear()  # one gate for all images
            return
        channels = values.mean((2, 3)).double()
        for label in labels.unique().tolist():
            mine = channels[labels == label]
            self._by_class.setdefault(label, []).append(mine)

    @property
    def values(self) -> Tensor:
        """A random sample of the finite values over all images, channels and positions."""
        values = torch.cat(self._values)
        return values[values.isfinite()] if values.isfinite().any() else torch.zeros(1)

    @property
    def percentiles(self) -> list[float]:
        """The values at :data:`SHARES`."""
        return percentiles(self.values)

    @property
    def classes(self) -> dict[int, Tensor]:
        """The mean gate ``(C,)`` of each class, its mean over positions."""
        return {k: torch.cat(rows).mean(0) for k, rows in sorted(self._by_class.items())}

    @property
    def between(self) -> tuple[float, float]:
        """Share of the variance over images that lies between classes, and that by chance.

        Over all channels together. By chance it is ``(classes - 1) / (images - 1)`` on average.
        """
        groups = [torch.cat(rows) for rows in self._by_class.values()]
        everything = torch.cat(groups)
        middle = everything.mean(0)
        total = float((everything - middle).square().sum())
        among = sum(len(g) * float((g.mean(0) - middle).square().sum()) for g in groups)
        chance = (len(groups) - 1) / max(1, len(everything) - 1)
        return (among / total if total > 0 else 0.0), chance


@dataclass(frozen=True)
class Survey:
    """The gates of a network over images, layer by layer."""

    gates: tuple[GateSurvey, ...]
    images: int

    def histograms(self) -> "Figure":
        """How often each value of each gate occurs."""
        from foveate import figures

        ends = torch.cat([torch.stack(gate.values.aminmax()) for gate in self.gates])
        low, high = min(0.0, float(ends.min())), max(1.0, float(ends.max()))  # a gate's, or more
        edges = torch.linspace(low, high, BINS + 1).tolist()
        return figures.gate_histograms(
            {
                _title(gate): figures.Spread(
                    gate.percentiles, edges, torch.histc(gate.values, BINS, low, high).tolist()
                )
                for gate in self.gates
            }
        )

    def by_depth(self) -> "Figure":
        """Median and spread of the gates, from the first layer to the last."""
        from foveate import figures

        parts: dict[str, dict[str, Any]] = {}
        for gate in self.gates:
            parts.setdefault(gate.part, {})[gate.layer] = figures.Spread(gate.percentiles)
        return figures.gates_by_depth(parts)

    def class_profiles(self, classes: Sequence[str] | None = None) -> "Figure":
        """The mean gate of each channel for each class.

        Args:
            classes: Names of the labels; their numbers by default.

        Raises:
            ValueError: If no layer has gates of several channels that depend on the image.
        """
        from foveate import figures

        channels = [g for g in self.gates if g.classes and len(next(iter(g.classes.values()))) > 1]
        if not channels:
            raise InvalidValueError("no layer has gates of channels that depend on the image")
        labels = list(channels[0].classes)
        profiles = [
            figures.ClassProfile(
                f"{_title(gate)}, {len(means[0])} channels",
                torch.stack(means).numpy(),
                *gate.between,
            )
            for gate in figures.even(channels, PROFILES)
            for means in [list(gate.classes.values())]
        ]
        return figures.class_profiles(
            profiles, [str(i) if classes is None else classes[i] for i in labels]
        )


def survey(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]]) -> Survey:
    """Look at the gates of a network over many images.

    The network runs in evaluation mode, and is given back as it was.

    Args:
        model: A network with attention.
        data: Batches of images and labels, on its device.

    Raises:
        ValueError: If there is no attention in the network, none of it has gates, or no image came.
    """
    require("matplotlib", extra="explain")
    found: dict[tuple[str, str], GateSurvey] = {}
    images = 0
    with in_mode(model, training=False), torch.no_grad():
        for batch, labels in data:
            with record(model) as recorded:
                model(batch)
            images += len(labels)
            for layer, part, gate in gates_of(recorded):
                one = found.setdefault((layer, part), GateSurvey(layer, part))
                one.update(gate, labels.cpu())
    if not images:
        raise InvalidValueError("a survey needs at least one image, but got none")
    if not found:
        raise InvalidValueError(f"no attention of this {type(model).__name__} has gates")
    return Survey(tuple(found.values()), images)


def over_data(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], classes: Sequence[str]
) -> dict[str, "Figure"]:
    """All figures of the gates over images, and of the gradients, by the names of their files."""
    histograms, by_depth, profiles, gradients = DATA_FIGURES
    drawn: dict[str, Figure] = {}
    with contextlib.suppress(InvalidValueError):  # without gates there is nothing to draw of them
        found = survey(model, batches)
        drawn[histograms] = found.histograms()
        drawn[by_depth] = found.by_depth()
        drawn[profiles] = found.class_profiles(classes)
    drawn[gradients] = gradient_norms(model, *batches[0])
    return drawn


class Evolution:
    """How the gates of a network move while it learns.

    Args:
        model: The network, whose weights change between the snapshots.
        images: A batch ``(B, C, H, W)`` that is the same for all of them.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._model, self._images = model, images
        self.steps: list[int] = []
        self.gates: list[dict[str, list[float]]] = []

    def snapshot(self, step: int) -> dict[str, list[float]]:
        """Keep, and return, the percentiles of each gate as they are after ``step`` steps."""
        with in_mode(self._model, training=False), torch.no_grad(), record(self._model) as recorded:
            self._model(self._images)
        now = {
            f"{layer} {part}": percentiles(gate.float().flatten())
            for layer, part, gate in gates_of(recorded)
        }
        self.steps.append(step)
        self.gates.append(now)
        return now

    def figure(self) -> "Figure":
        """Median and spread of each gate against the optimiser step.

        Raises:
            ValueError: If there is no snapshot, or there are no gates.
        """
        return evolution(self.steps, self.gates)


def evolution(steps: Sequence[int], gates: Sequence[Mapping[str, Sequence[float]]]) -> "Figure":
    """The figure of :class:`Evolution`, from what its snapshots returned."""
    require("matplotlib", extra="explain")
    from foveate import figures

    if not gates or not gates[0]:
        raise InvalidValueError("there is no snapshot of any gate")
    curves = {name: [figures.Spread(snapshot[name]) for snapshot in gates] for name in gates[0]}
    return figures.gate_evolution(steps, curves)


def gradient_norms(
    model: nn.Module, images: Tensor, labels: Tensor, *, loss: Loss = F.cross_entropy
) -> "Figure":
    """Size of the gradient of each layer of the host and of each mechanism, by depth.

    The network runs in evaluation mode; its own gradients stay what they are, and frozen parameters
    count like others.
    """
    require("matplotlib", extra="explain")
    from foveate import figures

    owners = dict(mechanisms(model))
    with in_mode(model, training=False), wanting(model, gradients=True):
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss(model(images), labels), parameters, allow_unused=True)
    slopes = {
        id(p): torch.zeros(1) if g is None else g for p, g in zip(parameters, found, strict=True)
    }
    shown = []
    for name, module in model.named_modules():
        attention = name in owners
        if not attention and any(name.startswith(f"{owner}.") for owner in owners):
            continue
        own = module.parameters(recurse=attention)
        mine = [slopes[id(p)].double().flatten() for p in own if id(p) in slopes]
        if mine:
            size = float(torch.cat(mine).square().mean().sqrt())
            shown.append(figures.Slope(short(name), size, attention))
    return figures.gradients_by_depth(shown)


def _some(values: Tensor, seed: int) -> Tensor:
    """All, or as many by chance: at equal distances only some columns might be met."""
    if len(values) <= _SAMPLE:
        return values
    generator = torch.Generator().manual_seed(seed)
    return values[torch.randint(len(values), (_SAMPLE,), generator=generator)]


def percentiles(values: Tensor) -> list[float]:
    """The values at :data:`SHARES`."""
    at = torch.tensor(SHARES, dtype=torch.float64) / 100
    ordered = values.double().cpu().sort().values
    return ordered[(at * (len(ordered) - 1)).round().long()].tolist()


def gates_of(recorded: Record) -> list[tuple[str, str, Tensor]]:
    """Layer, part and values of each gate of the last call; lengths of vectors are left out."""
    return [
        (short(layer.name), part, found)
        for layer in recorded.values()
        if layer.calls
        for part, found in layer.calls[-1].items()
        if is_gate(layer.module, part, found)
    ]


def _title(gate: GateSurvey) -> str:
    return f"{gate.layer} {gate.part}"
