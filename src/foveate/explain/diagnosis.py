"""Whether attention does anything: what ails each mechanism, and what the network is without it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import InvalidTypeError, InvalidValueError
from foveate.explain.acting import key_of, mechanisms, watched
from foveate.explain.bypass import Effect, bypasses
from foveate.explain.rectified import Rectified
from foveate.explain.tally import Tally
from foveate.explain.untouched import untouched
from foveate.mechanisms.base import Attention, Gate, Mixer, Replacement
from foveate.modes import in_mode
from foveate.printing import as_text

Metric = Callable[[Tensor, Tensor], Tensor]
"""From outputs and labels of a batch to one number for each image, the more the better."""
Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Thresholds:
    """From where on a number is a finding."""

    saturated: float = 0.9
    """Least share of the values of a gate that are as good as 0 or 1."""
    edge: float = 0.01
    """What is as good as 0 or 1: as near to it as this."""
    collapsed: float = 0.005
    """Standard deviation over channels and positions below which these are alike.

    What is added is held against itself at other positions. Its deviations, here and below, are
    relative to its size.
    """
    constant: float = 0.005
    """Standard deviation over the images below which it does not depend on them."""
    stuck: float = 1e-6
    """Distance from its start below which a strength or a scale has not moved."""
    dead: float = 0.5
    """Least share of the units behind a ReLU that fire for no image."""
    starved: float = 1e-4
    """Size of the gradient, relative to that of the rest of the network, below which it is none."""
    redundant: float = 0.005
    """Change of the output, relative to its size, that the network without it does not exceed."""


REMEDIES = {
    "saturated": "lower the learning rate of the mechanism, or normalise before its last layer",
    "collapsed": "a gate that is one number does nothing a norm does not: take it out, or train on",
    "constant": "compare it with the mechanism 'static', which is as good and costs less",
    "stuck": "check that its parameters are in the optimizer and have no weight decay; train on",
    "dead": "widen the bottleneck by a smaller reduction, or lower the learning rate",
    "starved": "insert it with init='identity', or nearer to the end of its block",
    "redundant": "take it out here: the network without it gives the same outputs",
}


@dataclass(frozen=True)
class Check:
    """One number, what it is held against, and whether it is a finding."""

    disease: str
    part: str
    """The gate, ``"added"``, a parameter, or empty for the mechanism as a whole."""
    value: float
    threshold: float
    found: bool

    @property
    def remedy(self) -> str:
        """What may help."""
        return REMEDIES[self.disease]


@dataclass(frozen=True)
class SiteDiagnosis:
    """What was found of one mechanism."""

    name: str
    key: str
    checks: tuple[Check, ...]
    entropy: dict[str, float]
    """Bits of each gate, from 0 to 6."""
    bypass: dict[str, Effect]
    """What the metric loses if others take the place of the gates."""

    @property
    def findings(self) -> tuple[Check, ...]:
        """The checks that found something."""
        return tuple(check for check in self.checks if check.found)

    @property
    def verdict(self) -> str:
        """The names of the findings, or ``"healthy"``."""
        return ", ".join(dict.fromkeys(one.disease for one in self.findings)) or "healthy"


@dataclass(frozen=True)
class Diagnosis:
    """What was found of each mechanism of a network."""

    sites: tuple[SiteDiagnosis, ...]
    images: int
    metric: float
    """Mean over the images, with all mechanisms."""
    thresholds: Thresholds

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON-able values."""
        sites = [
            {
                **asdict(site),
                "verdict": site.verdict,
                "remedies": {one.disease: one.remedy for one in site.findings},
            }
            for site in self.sites
        ]
        return {**asdict(self), "sites": sites}

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="dim")
        for column, width in (("layer", 8), ("findings", 10), ("entropy", 7)):
            table.add_column(column, overflow="fold", min_width=width)
        kinds = list(dict.fromkeys(kind for site in self.sites for kind in site.bypass))
        for kind in kinds:
            table.add_column(f"loss, {kind}", justify="right", no_wrap=True)
        for site in self.sites:
            bits = "\n".join(f"{name} {value:.1f}" for name, value in site.entropy.items())
            effects = (str(site.bypass.get(kind, "")).replace(" ", "\n", 1) for kind in kinds)
            name = escape(site.name.removesuffix(".attention"))
            table.add_row(name, escape(_shown(site)), bits, *effects)
        yield f"{self.images} images, metric {self.metric:.4f}; entropy in bits, of 6"
        yield table
        diseases = dict.fromkeys(one.disease for site in self.sites for one in site.findings)
        yield from (f"{disease}: {REMEDIES[disease]}" for disease in diseases)


