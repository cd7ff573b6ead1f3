"""``foveate diagnose``."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli import looked_at as options
from foveate.errors import InvalidValueError, check_choice, check_positive, unknown

if TYPE_CHECKING:
    from foveate.explain import Thresholds


def diagnose(
    model: options.Model,
    data: Annotated[str, typer.Argument(help="digits, a torchvision set, or a folder of images.")],
    threshold: Annotated[
        list[str] | None, typer.Option(help="From where on a number is a finding: dead=0.8.")
    ] = None,
    weights: options.Weights = None,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    root: options.Root = None,
    trust_code: options.TrustCode = False,
    split: options.Split = "test",
    limit: options.Limit = 256,
    out: Annotated[Path | None, typer.Option(help="File for the JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say of each mechanism in a network whether it does anything, and what ails it."""
    from rich.console import Console

    import foveate

    check_positive(limit=limit)
    check_choice("split", split, ("train", "val", "test"))
    limits = _thresholds(threshold or [])
    subject = options.open_model(model, weights, classes, size, mean, std, trust_code=trust_code)
    batches = subject.batches(subject.load_data(data, root=root), limit=limit, split=split)
    found = foveate.diagnose(subject.module, batches, thresholds=limits)
    text = json.dumps(found.to_dict(), indent=2)
    if out is not None:
        options.write(out, text.encode())
    if as_json:
        print(text)
    else:
        Console().print(found)


def _thresholds(words: list[str]) -> "Thresholds":
    from foveate.explain import Thresholds

    names = [one.name for one in fields(Thresholds)]
    given: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in names:
            raise unknown("threshold", name, names)
        try:
            given[name] = _finite(value)
        except ValueError as error:
            raise InvalidValueError(
                f"a threshold is written {name}=NUMBER, but got '{word}'"
            ) from error
    return Thresholds(**given)


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(word)
    return value
