"""What the kernels were built to reach, and whether a measurement reaches it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gatebench.position_forms import EINSUM, TEXTBOOK
from gatebench.positions import BOUNDS
from gatebench.rivals import (
    ALONE,
    EAGER,
    FOVEATE,
    LAYERS,
    NEAR,
    PRODUCTS,
    READING,
    TIMM_COMPILED,
    TIMM_EAGER,
    compiled,
)

LARGE = ("8x256x56x56", "8x512x28x28", "8x1024x14x14", "8x2048x7x7", "64x64x32x32")
ON_CARD = "64x256x56x56"
PASSES = {
    **dict.fromkeys([(key, "inference") for key in ("se", "eca", "coord", "gc", "cbam")], 2),
    **dict.fromkeys([(key, "training") for key in ("se", "eca", "gc")], 5),
    ("coord", "training"): 7,
    ("cbam", "training"): 8,
}
"""Readings and writings of a whole map that cannot be done without, if one sample fits in a cache.

A sample is read, weighed and written; backward its map and gradient are read, and the gradient of
the map is written. A normalisation over all samples ends what can stay in the cache: `coord` reads
map and gradient again behind it, `cbam` also the map itself backward.
"""
READINGS = {
    **dict.fromkeys([(key, "inference") for key in ("se", "eca", "coord", "gc")], (0, 1)),
    ("cbam", "inference"): (0, 2),
    **dict.fromkeys([(key, "training") for key in ("se", "eca", "coord", "gc")], (1, 2)),
    ("cbam", "training"): (1, 4),
}
"""Of a map or its gradient, from memory and nearby, that a gate needs beside its products.

