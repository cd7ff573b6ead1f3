"""What an insertion would do: its sites, what each would cost, and what is refused and why."""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from foveate.cost import count_parameters, human, meta_cost
from foveate.errors import InvalidTypeError, InvalidValueError, check_choice
from foveate.insertion.places import NAMED_PLACES, PLACES, Anatomy, Spot
from foveate.insertion.trace import trace
from foveate.mechanisms.base import INITS, Replacement
from foveate.printing import as_text
from foveate.registry import create, get_mechanism, list_mechanisms

At = str | Callable[[str, nn.Module], bool]
"""Which sites to take: a glob or regular expression on module names, or a predicate."""

_CHAIN_NOTE = (
    "this host has no residual addition: '{where}' is taken at its units of convolution, "
    "normalisation and activation"
)


@dataclass(frozen=True)
class Site:
    """A module of the host, and the side of it on which attention acts."""

    name: str
    side: str
    channels: int
    height: int
    width: int
    calls: int
    parameters: int
    flops: int
    target: str = ""
    """On the skip of a block: the module in it with which the branch begins."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the mechanism is built with to fit here, beside the options of the plan."""
    ends_block: bool = False
    """Whether the host adds a shortcut to what comes out and takes a ReLU of it, nothing else."""

    @property
    def label(self) -> str:
        """Side and module as a person reads them."""
        side = {"instead": "instead of", "skip": "on the skip of"}.get(self.side, self.side)
        return f"{side} {self.name or 'the model'}"


@dataclass(frozen=True)
class Refusal:
    """A place of the host that cannot take the mechanism."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """Sites in the order in which the host reaches them, for one mechanism at one place."""

    host: str
    mechanism: str
    where: str
    init: str
    options: dict[str, Any]
    sites: tuple[Site, ...]
    refused: tuple[Refusal, ...]
    host_parameters: int
    host_flops: int
    notes: tuple[str, ...] = field(default=())

    @property
    def parameters(self) -> int:
        """Parameters that the mechanism would add, less those of what it replaces."""
        return sum(site.parameters for site in self.sites)

    @property
    def flops(self) -> int:
        """Multiply-adds that it would add to one forward pass of one image, less the replaced."""
        return sum(site.flops for site in self.sites)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able values, totals included."""
        return {**asdict(self), "parameters": self.parameters, "flops": self.flops}

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        title = f"{self.mechanism} in {self.host}, where={self.where}, init={self.init}"
        table = Table(title=title, title_justify="left", show_footer=True)
        table.add_column("site", "total", overflow="fold")
        table.add_column("channels", justify="right")
        table.add_column("H x W", justify="right")
        table.add_column("+ parameters", human(self.parameters), justify="right")
        table.add_column("+ FLOPs", human(self.flops), justify="right")
        total = 100 * self.parameters / max(1, self.host_parameters)
        table.add_column("share", f"{total:.2f} %", justify="right")
        for site in self.sites:
            share = 100 * site.parameters / max(1, self.host_parameters)
            table.add_row(
                site.label + f" ({site.calls} calls)" * (site.calls > 1),
                str(site.channels),
                f"{site.height} x {site.width}",
                human(site.parameters),
                human(site.flops),
                f"{share:.2f} %",
            )
        yield table
        yield (
            f"host: {human(self.host_parameters)} parameters, {human(self.host_flops)} FLOPs "
            "(multiply-adds); share: of the host's parameters"
        )
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"refused: {r.name or 'the model'}: {r.reason}" for r in self.refused)


def plan(
    model: nn.Module,
    mechanism: str,
    *,
    where: str | None = None,
    at: At | None = None,
    init: str = "identity",
    example: Any = None,
    **options: Any,
) -> Plan:
    """Print what :func:`insert` would do with the same arguments, and change nothing.

    Args:
        model: Any convolutional network.
        mechanism: A key of :func:`foveate.list_mechanisms`.
        where: A place by meaning, by default that of the mechanism's paper; or ``"after"`` or
            ``"before"`` the modules that ``at`` names.
        at: Narrows the sites: a glob or regular expression that a module's name, or the name of a
            module around it, must match; or a function of name and module.
        init: ``"identity"`` or ``"paper"``.
        example: Input to find the sites with: a tensor ``(B, C, H, W)``, a tuple of arguments or a
            dict of keyword arguments. By default zeros of 224 x 224 pixels, or of the first of some
            common sizes that the model takes.
        options: Keyword arguments of the mechanism.

    Returns:
        The plan; ``print`` shows it again, ``to_dict`` makes it JSON-able.

    Raises:
        ValueError: If a name is unknown, or no site is left; the message says which and why.
        TypeError: If the mechanism has no such option.
    """
    from rich.console import Console

    made = make_plan(model, mechanism, where=where, at=at, init=init, example=example, **options)
    Console().print(made)
    return made


