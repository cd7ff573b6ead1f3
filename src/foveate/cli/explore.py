"""``foveate explore``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli import looked_at as options
from foveate.errors import require

if TYPE_CHECKING:
    from foveate.experiments.subject import Subject


def explore(
    model: options.Model,
    data: Annotated[Path | None, typer.Option(help="Folder of images to pick from.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A second model; default: the same with its attention switched off."),
    ] = None,
    weights: options.Weights = None,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    trust_code: options.TrustCode = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free, from 7860.")
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, open nothing.")
    ] = False,
) -> None:
    """Show on a page of this machine what a network attends to: drop an image, click a point.

    The options hold for both models; a run has weights and classes of its own.
    """
    for module in ("matplotlib", "pydantic", "pytorch_grad_cam", "torchvision"):
        require(module, extra="explore")
    from foveate.experiments.subject import is_run
    from foveate.explore import Album, Explorer, leaving_nothing, serve

    models = [model] if against is None else [model, against]
    only_runs = all(is_run(one) for one in models)

    def opened(name: str) -> "Subject":
        own = is_run(name) and not only_runs
        named = (None, None) if own else (weights, classes)
        return options.open_model(name, *named, size, mean, std, trust_code=trust_code)

    with leaving_nothing():
        require("gradio", extra="explore")
        explorer = Explorer(*map(opened, models))
        album = None if data is None else Album(data)
        serve(explorer, album, port=port, browser=not no_browser, say=typer.echo)