def _shown(site: SiteDiagnosis) -> str:
    parts: dict[str, list[str]] = {}
    for one in site.findings:
        parts.setdefault(one.disease, []).append(f"{one.part} {one.value:.2g}".strip())
    return "\n".join(f"{name}: {', '.join(found)}" for name, found in parts.items()) or "healthy"


@dataclass
class _Case:
    """What is gathered of one mechanism over the images."""

    name: str
    module: nn.Module
    tallies: dict[str, Tally] = field(default_factory=dict)
    rectified: Rectified = field(default_factory=Rectified)


def diagnose(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    *,
    metric: Metric | None = None,
    loss: Loss | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Find out whether the attention in a network works, and whether the network needs it.

    The network runs in evaluation mode and is given back as it was. For each mechanism it runs
    over all images three times more, with other gates in the place of its own: their mean over
    the images, those of another image, and none.

    Args:
        model: The network.
        data: Batches of images and labels, on its device, in any order but sorted by class: gates
            are exchanged inside a batch. They are kept while this runs.
        metric: One number for each image, the more the better; by default whether the largest
            output is the label's.
        loss: Of outputs and labels, whose gradients are looked at for the first batch; by default
            the cross-entropy.
        thresholds: From where on a number is a finding.
        seed: Of the exchange between images.

    Raises:
        ValueError: If there is no attention in the network, or there are fewer than two images.
        TypeError: For a compiled network, whose modules do not run one by one.
    """
    if hasattr(model, "_orig_mod"):
        raise InvalidTypeError("a compiled network cannot be diagnosed; pass the one it is made of")
    cases = [_Case(name, module) for name, module in mechanisms(model)]
    if not cases:
        raise InvalidValueError(f"there is no attention in this {type(model).__name__}")
    batches = _in_pairs(list(data))
    images = sum(len(labels) for _, labels in batches)
    limits, judge = thresholds or Thresholds(), metric or accuracy
    with in_mode(model, training=False):
        gradients = _gradients(model, cases, batches[0], loss or F.cross_entropy)
        outputs = _observe(model, cases, batches, limits)
        scores = torch.cat([judge(y, t) for y, (_, t) in zip(outputs, batches, strict=True)])
        sites = []
        for case in cases:
            means = {name: tally.mean for name, tally in case.tallies.items()}
            effects, change = bypasses(
                model, case.module, batches, means, judge, outputs, scores, seed
            )
            checks = (
                *_of_parts(case, limits),
                *_of_module(case, gradients[case.name], limits),
                *_of_change(change, limits),
            )
            entropy = {n: t.entropy for n, t in case.tallies.items() if n != "added"}
            sites.append(SiteDiagnosis(case.name, key_of(case.module), checks, entropy, effects))
    return Diagnosis(tuple(sites), images, float(scores.double().mean()), limits)


def _in_pairs(batches: Batches) -> Batches:
    """The batches, a last one of one image put to the one before: gates are exchanged in each."""
    if len(batches) > 1 and len(batches[-1][1]) == 1:
        *before, (images, labels), (last, label) = batches
        batches = [*before, (torch.cat([images, last]), torch.cat([labels, label]))]
    sizes = [len(labels) for _, labels in batches]
    if min(sizes, default=0) < 2:
        raise InvalidValueError(
            "gates are exchanged between the images of a batch: "
            f"give at least two images in each, but got batches of {sizes[:8]}"
        )
    return batches


def accuracy(output: Tensor, labels: Tensor) -> Tensor:
    """1 for each image whose largest output ``(B, classes)`` is the label's, else 0."""
    return (output.argmax(1) == labels).double()


def _observe(
    model: nn.Module, cases: Sequence[_Case], batches: Batches, limits: Thresholds
) -> list[Tensor]:
    """The outputs; fills the tallies of all mechanisms."""
    with ExitStack() as stack, torch.no_grad():
        for case in cases:
            stack.enter_context(watched(case.module, _tallying(case, limits)))
            stack.enter_context(_rectifying(case))
        outputs = [model(images) for images, _ in batches]
    if not all(bool(y.isfinite().all()) for y in outputs if isinstance(y, Tensor)):
        raise InvalidValueError("the outputs of the network are not finite: it has diverged")
    return outputs


def _tallying(case: _Case, limits: Thresholds) -> Callable[[dict[str, Tensor]], None]:
    def see(parts: dict[str, Tensor]) -> None:
        for name, part in parts.items():
            if not bool(part.isfinite().all()):
                raise InvalidValueError(
                    f"the {name} of '{case.name}' is not finite: the network has diverged"
                )
            new = Tally(over_positions=name == "added")
            case.tallies.setdefault(name, new).update(part, limits.edge)

    return see


@contextmanager
def _rectifying(case: _Case) -> Iterator[None]:
    """Watches the ReLUs of each call, in a call of its own of what they belong to."""

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        function = next(
            (getattr(module, name) for name in ("gate", "mix", "branch") if hasattr(module, name)),
            None,
        )
        if function is None or not isinstance(module, Gate | Mixer | Replacement):
            return
        with untouched(module, args[0]), case.rectified.watch():
            function(args[0])

    handle = case.module.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _gradients(
    model: nn.Module,
    cases: Sequence[_Case],
    batch: tuple[Tensor, Tensor],
    loss: Loss,
) -> dict[str, float | None]:
    """The size of the gradient of each mechanism relative to that of the rest of the network."""
    own = {case.name: list(case.module.parameters()) for case in cases}
    inside = {id(p) for parameters in own.values() for p in parameters}
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not any(id(p) not in inside for p in parameters):
        return dict.fromkeys(own)
    images, labels = batch
    with torch.enable_grad():
        found = torch.autograd.grad(loss(model(images), labels), parameters, allow_unused=True)
    slopes = {
        id(p): torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters, found, strict=True)
    }
    host = _size([g for key, g in slopes.items() if key not in inside])
    sizes = {
        name: _size([slopes[id(p)] for p in parameters if id(p) in slopes])
        for name, parameters in own.items()
    }
    return {name: None if size is None or not host else size / host for name, size in sizes.items()}


