"""Each gate on each shape: times of all rivals in turns, and memory."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gatebench import positions
from gatebench.alone import again, calls_of
from gatebench.clock import FEW, ROUNDS, Contender, Rounds, quartiles, ratios, take_turns
from gatebench.hosts import FORMATS, ON_CARD, ON_PROCESSOR, Case
from gatebench.memory import footprint
from gatebench.rivals import (
    ALONE,
    COMPILED,
    COPY,
    EAGER,
    FOVEATE,
    KEYS,
    LAYERS,
    Rival,
    compiled_rivals,
    eager_rivals,
    layers,
    on_path,
    products,
    readings,
    step,
)
from gatebench.targets import LARGE
from gatebench.targets import ON_CARD as ON_CARD_SHAPE

MODES = ("inference", "training")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Scope:
    """What is measured."""

    shapes: Sequence[str]
    formats: Sequence[str]
    hosts: Sequence[Case]
    compiled: Sequence[str] = ()
    """Shapes on which the compiled rivals take part."""
    keys: Sequence[str] = KEYS
    positions: Sequence[str] = positions.KEYS
    """Mechanisms that attend between positions."""
    dtype: torch.dtype = torch.float32
    rounds: Rounds = ROUNDS


ALL = (*LARGE, "1x256x56x56", "32x512x28x28", "2x40x13x17")
FULL = Scope(ALL, ("contiguous", "channels_last"), ON_PROCESSOR, compiled=LARGE)
QUICK = Scope((LARGE[0], LARGE[2]), ("contiguous",), (), keys=COMPILED, positions=(), rounds=FEW)
CARD = Scope(
    (ON_CARD_SHAPE, "64x512x28x28", "64x1024x14x14", "64x2048x7x7", LARGE[0]),
    ("channels_last",),
    ON_CARD,
    compiled=(ON_CARD_SHAPE,),
    dtype=torch.bfloat16,
)


def sides(shape: str) -> Shape:
    """Sizes of a shape that is written with crosses.

    Example:
        >>> sides("2x40x13x17")
        (2, 40, 13, 17)
    """
    return tuple(int(side) for side in shape.split("x"))


def times(scope: Scope, device: torch.device) -> Iterator[dict[str, Any]]:
    """A record for each gate, shape, format and mode."""
    for shape in scope.shapes:
        for layout in scope.formats:
            x = _map(shape, layout, scope.dtype, device)
            for key in scope.keys:
                for mode in MODES:
                    compiled = key in COMPILED and shape in scope.compiled
                    found = _times_of(key, mode, x, compiled=compiled, rounds=scope.rounds)
                    names = {"mechanism": key, "mode": mode, "shape": shape, "format": layout}
                    yield {**names, **found}


def memory(scope: Scope, device: torch.device) -> Iterator[dict[str, Any]]:
    """A record for each gate, on the first shape and format."""
    x = _map(scope.shapes[0], scope.formats[0], scope.dtype, device)
    for key in scope.keys:
        rivals, _ = _rivals(key, x)
        names = {"mechanism": key, "shape": scope.shapes[0], "format": scope.formats[0]}
        yield {**names, "rivals": {rival.name: footprint(rival, x) for rival in rivals}}


def _times_of(
    key: str, mode: str, x: Tensor, *, compiled: bool, rounds: Rounds
) -> dict[str, dict[str, Any] | int]:
    rivals, missing = _rivals(key, x)
    if compiled:
        rivals += compiled_rivals(rivals)
    if key in COMPILED:
        rivals += products(x)
    own, training = rivals[0], mode == "training"
    calls = calls_of(step(own, x, training=training))
    target = torch.empty_like(x)
    contenders = [Contender(COPY, lambda: target.copy_(x), nullcontext)]
    for rival in rivals:
        call = step(rival, x, training=training)
        try:
            call()
        except ValueError as error:  # textbook norms refuse to train on a single value
            if rival.name in (FOVEATE, EAGER):
                raise
            missing[rival.name] = f"{type(error).__name__}: {error}"
            continue
        contenders.append(Contender(rival.name, call, partial(on_path, rival)))
    if key in COMPILED:
        multiply = layers(key, own.module, x, training=training)
        bounds = {LAYERS: multiply, **readings(x), ALONE: again(calls)}
        contenders += [Contender(n, call, nullcontext) for n, call in bounds.items() if call]
    found = take_turns(contenders, x.device, rounds)
    names = [name for name in found if name != COPY]
    return {
        "milliseconds": {name: quartiles(values) for name, values in found.items()},
        "copies": {name: ratios(found, name, COPY) for name in names},
        "slower": {name: ratios(found, name, FOVEATE) for name in names if name != FOVEATE},
        "rounds": len(found[COPY]),
        "calls": len(calls),
        "missing": missing,
    }


def _rivals(key: str, x: Tensor) -> tuple[list[Rival], dict[str, str]]:
    torch.manual_seed(0)
    rivals, missing = eager_rivals(key, x.shape)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    for rival in rivals:
        rival.module.to(x.device, x.dtype, memory_format=layout)
    return rivals, missing


def _map(shape: str, layout: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(sides(shape), device=device, dtype=dtype)
    return x.to(memory_format=FORMATS[layout])