Forward the map is read before it can be weighed, by `cbam` twice, the second time weighed by the
gates of its channels. Backward map and gradient are read before the gradient of the map can be
written; the map comes from memory for that, all else is taken to lie in a cache. `cbam` reads the
map once more then, behind the normalisation over all samples.
"""
TIMM = (TIMM_EAGER, TIMM_COMPILED)
Record = dict[str, Any]


class Value(NamedTuple):
    """What was measured, where, and what explains it."""

    value: float
    where: str
    limit: float | None = None
    """What the products, the layers and the readings allow there: :func:`reach`."""
    alone: float | None = None
    """What the kernels alone would reach there: :func:`alone`."""
    same: bool = False
    """Whether foveate called no kernel, so that it ran the operations it is measured against."""


Values = Iterator[Value]


@dataclass(frozen=True)
class Target:
    """A bound that each of some values must keep."""

    what: str
    bound: float
    unit: str
    values: Callable[[Record], Values]
    least: bool = True
    """Whether the bound is the least that is allowed, or the most."""

    def met(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return value >= self.bound if self.least else value <= self.bound

    def beyond(self, value: float, limit: float) -> bool:
        """Whether a limit misses the bound too, and the value does not show that it is no limit."""
        refuted = value > limit if self.least else value < limit
        return not self.met(limit) and not refuted


@dataclass(frozen=True)
class Verdict:
    """A target and the value that comes closest to missing it, or misses it most."""

    target: Target
    worst: Value | None
    misses: int
    of: int
    beyond: int = 0
    """Misses where the products, the layers and the readings alone would miss too."""
    same: int = 0
    """Misses of operations against themselves."""

    @property
    def text(self) -> str:
        if not self.of:
            return "not measured"
        if not self.misses:
            return "met"
        notes = {"out of reach": self.beyond, "the same operations": self.same}
        told = "".join(f", {count} of them {note}" for note, count in notes.items() if count)
        return f"not met, {self.misses} of {self.of} miss{told}"

    @property
    def demand(self) -> str:
        relation = "at least" if self.target.least else "at most"
        return f"{relation} {self.target.bound:g}{self.target.unit}"

    @property
    def measured(self) -> tuple[str, str, str]:
        """The worst value, and what its kernels alone and the ceiling would be there."""
        if self.worst is None:
            return "", "", ""
        value, _, limit, alone, _ = self.worst
        return self._worded(value), self._worded(alone), self._worded(limit)

    @property
    def where(self) -> str:
        return "" if self.worst is None else self.worst.where

    def _worded(self, value: float | None) -> str:
        return "" if value is None else f"{value:.3g}{self.target.unit}"


def judge(targets: Sequence[Target], result: Record) -> list[Verdict]:
    """Each target with its worst value."""
    verdicts = []
    for target in targets:
        values = sorted(target.values(result), key=lambda v: v.value, reverse=not target.least)
        missed = [value for value in values if not target.met(value.value)]
        beyond = sum(v.limit is not None and target.beyond(v.value, v.limit) for v in missed)
        same = sum(value.same for value in missed)
        worst = values[0] if values else None
        verdicts.append(Verdict(target, worst, len(missed), len(values), beyond, same))
    return verdicts


def entries(
    result: Record, keys: Sequence[str] | None, mode: str | None, shapes: Sequence[str] | None
) -> Iterator[tuple[Record, str]]:
    """Measurements of these mechanisms, mode and shapes (None for all), with their names."""
    for entry in result["gates"]:
        wanted = ((keys, "mechanism"), (mode and [mode], "mode"), (shapes, "shape"))
        if all(choice is None or entry[field] in choice for choice, field in wanted):
            names = (entry[field] for field in ("mechanism", "mode", "shape", "format"))
            yield entry, " ".join(names)


def median(entry: Record, rival: str) -> float:
    """Milliseconds of a rival."""
    return entry["milliseconds"][rival][1]


def _over(
    keys: str, mode: str, shapes: Sequence[str] = LARGE, rivals: Sequence[str] = TIMM
) -> Callable[[Record], Values]:
    def values(result: Record) -> Values:
        for entry, where in entries(result, keys.split(), mode, shapes):
            ratio = speed(entry, rivals)
            if ratio is not None:
                yield Value(ratio, where, reach(entry, rivals), alone(entry, rivals))

    return values


def reach(entry: Record, rivals: Sequence[str] = TIMM) -> float | None:
    """How many times as long as the products, layers and readings the fastest of rivals takes.

    The median of the rival, and the lower quartiles of what a gate cannot do without. None where
    these were not measured.
    """
    found = entry["milliseconds"]
    theirs = [median(entry, name) for name in rivals if name in found]
    bounds, layers, reads = (
        [found[name][0] for name in names if name in found]
        for names in (PRODUCTS, (LAYERS,), (READING, NEAR))
    )
    if not theirs or not bounds:
        return None
    counts = READINGS.get((entry["mechanism"], entry["mode"]), (0, 0))
    reading = sum(n * time for n, time in zip(counts, reads, strict=False))
    return min(theirs) / (min(bounds) + sum(layers) + reading)


def speed(entry: Record, rivals: Sequence[str]) -> float | None:
    """How many times as long as foveate the fastest of some rivals takes; None without any."""
    own = [entry["slower"][rival][1] for rival in rivals if rival in entry["slower"]]
    return min(own, default=None)


def alone(entry: Record, rivals: Sequence[str] = TIMM) -> float | None:
    """The same if a step of foveate were its kernels and nothing else, in memory that is there."""
    found, part = speed(entry, rivals), entry["slower"].get(ALONE)
    return None if found is None or part is None else found / part[1]


def ceiling(entry: Record) -> float | None:
    """How many times as fast as the faster timm a gate could be that took the time of its bytes."""
    passes = PASSES.get((entry["mechanism"], entry["mode"]))
    rivals = [entry["copies"][rival][1] for rival in TIMM if rival in entry["copies"]]
    return None if passes is None or not rivals else min(rivals) / (passes / 2)


def _over_eager(result: Record) -> Values:
    for entry, where in entries(result, None, None, None):
        yield Value(entry["slower"][EAGER][1], where, same=not entry["calls"])


def _copies(result: Record) -> Values:
    for entry, where in entries(result, ["cbam"], "training", LARGE[:1]):
        yield Value(entry["copies"][FOVEATE][1], where)


def _saved(result: Record) -> Values:
    for entry in result["memory"]:
        if FOVEATE in entry["rivals"]:
            found = entry["rivals"][FOVEATE]
            yield Value(max(found["saved"], 1 + found["held"]), entry["mechanism"])


def _added(gate: str, mode: str) -> Callable[[Record], Values]:
    def values(result: Record) -> Values:
        for entry in result["hosts"]:
            added = entry.get("added_percent", {})
            if entry.get("mode") == mode and f"foveate {gate}" in added:
                yield Value(added[f"foveate {gate}"][1], entry["format"])

    return values


def _over_form(key: str, form: str) -> Callable[[Record], Values]:
    """How many times as long a textbook form takes, compiled or not."""

    def values(result: Record) -> Values:
        for entry, where in _positions(result, key):
            ratio = speed(entry, [form, compiled(form)])
            if ratio is not None:
                yield Value(ratio, where, _products_reach(entry, (form, compiled(form))))

    return values


def _products_reach(entry: Record, forms: Sequence[str]) -> float | None:
    """How many times as long as the products that every form pays the fastest of forms takes."""
    found = entry["milliseconds"]
    if not all(name in found for name in BOUNDS):
        return None
    return min(median(entry, form) for form in forms) / sum(found[name][0] for name in BOUNDS)


def _peak_of(key: str, form: str | None = None) -> Callable[[Record], Values]:
    """In multiples of the input, or of the peak of a textbook form."""

    def values(result: Record) -> Values:
        for entry, where in _positions(result, key):
            unit = 1.0 if form is None else entry["memory"][form]["peak"]
            yield Value(entry["memory"][FOVEATE]["peak"] / unit, where)

    return values


def _positions(result: Record, key: str) -> Iterator[tuple[Record, str]]:
    for entry in result["positions"]:
        if entry["mechanism"] == key:
            yield entry, entry["shape"]


def _over_bytes(result: Record) -> Values:
    for entry, where in entries(result, ["cbam"], "training", [ON_CARD]):
        yield Value(entry["copies"][FOVEATE][1] / (PASSES["cbam", "training"] / 2), where)


_HOST = "ResNet-50, {}: `{}` over the bare host"
ON_PROCESSOR_TARGETS = (
    Target("`cbam` training, 8x256x56x56", 8, "x", _over("cbam", "training", LARGE[:1])),
    Target("`cbam` training, four more shapes", 4, "x", _over("cbam", "training", LARGE[1:])),
    Target("`cbam` inference, five shapes", 2.5, "x", _over("cbam", "inference")),
    Target("`coord` and `gc` training, five shapes", 4, "x", _over("coord gc", "training")),
    Target("`se` and `eca` training, five shapes", 2, "x", _over("se eca", "training")),
    Target("`se` and `eca` inference, five shapes", 1.2, "x", _over("se eca", "inference")),
    Target("every gate and shape, against foveate eager", 0.95, "x", _over_eager),
    Target("`cbam` training, 8x256x56x56", 12, " copies", _copies, least=False),
    Target("saved for the backward pass", 1.1, " x input", _saved, least=False),
    *(
        Target(_HOST.format(mode, gate), bound, " %", _added(gate, mode), least=False)
        for mode, gate, bound in (
            ("training", "cbam", 10),
            ("training", "se", 4),
            ("inference", "cbam", 6),
            ("inference", "se", 3),
        )
    ),
    Target(
        "`danet_position` training, its peak",
        6,
        " x input",
        _peak_of("danet_position"),
        least=False,
    ),
    Target("`danet_position` training", 1.5, "x", _over_form("danet_position", TEXTBOOK)),
    Target("`criss_cross` training", 2, "x", _over_form("criss_cross", EINSUM)),
    Target(
        "`criss_cross` training, its peak",
        0.5,
        " of einsum's",
        _peak_of("criss_cross", EINSUM),
        least=False,
    ),
)
ON_CARD_TARGETS = (
    Target(
        f"`cbam` training, {ON_CARD}", 3, "x", _over("cbam", "training", [ON_CARD], [TIMM_EAGER])
    ),
    Target(f"`cbam` training, {ON_CARD}", 1.6, " x time of its bytes", _over_bytes, least=False),
    Target(_HOST.format("training", "cbam"), 12, " %", _added("cbam", "training"), least=False),
)


def targets_of(result: Record) -> Sequence[Target]:
    """The targets for the kind of device that a result is of."""
    return ON_CARD_TARGETS if result["environment"]["kind"] == "cuda" else ON_PROCESSOR_TARGETS
