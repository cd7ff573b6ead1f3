"""Which tensor of a checkpoint is which of the model, by names alone."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from torch import nn

from foveate.mechanisms.base import Attention
from foveate.weights.layouts import LAYOUTS, Layout

_LEAVES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
OWN = "foveate"
"""The layout of a checkpoint with our own names."""


@dataclass
class Group:
    """One attention module of a checkpoint."""

    place: str = ""
    """The module of the host that it lies in or follows, if it is one."""
    tensors: dict[str, str] = field(default_factory=dict)
    """Names in the checkpoint by ours, relative to the attention."""
    seen: set[str] = field(default_factory=set)
    """Names of the layout that were met."""


@dataclass
class Reading:
    """A way to read the names of a checkpoint."""

    names: dict[str, str]
    """Names in the checkpoint by those that the model would have for them."""
    groups: dict[str, Group]
    """Attention of the checkpoint by that of the model."""
    matched: int
    """Tensors of the model, host and attention, that this reading finds."""


class Sites:
    """The attention of a model, and the host around it."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, Attention] = {}
        self.places = {""}
        for name, module in model.named_modules():
            if self.around(name) is not None:
                continue
            if isinstance(module, Attention):
                self.modules[name] = module
            else:
                self.places.add(name)
        self.host = [name for name in model.state_dict() if self.around(name) is None]

    def around(self, name: str) -> str | None:
        """The attention that a name lies in."""
        return next((site for site in self.modules if _within(name, site)), None)

    def of(self, key: str) -> list[str]:
        """Where the model has a mechanism."""
        return [name for name, module in self.modules.items() if module.key == key]

    def mechanisms(self) -> list[str]:
        """The mechanisms that the model has."""
        return list(dict.fromkeys(module.key for module in self.modules.values()))


def read_as(layout: Layout, names: Mapping[str, str], sites: Sites, key: str) -> Reading:
    """The names as ``layout`` gives them to a mechanism, which may shift those of the host."""
    readings = [
        _reading(layout, names, {}, sites, key),
        _reading(layout, *_take_out(_groups(layout, names), names), sites, key),
    ]
    return max(readings, key=lambda reading: reading.matched)  # the first where they are equal


def read_as_own(names: Mapping[str, str], sites: Sites, key: str) -> Reading:
    """The names as our own."""
    groups = {}
    for site in sites.of(key):
        inside = {_inside(n, site): original for n, original in names.items() if _within(n, site)}
        if not inside.keys().isdisjoint(sites.modules[site].state_dict()):
            groups[site] = Group(site, inside)
    return Reading(dict(names), groups, _matched(names, groups, sites))


def recognise(names: Mapping[str, str]) -> tuple[str, str] | None:
    """The mechanism and the layout that most of the names look like."""

    def likeness(found: tuple[str, str]) -> tuple[float, int]:
        layout = LAYOUTS[found[0]][found[1]]
        parts = len(set(layout.names.values()))
        groups = _groups(layout, names).values()
        return sum(len(g.tensors) * len(g.seen) / parts for g in groups), len(layout.names)

    best = max(((key, name) for key in LAYOUTS for name in LAYOUTS[key]), key=likeness)
    return best if likeness(best)[0] else None


def _reading(
    layout: Layout,
    names: Mapping[str, str],
    taken: Mapping[str, Group],
    sites: Sites,
    key: str,
) -> Reading:
    renamed = {_in_host(layout, name): original for name, original in names.items()}
    hosted = set(sites.host)
    left = {name: original for name, original in renamed.items() if name not in hosted}
    found = [*taken.values(), *_groups(layout, left).values()]
    groups = _pair(found, sites.of(key), sites.places)
    return Reading(renamed, groups, _matched(renamed, groups, sites))


def _matched(names: Collection[str], groups: Mapping[str, Group], sites: Sites) -> int:
    return sum(name in names for name in sites.host) + sum(
        len(group.tensors) for group in groups.values()
    )


