"""``foveate profile``."""

import json
from typing import Annotated

import typer

from foveate.cli.plan import At, Init, Model, Options, Size, Where, build, parse_options
from foveate.errors import check_positive


def profile(
    model: Model,
    mechanisms: Annotated[list[str] | None, typer.Argument(help="Keys of mechanisms.")] = None,
    where: Where = None,
    at: At = None,
    init: Init = "identity",
    size: Size = 224,
    batch: Annotated[int, typer.Option(help="Images in the batch.")] = 1,
    option: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a network on this machine, bare and with each mechanism."""
    import torch
    from rich.console import Console

    import foveate

    check_positive(batch=batch)
    images = torch.zeros(batch, 3, size, size)
    hosts = {"none": build(model, size)}
    for key in mechanisms or []:
        hosts[key] = build(model, size)
        options = parse_options(option)
        foveate.insert(
            hosts[key], key, where=where, at=at, init=init, example=images[:1], **options
        )
    made = {key: foveate.profile(host, images) for key, host in hosts.items()}
    if as_json:
        print(json.dumps({key: one.to_dict() for key, one in made.items()}, indent=2))
        return
    for key, one in made.items():
        Console().print(f"[bold]{key}[/bold]", one)
