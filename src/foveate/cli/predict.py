"""``foveate predict``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli import looked_at as options
from foveate.errors import InvalidValueError, check_positive, require

if TYPE_CHECKING:
    from foveate.experiments.subject import Subject


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
    """Say what is on images, as CSV."""
    check_positive(top=top, batch_size=batch_size)
    require("torchvision", extra="train")
    require("pydantic", extra="train")
    from foveate.experiments.prediction import classify, find_images, to_csv

    paths = find_images(images)
    if Path(model).suffix == ".onnx":
        given = {"weights": weights, "classes": classes, "size": size, "mean": mean, "std": std}
        subject = _exported(model, **given)
    else:
        named = (weights, classes, size, mean, std)
        subject = options.open_model(model, *named, trust_code=trust_code)
    rows = list(classify(subject, paths, top=top, skip_bad=skip_bad, batch_size=batch_size))
    text = to_csv(rows)
    if out is None:
        typer.echo(text, nl=False)
    else:
        options.write(out, text.encode())
        typer.echo(str(out))


def _exported(model: str, **given: object) -> "Subject":
    from foveate.experiments.subject import exported

    for name, value in given.items():
        if value is not None:
            raise InvalidValueError(f"an exported file has its own {name}, but got {name}={value}")
    return exported(Path(model))