def _size(gradients: Sequence[Tensor]) -> float | None:
    """Root of the mean square of all entries; None without any."""
    count = sum(g.numel() for g in gradients)
    if not count:
        return None
    return float((sum(float(g.double().square().sum()) for g in gradients) / count) ** 0.5)


def _of_parts(case: _Case, limits: Thresholds) -> Iterator[Check]:
    for name, tally in case.tallies.items():
        added = name == "added"
        unit = tally.size if added else 1.0
        if not unit:
            continue  # nothing is added: its scale says why
        if not added and tally.bounded:
            share = tally.edge_share
            yield Check("saturated", name, share, limits.saturated, share >= limits.saturated)
        if (tally.mean[0, 0] if added else tally.mean).numel() > 1:
            within = tally.spread_within / unit
            yield Check("collapsed", name, within, limits.collapsed, within < limits.collapsed)
        between = tally.spread_between / unit
        yield Check("constant", name, between, limits.constant, between < limits.constant)


def _of_module(case: _Case, gradient: float | None, limits: Thresholds) -> Iterator[Check]:
    for name, distance in _distances(case.module):
        yield Check("stuck", name, distance, limits.stuck, distance < limits.stuck)
    dead = case.rectified.dead_share
    if dead is not None:
        yield Check("dead", "", dead, limits.dead, dead >= limits.dead)
    if gradient is not None:
        yield Check("starved", "", gradient, limits.starved, gradient < limits.starved)


def _distances(module: nn.Module) -> Iterator[tuple[str, float]]:
    """How far from their start strengths and scales are, and weights that start as zeros."""
    if not isinstance(module, Attention):
        return
    with torch.random.fork_rng(devices=[]):
        fresh = type(module)(module.channels, init=module.init, **module.settings())
    starts = dict(fresh.named_parameters())
    for name, parameter in module.named_parameters():
        start = starts[name].detach().to(parameter)
        scalar = name.endswith(("strength", "scale")) and start.dim() == 0
        if scalar or (name.endswith("weight") and not start.any()):
            yield name, float((parameter.detach() - start).abs().max())


def _of_change(change: float | None, limits: Thresholds) -> Iterator[Check]:
    if change is not None:
        yield Check("redundant", "", change, limits.redundant, change <= limits.redundant)