def _in_host(layout: Layout, name: str) -> str:
    for pattern, replacement in layout.host:
        renamed, changed = re.subn(pattern, replacement, name)
        if changed:
            return renamed
    return name


def _groups(layout: Layout, names: Mapping[str, str]) -> dict[str, Group]:
    """Modules of a checkpoint whose names are those of the layout, and that have no others."""
    groups: dict[str, Group] = defaultdict(Group)
    foreign = []
    for name, original in names.items():
        for prefix, theirs, leaf in _splits(name):
            if theirs in layout.names:
                groups[prefix].tensors[_join(layout.names[theirs], leaf)] = original
                groups[prefix].seen.add(theirs)
                break
        else:
            foreign.append(name)
    for prefix, group in groups.items():
        group.place = prefix
    return {
        prefix: group
        for prefix, group in groups.items()
        if not any(_belongs(name, prefix, layout) for name in foreign)
    }


def _splits(name: str) -> Iterable[tuple[str, str, str]]:
    """Where a name may be cut: the module around, the name in it, and the tensor if apart."""
    parts = name.split(".")
    for start in range(len(parts)):
        prefix = ".".join(parts[:start])
        yield prefix, ".".join(parts[start:]), ""
        if parts[-1] in _LEAVES and start < len(parts) - 1:
            yield prefix, ".".join(parts[start:-1]), parts[-1]


def _belongs(name: str, prefix: str, layout: Layout) -> bool:
    """Whether a name would be of the same module as those of the layout under ``prefix``.

    It is if it lies beside them. Where the layout begins with modules of the block that has the
    attention, only what is in these modules counts.
    """
    if not _within(name, prefix):
        return False
    parts = [theirs.split(".") for theirs in layout.names]
    beside = any(len(part) == 1 for part in parts)
    return beside or _inside(name, prefix).split(".")[0] in {part[0] for part in parts}


def _take_out(
    groups: Mapping[str, Group], names: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, Group]]:
    """The host as it was before attention took numbers of its sequences, and this attention."""
    taken: dict[str, dict[int, Group]] = defaultdict(dict)
    for prefix, group in groups.items():
        parent, _, name = prefix.rpartition(".")
        if name.isdecimal():
            taken[parent][int(name)] = group
    for parent, numbered in taken.items():
        for number, group in numbered.items():
            before = number - sum(other <= number for other in numbered)
            group.place = f"{parent}.{max(0, before)}"
    inside = tuple(f"{parent}.{n}." for parent, numbered in taken.items() for n in numbered)
    shifted = {
        _shifted(name, taken): original
        for name, original in names.items()
        if not name.startswith(inside)
    }
    return shifted, {prefix: groups[prefix] for prefix in groups if f"{prefix}." in inside}


def _shifted(name: str, taken: Mapping[str, Mapping[int, Group]]) -> str:
    parts = name.split(".")
    for index, part in enumerate(parts):
        numbered = taken.get(".".join(parts[:index]), {})
        if numbered and part.isdecimal():
            parts[index] = str(int(part) - sum(other < int(part) for other in numbered))
    return ".".join(parts)


def _pair(groups: list[Group], sites: list[str], places: Collection[str]) -> dict[str, Group]:
    """Groups by site: those of one module of the host in order, if there are as many of both."""
    by_block: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        by_block[_block(group.place, places)].append(group)
    pairs: dict[str, Group] = {}
    for block in sorted(by_block, key=lambda name: -len(name.split("."))):
        free = [site for site in sites if site not in pairs and _within(site, block)]
        if len(free) == len(by_block[block]):
            pairs.update(zip(free, by_block[block], strict=True))
    return pairs


def _block(place: str, places: Collection[str]) -> str:
    """The innermost module of the host around a place."""
    parts = place.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts) + 1)]
    return list(takewhile(lambda prefix: prefix in places, prefixes))[-1]


def _within(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")


def _inside(name: str, module: str) -> str:
    return name.removeprefix(f"{module}.") if module else name


def _join(module: str, name: str) -> str:
    return f"{module}.{name}".strip(".")