def make_plan(
    model: nn.Module,
    mechanism: str,
    *,
    where: str | None = None,
    at: At | None = None,
    init: str = "identity",
    example: Any = None,
    **options: Any,
) -> Plan:
    """The plan of :func:`plan`, without printing it."""
    cls = get_mechanism(mechanism)
    where = check_choice("place", where or str(getattr(cls, "place", "residual")), _FINDERS)
    check_choice("init", init, INITS)
    _check_host(model)
    _check_place(cls, where, at)
    record, batch = _trace(model, example)
    anatomy = Anatomy(record)
    found, refused = _group(_FINDERS[where](anatomy), anatomy)
    if not found and not refused:
        raise InvalidValueError(_nothing(model, where, anatomy))
    found, refused = _narrow(model, at, where, anatomy, found, refused)

    @cache  # most sites of a host have the shape of another
    def cost(
        channels: int, own: tuple[tuple[str, Any], ...], *shapes: tuple[int, ...]
    ) -> tuple[int, int]:
        fitting = {**dict(own), **options}
        return meta_cost(lambda: create(mechanism, channels, init=init, **fitting), *shapes)

    sites: list[Site] = []
    unfit: list[Refusal] = []
    for (name, side), spots in found.items():
        try:
            sites.append(_site(name, side, spots, mechanism, init, options, cost))
        except InvalidValueError as error:
            unfit.append(Refusal(name, str(error)))
    if not sites and len({refusal.reason for refusal in unfit}) == 1:
        raise InvalidValueError(unfit[0].reason)  # the option is wrong, not the sites
    refused += unfit
    plain = not anatomy.residuals and where in ("residual", "pre", "post", "conv3x3")
    return Plan(
        host=type(model).__name__,
        mechanism=mechanism,
        where=where,
        init=init,
        options=options,
        sites=tuple(sites),
        refused=tuple(refused),
        host_parameters=count_parameters(model),
        host_flops=record.flops // batch,
        notes=(_CHAIN_NOTE.format(where=where),) if plain else (),
    )


_FINDERS = {**PLACES, **NAMED_PLACES}


def _check_place(cls: type[nn.Module], where: str, at: At | None) -> None:
    if where in NAMED_PLACES and at is None:
        raise InvalidValueError(f"where='{where}' needs at=, the names of modules")
    if where == "replace" and not issubclass(cls, Replacement):
        others = [key for key in list_mechanisms() if issubclass(get_mechanism(key), Replacement)]
        raise InvalidValueError(
            f"{cls.__name__} cannot stand in place of a convolution; these can: {', '.join(others)}"
        )


def _check_host(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise InvalidTypeError(
            f"model must not be compiled yet, but got {type(model).__name__}: insert, then compile"
        )


def _group(
    spots: list[Spot], anatomy: Anatomy
) -> tuple[dict[tuple[str, str], list[Spot]], list[Refusal]]:
    """Spots by module and side; a module that is also called elsewhere is refused."""
    grouped: dict[tuple[str, str], list[Spot]] = defaultdict(list)
    refused: list[Refusal] = []
    for spot in spots:
        if spot.call is None:
            refused.append(Refusal(spot.node.call.name if spot.node.call else "", spot.reason))
        elif spot not in grouped[spot.call.name, spot.side]:
            grouped[spot.call.name, spot.side].append(spot)
    for (name, side), same in list(grouped.items()):
        reason = _clash(same, anatomy)
        if reason:
            refused.append(Refusal(name, reason))
            del grouped[name, side]
    return grouped, refused


def _clash(spots: list[Spot], anatomy: Anatomy) -> str:
    """Why one module cannot serve all these spots; empty if it can."""
    shapes = sorted({tuple(spot.node.shape) for spot in spots})
    if any(len(shape) != 4 for shape in shapes):
        return f"its value has shape {shapes[0]}, not (B, C, H, W)"
    if len({shape[1] for shape in shapes}) > 1:
        return f"called with different channels: {sorted({shape[1] for shape in shapes})}"
    module = spots[0].call.module if spots[0].call else None
    calls = sum(call.module is module for call in anatomy.calls)
    if calls != len({id(spot.call) for spot in spots}):
        return f"also called elsewhere: {len(spots)} of its {calls} calls are such a place"
    return ""


def _narrow(
    model: nn.Module,
    at: At | None,
    where: str,
    anatomy: Anatomy,
    found: dict[tuple[str, str], list[Spot]],
    refused: list[Refusal],
) -> tuple[dict[tuple[str, str], list[Spot]], list[Refusal]]:
    if at is None:
        return found, refused
    modules = dict(model.named_modules())

    def matches(name: str) -> bool:
        return _matches(at, name, modules, around=where not in NAMED_PLACES)

    kept = {key: spots for key, spots in found.items() if matches(key[0])}
    left = [r for r in refused if matches(r.name)]
    if kept or left:
        return kept, left
    named = [name for name in modules if matches(name)]
    if named and not any(call.name in named for call in anatomy.calls):
        raise InvalidValueError(f"{at=} matches '{named[0]}', which this input never reaches")
    names = [name for name, _ in found]
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    raise InvalidValueError(f"{at=} matches none of the sites: {shown}")


def _matches(at: At, name: str, modules: dict[str, nn.Module], *, around: bool) -> bool:
    """Whether ``at`` takes a module, by its name or, if ``around``, that of one around it."""
    if not isinstance(at, str):
        return bool(at(name, modules[name]))
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)] if around else [name]
    try:
        pattern = re.compile(at)
    except re.error:  # a glob such as "*.bn2"
        return any(fnmatch.fnmatchcase(name, at) for name in names)
    return any(fnmatch.fnmatchcase(name, at) or pattern.fullmatch(name) for name in names)


