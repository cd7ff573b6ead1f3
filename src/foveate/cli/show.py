"""``foveate show``."""

import inspect
from typing import Annotated

import typer


def show(mechanism: Annotated[str, typer.Argument(help="Key of a mechanism.")]) -> None:
    """Show one mechanism: paper, options, default place and what it costs."""
    from rich.console import Console
    from rich.table import Table

    import foveate
    from foveate.cli.describe import citation, options, summary
    from foveate.cost import human, meta_cost

    cls = foveate.get_mechanism(mechanism)
    shape = (1, 256, 56, 56)
    parameters, flops = meta_cost(lambda: foveate.create(mechanism, shape[1]), shape)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("class", f"{cls.__module__}.{cls.__qualname__}")
    table.add_row("does", summary(mechanism))
    table.add_row("paper", citation(mechanism))
    table.add_row("place", str(getattr(cls, "place", "residual")))
    table.add_row(
        "options", ", ".join(f"{name}={value!r}" for name, value in options(mechanism).items())
    )
    table.add_row(
        "at 256 x 56 x 56", f"{human(parameters)} parameters, {human(flops)} multiply-adds"
    )
    console = Console()
    console.print(table)
    console.print()
    console.print(inspect.cleandoc(cls.__doc__ or ""), markup=False, highlight=False)
