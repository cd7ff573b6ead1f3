"""Checkpoints of others into a model that has foveate's attention."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValueError, check_choice
from foveate.weights.fitting import Draft
from foveate.weights.layouts import LAYOUTS, Layout, layout_names
from foveate.weights.matching import (
    OWN,
    Group,
    Reading,
    Sites,
    read_as,
    read_as_own,
    recognise,
)
from foveate.weights.reading import read_tensors, unwrapped
from foveate.weights.report import Loaded, shortened

HEADS = ("match", "skip")


def load_weights(
    model: nn.Module,
    weights: str | Path | Mapping[str, Any],
    *,
    layout: str = "auto",
    head: str = "match",
    strict: bool = True,
) -> Loaded:
    """Load a checkpoint with anyone's attention into a model with foveate's.

    The host's names must be those of the model. Those of the attention may be of any of the
    layouts known here, ours included; each attention module of the checkpoint is met by the one
    that the model has in the same block. The identity form becomes the paper's: its strength is
    set to one. A model whose attention the checkpoint lacks altogether keeps it as it is.

    All is checked before the first tensor is copied, and nothing in a file is executed.

    Args:
        model: A network, with or without attention.
        weights: A safetensors file, a file of ``torch.save``, or a state dict; it may be nested,
            as training scripts do, and its names may have the prefix of a wrapper.
        layout: Whose names the attention has, such as ``"official"`` or ``"timm"``; by default
            those that explain most of the checkpoint.
        head: ``"skip"`` leaves a classifier as it is whose shape is another.
        strict: Refuse a checkpoint that lacks tensors of the model or has others, rather than
            report them.

    Returns:
        What was loaded, renamed, filled, skipped, missing and unexpected.

    Raises:
        ValueError: If the file cannot be read, or does not fit; the message says where and why.
        TypeError: If ``weights`` is neither a path nor a mapping.
        ImportError: If the file needs safetensors and it is not installed.
    """
    check_choice("layout", layout, ["auto", OWN, *layout_names()])
    check_choice("head", head, HEADS)
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    if any(tensor.is_meta for tensor in own.values()):
        raise InvalidValueError("model must not be on the meta device, which holds no values")
    given = unwrapped(read_tensors(weights), own)
    sites = Sites(model)
    names, groups, layouts = _read(given, sites, layout)
    classifier = _classifier(model, sites)
    draft = Draft(own, given)
    draft.add_host(sites.host, names, classifier if head == "skip" else "")
    for site, module in sites.modules.items():
        if site in groups:
            chosen = LAYOUTS.get(module.key, {}).get(layouts[module.key], Layout({}))
            draft.add_attention(site, module, groups[site], chosen)
        else:
            draft.missing += [name for name in own if sites.around(name) == site]
    unexpected = [name for name in given if name not in draft.used]
    _refuse_problems(draft, classifier)
    if strict:
        _refuse_others(unexpected, sites)
        _refuse_gaps([n for n in draft.missing if groups or sites.around(n) is None])
    with torch.no_grad():
        for name, value in draft.values.items():
            own[name].copy_(value)
        for name, number in draft.filled.items():
            own[name].fill_(number)
    return Loaded(
        layouts=layouts,
        loaded=tuple(draft.values),
        renamed={n: theirs for n, theirs in draft.sources.items() if n != theirs},
        filled=draft.filled,
        skipped=tuple(draft.skipped),
        missing=tuple(draft.missing),
        unexpected=tuple(unexpected),
    )


def _read(
    given: Mapping[str, Tensor], sites: Sites, layout: str
) -> tuple[dict[str, str], dict[str, Group], dict[str, str]]:
    """The checkpoint's names by the host's, its attention by ours, and the layout of each."""
    names = {name: name for name in given}
    groups: dict[str, Group] = {}
    layouts: dict[str, str] = {}
    for key in sites.mechanisms():
        readings = dict(_readings(names, sites, key, layout))
        if not readings:
            continue
        best = max(readings, key=lambda name: readings[name].matched)
        if readings[best].groups:
            taken = {n for group in readings[best].groups.values() for n in group.tensors.values()}
            names = {n: theirs for n, theirs in readings[best].names.items() if theirs not in taken}
            groups |= readings[best].groups
            layouts[key] = best
    if layout not in ("auto", *layouts.values()) and sites.modules:
        raise _not_that_layout(layout, sites)
    return names, groups, layouts


def _readings(
    names: Mapping[str, str], sites: Sites, key: str, layout: str
) -> Iterator[tuple[str, Reading]]:
    if layout in ("auto", OWN):
        yield OWN, read_as_own(names, sites, key)
    for name, known in LAYOUTS.get(key, {}).items():
        if layout in ("auto", name):
            yield name, read_as(known, names, sites, key)


def _not_that_layout(layout: str, sites: Sites) -> InvalidValueError:
    known = {key: [OWN, *LAYOUTS.get(key, {})] for key in sites.mechanisms()}
    listed = "; ".join(f"{key}: {', '.join(names)}" for key, names in known.items())
    return InvalidValueError(
        f"the checkpoint has no attention with the names of layout '{layout}' where the model has "
        f"attention; known for it are {listed}"
    )


def _classifier(model: nn.Module, sites: Sites) -> str:
    """The last layer of the host that has a matrix of weights."""
    layers = [
        name
        for name, module in model.named_modules()
        if name in sites.places and name and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return layers[-1] if layers else ""


def _refuse_problems(draft: Draft, classifier: str) -> None:
    if not draft.problems:
        return
    more = f"; and {len(draft.problems) - 2} more" if len(draft.problems) > 2 else ""
    of_head = any(f"the model's '{classifier}." in problem for problem in draft.problems)
    hint = f"; head='skip' leaves '{classifier}' as it is" if of_head else ""
    raise InvalidValueError("; ".join(draft.problems[:2]) + more + hint)


def _refuse_others(unexpected: list[str], sites: Sites) -> None:
    if not unexpected:
        return
    key, layout = recognise({name: name for name in unexpected}) or ("", "")
    looks = f"; they look like '{key}' with the names of '{layout}'" if key else ""
    where = (
        ", at other places than the model's" if key in sites.mechanisms() else ": insert it first"
    )
    raise InvalidValueError(
        f"the model has no place for {len(unexpected)} tensors of the checkpoint "
        f"({shortened(unexpected)}){looks}{where if key else ''}; strict=False leaves them out"
    )


def _refuse_gaps(missing: list[str]) -> None:
    if missing:
        raise InvalidValueError(
            f"the checkpoint lacks {len(missing)} tensors of the model ({shortened(missing)}); "
            "strict=False leaves them as they are"
        )
