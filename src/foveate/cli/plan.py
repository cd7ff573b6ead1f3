"""``foveate plan``."""

import json
from typing import Annotated, Any

import typer

from foveate.errors import InvalidValueError

Size = Annotated[int, typer.Option(help="Height and width of the input, in pixels.")]
Where = Annotated[str | None, typer.Option(help="Place, such as residual; default: the paper's.")]
At = Annotated[str | None, typer.Option(help="Glob or regular expression on module names.")]
Init = Annotated[str, typer.Option(help="identity or paper.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="Option of the mechanism: reduction=8.")
]
Model = Annotated[str, typer.Argument(help="Name of a host, or module:function.")]


def plan(
    model: Model,
    mechanism: Annotated[str, typer.Argument(help="Key of a mechanism.")],
    where: Where = None,
    at: At = None,
    init: Init = "identity",
    size: Size = 224,
    option: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where a mechanism would go in a network and what it would cost; change nothing."""
    import torch
    from rich.console import Console

    from foveate.insertion import make_plan

    host, example = build(model, size), torch.zeros(1, 3, size, size)
    made = make_plan(
        host, mechanism, where=where, at=at, init=init, example=example, **parse_options(option)
    )
    if as_json:
        print(json.dumps(made.to_dict(), indent=2))
    else:
        Console().print(made)


def build(model: str, size: int) -> Any:
    """A host of 1000 classes for colour images, by name."""
    from foveate.errors import check_positive, require

    require("torchvision", extra="hosts")
    from foveate.hosts.by_name import build_host

    check_positive(size=size)
    return build_host(model, num_classes=1000, in_channels=3, image_size=size)


def parse_options(words: list[str] | None) -> dict[str, Any]:
    """``["reduction=8", "order=spatial_first"]`` as keyword arguments."""
    options: dict[str, Any] = {}
    for word in words or []:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            raise InvalidValueError(f"an option is written name=value, but got '{word}'")
        try:
            options[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            options[name] = value
    return options