def _site(
    name: str,
    side: str,
    spots: list[Spot],
    mechanism: str,
    init: str,
    options: dict[str, Any],
    cost: Callable[..., tuple[int, int]],
) -> Site:
    channels, height, width = spots[0].node.shape[1:]
    own = dict(spots[0].options)
    if getattr(get_mechanism(mechanism), "sized", False):
        own["size"] = (height, width)
    own = {key: value for key, value in own.items() if key not in options}
    if side == "beside" and init == "paper":
        side = "instead"
    flops = 0
    for spot in spots:
        shapes = [spot.node.shape]
        if side == "beside" and spot.call is not None and spot.call.output is not None:
            shapes.append(spot.call.output.shape)
        one_image = ((1, *shape[1:]) for shape in shapes)
        parameters, once = cost(channels, tuple(own.items()), *one_image)
        flops += once
    saved = _conv_cost(spots) if side == "instead" else (0, 0)
    return Site(
        name,
        side,
        channels,
        height,
        width,
        len(spots),
        parameters - saved[0],
        flops - saved[1],
        spots[0].target,
        own,
        side == "after" and all(spot.node.ends_block for spot in spots),
    )


def _conv_cost(spots: list[Spot]) -> tuple[int, int]:
    """Parameters and multiply-adds of the convolution that is to be replaced."""
    calls = [spot.call for spot in spots if spot.call is not None]
    flops = 0
    for call in calls:
        assert call.output is not None
        flops += call.module.get_parameter("weight")[0].numel() * call.output.shape[1:].numel()
    return count_parameters(calls[0].module), flops


def _nothing(model: nn.Module, where: str, anatomy: Anatomy) -> str:
    others = {place: len(_group(find(anatomy), anatomy)[0]) for place, find in PLACES.items()}
    usable = ", ".join(f"{place} ({count})" for place, count in others.items() if count)
    return f"{type(model).__name__} has no place '{where}'; " + (
        f"it has: {usable}" if usable else "no feature map (B, C, H, W) was seen in it"
    )


_SIZES = (224, 32, 28, 64, 96, 128, 256)


def _trace(model: nn.Module, example: Any) -> tuple[Any, int]:
    """The trace of one forward pass, and the images in it."""
    if example is not None:
        example = example[:1] if isinstance(example, Tensor) and example.ndim == 4 else example
        first = example[0] if isinstance(example, tuple) and example else example
        batch = len(first) if isinstance(first, Tensor) and first.ndim == 4 else 1
        return trace(model, example), max(1, batch)
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InvalidValueError(f"{type(model).__name__} has no 2-D convolution; pass example=")
    weight = convolution.weight
    failure: Exception | None = None
    for size in _SIZES:
        shape = (1, convolution.in_channels, size, size)
        try:
            return trace(model, torch.zeros(shape, dtype=weight.dtype, device=weight.device)), 1
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            failure = failure or error
    reason = str(failure).strip().splitlines()[0] if str(failure).strip() else repr(failure)
    raise InvalidValueError(
        f"{type(model).__name__} did not run on zeros of shape (1, {convolution.in_channels}, "
        f"{_SIZES[0]}, {_SIZES[0]}) or smaller: {reason}; pass example="
    ) from failure
