"""``foveate profile``."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli.plan import At, Init, Model, Options, Size, Where, build, parse_options
from foveate.errors import check_positive

if TYPE_CHECKING:
    import torch


def profile(
    model: Model,
    mechanisms: Annotated[list[str] | None, typer.Argument(help="Keys of mechanisms.")] = None,
    where: Where = None,
    at: At = None,
    init: Init = "identity",
    size: Size = 224,
    batch: Annotated[int, typer.Option(help="Images in the batch.")] = 1,
    option: Options = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="Compare runtimes: eager,compile,onnxruntime,openvino,tensorrt."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a network on this machine, bare and with each mechanism."""
    import torch
    from rich.console import Console

    import foveate

    check_positive(batch=batch, size=size)
    images = torch.zeros(batch, 3, size, size)
    hosts = {"none": build(model, size)}
    for key in mechanisms or []:
        hosts[key] = build(model, size)
        options = parse_options(option)
        foveate.insert(
            hosts[key], key, where=where, at=at, init=init, example=images[:1], **options
        )
    if runtime is not None:
        _race(hosts, images, runtime.split(","), as_json)
        return
    made = {key: foveate.profile(host, images) for key, host in hosts.items()}
    if as_json:
        print(json.dumps({key: one.to_dict() for key, one in made.items()}, indent=2))
        return
    for key, one in made.items():
        Console().print(f"[bold]{key}[/bold]", one)


def _race(
    models: Mapping[str, "torch.nn.Module"],
    images: "torch.Tensor",
    runtimes: Sequence[str],
    as_json: bool,
) -> None:
    """The latency of each network in each runtime, all of them measured in turns."""
    from rich.console import Console
    from rich.table import Table

    from foveate import export

    times = export.measure(models, images, runtimes)
    if as_json:
        nested = {
            model: {
                runtime: {"median_ms": found.median_ms, "iqr_ms": found.iqr_ms}
                for (name, runtime), found in times.items()
                if name == model
            }
            for model in models
        }
        print(json.dumps(nested, indent=2))
        return
    table = Table(title=f"Milliseconds, batch of {len(images)} (interquartile range)")
    table.add_column("")
    for runtime in runtimes:
        table.add_column(runtime, justify="right")
    for model in models:
        cells = [times[model, runtime] for runtime in runtimes]
        table.add_row(model, *(f"{one.median_ms:.2f} ({one.iqr_ms:.2f})" for one in cells))
    Console().print(table)
