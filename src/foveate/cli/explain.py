"""``foveate explain``."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli import looked_at as options
from foveate.errors import InvalidValueError, check_choice, check_positive, require

if TYPE_CHECKING:
    from foveate.figures import Figure

FORMATS = ("png", "svg", "pdf")


def explain(
    model: options.Model,
    images: Annotated[list[Path] | None, typer.Argument(help="Files of images.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Draw the gates over a folder or set of images, too.")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="Pixel whose affinities are drawn: ROW,COLUMN.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Module whose feature maps are drawn.")
    ] = None,
    features: Annotated[int, typer.Option(help="Feature maps of a layer.")] = 5,
    first: Annotated[bool, typer.Option("--first", help="The first maps, not the strongest.")] = (
        False
    ),
    cams: Annotated[
        str, typer.Option(help="Class activation maps, with commas; none for no map.")
    ] = "gradcam,gradcam++,layercam,scorecam",
    weights: options.Weights = None,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    root: options.Root = None,
    trust_code: options.TrustCode = False,
    split: options.Split = "test",
    limit: options.Limit = 256,
    formats: Annotated[str, typer.Option("--format", help="png, svg, pdf, with commas.")] = "png",
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("foveate-explain"),
) -> None:
    """Draw what a network makes of images: gates, affinities, features and class evidence."""
    for module in ("matplotlib", "pytorch_grad_cam"):
        require(module, extra="explain")
    from foveate.explain import CAMS, DATA_FIGURES, over_data, sheet

    if not images and data is None:
        raise InvalidValueError("there is nothing to draw: give files of images, or --data")
    endings = [check_choice("format", one, FORMATS) for one in formats.split(",")]
    maps = [] if cams == "none" else cams.split(",")
    for one in maps:
        check_choice("class activation map", one, CAMS)
    check_positive(features=features, limit=limit)
    check_choice("split", split, ("train", "val", "test"))
    points = [_point(one) for one in point or []] or None
    subject = options.open_model(model, weights, classes, size, mean, std, trust_code=trust_code)
    opened = [(path, subject.image(path)) for path in images or []]  # all, before any is drawn
    batches = []
    if data is not None:
        batches = subject.batches(subject.load_data(data, root=root), limit=limit, split=split)
    taken = set(DATA_FIGURES if batches else ())
    names = {path: _free(path.stem, taken) for path, _ in opened}
    _keep_apart(names, out, endings)
    for path, image in opened:
        figure = sheet(
            subject.module,
            image,
            feed=subject.feed,
            label=subject.label(path),
            points=points,
            layers=layer,
            features=features,
            choose="first" if first else "strongest",
            cams=maps,
        )
        _write(figure, out, names[path], endings)
    if batches:
        for name, figure in over_data(subject.module, batches, subject.classes).items():
            _write(figure, out, name, endings)


def _point(words: str) -> tuple[int, int]:
    try:
        row, column = (int(word) for word in words.split(","))
    except ValueError as error:
        raise InvalidValueError(f"--point takes ROW,COLUMN, but got '{words}'") from error
    return row, column


def _keep_apart(names: Mapping[Path, str], out: Path, endings: list[str]) -> None:
    """Refuse to write over an image that is to be read."""
    images = {path.resolve() for path in names}
    for name in names.values():
        for ending in endings:
            path = out / f"{name}.{ending}"
            if path.resolve() in images:
                raise InvalidValueError(f"{path} is one of the images; give another --out")


def _free(stem: str, taken: set[str]) -> str:
    """The name of a picture; images of one name in several folders do not overwrite each other."""
    name = next(
        n for i in itertools.count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken
    )
    taken.add(name)
    return name


def _write(figure: "Figure", out: Path, name: str, endings: list[str]) -> None:
    from foveate import figures

    for ending in endings:
        path = out / f"{name}.{ending}"
        options.write(path, figures.encoded(figure, ending))
        typer.echo(str(path))
