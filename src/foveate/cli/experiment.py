"""Options that ``train`` and ``compare`` share, and how they become a configuration."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.errors import InvalidValueError, require

if TYPE_CHECKING:
    from rich.console import Console

Task = Annotated[str | None, typer.Option(help="classify (default), segment or detect.")]
DataName = Annotated[
    str | None, typer.Option("--data", help="digits, cifar10, another torchvision set, a folder.")
]
Root = Annotated[Path | None, typer.Option(help="Where torchvision sets lie.")]
ImageSize = Annotated[int | None, typer.Option(help="Side of the images, in pixels.")]
Limit = Annotated[int | None, typer.Option(help="Most images in each split.")]
SkipBad = Annotated[bool | None, typer.Option("--skip-bad", help="Leave unreadable images out.")]
Download = Annotated[bool | None, typer.Option("--download", help="Fetch a missing set.")]
Host = Annotated[
    str | None,
    typer.Option(help="small_cnn, resnet20, a torchvision or timm name, module:function."),
]
Head = Annotated[
    str | None,
    typer.Option(
        help="segment: unet, deeplabv3plus, psp, danet, ccnet; "
        "detect: ssdlite, retinanet, fasterrcnn."
    ),
]
Pretrained = Annotated[str | None, typer.Option(help="DEFAULT, or a file of weights.")]
Teacher = Annotated[
    str | None, typer.Option(help="Folder of a finished run whose attention is distilled.")
]
TrustCode = Annotated[
    bool | None,
    typer.Option("--trust-code", help="Let the file of your own teacher name code as its host."),
]
Void = Annotated[int | None, typer.Option(help="Number of no class in masks; default: 255.")]
Where = Annotated[str | None, typer.Option(help="Place, such as residual; default: the paper's.")]
At = Annotated[str | None, typer.Option(help="Glob or regular expression on module names.")]
Init = Annotated[str | None, typer.Option(help="identity (default) or paper.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option(help="Images in a batch.")]
LearningRate = Annotated[float | None, typer.Option(help="Highest learning rate.")]
Optimizer = Annotated[str | None, typer.Option(help="sgd, adam or adamw.")]
Schedule = Annotated[str | None, typer.Option(help="cosine, plateau or constant.")]
Augment = Annotated[str | None, typer.Option(help="auto, none, flip_crop or full.")]
Precision = Annotated[str | None, typer.Option(help="32-true, bf16-mixed, 16-mixed ...")]
Accelerator = Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")]
Tracker = Annotated[str | None, typer.Option(help="tensorboard, wandb, mlflow or none.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other setting: --set recipe.label_smoothing=0.1"),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML; options override it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to stderr.")]

_DATA = ("root", "image_size", "limit", "skip_bad", "download", "void")
_RECIPE = (
    *("epochs", "batch_size", "lr", "optimizer", "schedule"),
    *("augment", "precision", "accelerator", "tracker"),
)
_PATHS = {
    **{name: name for name in ("task", "head", "teacher", "trust_code")},
    "data": "data.name",
    **{name: f"data.{name}" for name in _DATA},
    **{name: f"recipe.{name}" for name in _RECIPE},
}


def settings(context: typer.Context, paths: Mapping[str, str]) -> dict[str, Any]:
    """The values of a configuration: the file, then ``--set``, then the options that were given.

    Args:
        context: Holds the options of the command.
        paths: Where in the configuration the options go that are the command's own.
    """
    require("yaml", extra="train")
    from foveate.experiments.configfile import merged, read_yaml

    given = {name: value for name, value in context.params.items() if value is not None}
    values = read_yaml(given["config"]) if "config" in given else {}
    for word in given.get("changes", ()):
        values = merged(values, _setting(word))
    for name, path in {**_PATHS, **paths}.items():
        if name in given:
            values = merged(values, _nested(path, given[name]))
    return values


def progress_console(as_json: bool) -> "Console":
    """Where progress is shown: not in the output that a program reads, and by one process."""
    from rich.console import Console

    return Console(stderr=as_json, quiet=os.environ.get("RANK", "0") != "0")


def stopped(out: Path) -> int:
    """Say how to go on after Ctrl-C; returns the exit code."""
    typer.echo(f"foveate: stopped; the same command goes on from {out}", err=True)
    return 130


def failed(reason: str) -> int:
    """Say why there is no result; returns the exit code."""
    typer.echo(f"foveate: {reason}", err=True)
    return 1


def _setting(word: str) -> dict[str, Any]:
    import yaml

    key, equals, value = word.partition("=")
    if not (key and equals):
        raise InvalidValueError(f"--set takes KEY=VALUE, but got '{word}'")
    try:
        return _nested(key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise InvalidValueError(f"--set {key}: '{value}' is not valid YAML") from error


def _nested(path: str, value: Any) -> dict[str, Any]:
    *outer, last = path.split(".")
    nested = {last: value}
    for key in reversed(outer):
        nested = {key: nested}
    return nested
