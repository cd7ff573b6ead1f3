"""``foveate list``."""

from typing import Annotated

import typer

from foveate import list_mechanisms
from foveate.errors import unknown


def list_keys(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, such as 'danet*'.")] = "*",
) -> None:
    """List the mechanisms whose key matches a pattern."""
    from rich.console import Console
    from rich.table import Table

    from foveate.describe.facts import citation, summary

    keys = list_mechanisms(pattern)
    if not keys:
        raise unknown("mechanism", pattern, list_mechanisms())
    table = Table(box=None, pad_edge=False)
    table.add_column("key", style="bold")
    table.add_column("what it does", ratio=3)
    table.add_column("paper", ratio=2, style="dim")
    for key in keys:
        table.add_row(key, summary(key), citation(key))
    Console().print(table)
