"""Arguments that the commands share which open a model."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.errors import InvalidValueError, require

if TYPE_CHECKING:
    from foveate.experiments.subject import Subject

Model = Annotated[
    str, typer.Argument(help="Folder of a run, its model.safetensors, or a model or host by name.")
]
Weights = Annotated[str | None, typer.Option(help="For a name: DEFAULT, or a file of weights.")]
Classes = Annotated[
    Path | None, typer.Option(help="For a name: file of class names; default: ImageNet's.")
]
Size = Annotated[int | None, typer.Option(help="Side of the images, in pixels.")]
Mean = Annotated[
    str | None, typer.Option(help="Mean of the pixels in [0, 1]: 0.5, or one for each channel.")
]
Std = Annotated[str | None, typer.Option(help="Their standard deviation, likewise.")]
Root = Annotated[Path | None, typer.Option(help="Where torchvision sets lie.")]
Limit = Annotated[int, typer.Option(help="Most images of the data.")]
Split = Annotated[str, typer.Option(help="train, val or test.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Let a file of your own name code as its host.")
]


def open_model(
    model: str,
    weights: str | None,
    classes: Path | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    *,
    trust_code: bool = False,
    tasks: Sequence[str] = ("classify",),
) -> "Subject":
    """The network that the arguments name, for one of some tasks."""
    require("torchvision", extra="train")
    require("pydantic", extra="train")
    from foveate.experiments.subject import open_subject

    subject = open_subject(
        model,
        weights=weights,
        classes=classes,
        image_size=size,
        mean=_numbers("mean", mean),
        std=_numbers("std", std),
        trust_code=trust_code,
    )
    if subject.task not in tasks:
        raise InvalidValueError(
            f"{model} was trained to {subject.task}, but this takes what was trained to "
            f"{' or '.join(tasks)}; the report.html beside it shows what its attention does"
        )
    return subject


def _numbers(name: str, words: str | None) -> list[float] | None:
    if words is None:
        return None
    try:
        return [float(word) for word in words.split(",")]
    except ValueError as error:
        raise InvalidValueError(f"--{name} takes numbers with commas, but got '{words}'") from error


@contextmanager
def folder_of_files(target: Path | None) -> Iterator[Path | None]:
    """A folder to write to, whose files are moved to the one that is meant if nothing is raised."""
    if target is None:
        yield None
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".foveate-") as folder:
            yield Path(folder)
            for made in Path(folder).iterdir():
                os.replace(made, target / made.name)
    except OSError as error:
        raise InvalidValueError(f"cannot write to {target}: {error.strerror or error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file whole, and the folder that it lies in."""
    from foveate.experiments.training.checkpoint import write_bytes

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise InvalidValueError(f"cannot write {path}: {error.strerror or error}") from error
