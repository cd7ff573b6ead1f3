"""``foveate predict``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli import looked_at as options
from foveate.errors import InvalidValueError, require

if TYPE_CHECKING:
    from foveate.experiments.subject import Subject

TASKS = ("classify", "detect", "segment")


def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a run, its model.safetensors, an exported .onnx, or a name."
        ),
    ],
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, patterns such as 'a/*.jpg'.")
    ],
    top: Annotated[int, typer.Option(help="Classes for each image.")] = 1,
    threshold: Annotated[float, typer.Option(help="Least score of a box.")] = 0.5,
    masks: Annotated[Path | None, typer.Option(help="Folder for the masks of a segmentation.")] = (
        None
    ),
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out broken images.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images that are run together.")] = 32,
    weights: options.Weights = None,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    trust_code: options.TrustCode = False,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: printed.")] = None,
) -> None:
    """Say what is on images, as CSV: classes, boxes, or shares of pixels."""
    require("torchvision", extra="train")
    require("pydantic", extra="train")
    from foveate.experiments.prediction import Wanted, check_wanted, find_images, to_csv
    from foveate.experiments.prediction import predict as answers

    paths = find_images(images)
    if Path(model).suffix == ".onnx":
        given = {"weights": weights, "classes": classes, "size": size, "mean": mean, "std": std}
        subject = _exported(model, **given)
    else:
        named = (weights, classes, size, mean, std)
        subject = options.open_model(model, *named, trust_code=trust_code, tasks=TASKS)
    wanted = Wanted(top, threshold, masks)
    check_wanted(subject, paths, wanted)  # before there is a folder
    with options.folder_of_files(masks) as folder:
        wanted = replace(wanted, masks=folder)
        rows = list(answers(subject, paths, wanted, skip_bad=skip_bad, batch_size=batch_size))
        # Names of files may be any bytes.
        table = to_csv(rows, subject.task).encode(errors="surrogateescape")
        if out is not None:
            options.write(out, table)
    typer.echo(table if out is None else str(out), nl=out is not None)


def _exported(model: str, **given: object) -> "Subject":
    from foveate.experiments.subject import exported

    for name, value in given.items():
        if value is not None:
            raise InvalidValueError(f"an exported file has its own {name}, but got {name}={value}")
    return exported(Path(model))
