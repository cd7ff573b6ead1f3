"""``foveate show``."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from foveate.describe.docstrings import Block
    from foveate.describe.facts import Facts

WIDTH = 100


def show(mechanism: Annotated[str, typer.Argument(help="Key of a mechanism.")]) -> None:
    """Show one mechanism: paper, formula, options, costs, variants and published results."""
    from rich.console import Console

    from foveate.describe.facts import facts

    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    for part in _parts(facts(mechanism), console.width):
        console.print(part, markup=False)


def _parts(known: "Facts", width: int) -> Iterator[Any]:
    from rich.text import Text

    from foveate.describe.docstrings import blocks

    yield Text.assemble((known.key, "bold"), "  ", (known.citation, "dim"))
    yield ""
    yield from _prose(known.doc.body, width)
    yield _options(known)
    yield ""
    yield _table(_rows(known))
    if known.results:
        yield Text("\nAs published, not measured here", style="bold")
        yield _results(known)
    if note := known.doc.sections.get("Note"):
        yield Text("\nNote", style="bold")
        yield from _prose(blocks(note), width)


def _prose(blocks: Iterable["Block"], width: int) -> Iterator[Any]:
    from foveate.describe.formulas import formula_lines, plain

    previous = None
    for block in blocks:
        if previous == "item" and block.kind != "item":
            yield ""
        previous = block.kind
        if block.kind == "item":
            yield _table([("  -", plain(block.content))], style="")
        elif block.kind == "formula":
            yield "\n".join(f"    {line}" for line in formula_lines(block.content, width - 4))
            yield ""
        else:
            yield plain(block.content)
            yield ""


def _options(known: "Facts") -> Any:
    from foveate.describe.formulas import plain

    channels = ("channels", "", plain(known.doc.entries("Args")["channels"]))
    options = [(o.name, repr(o.default), plain(o.meaning)) for o in known.options]
    return _table([channels, *options])


def _rows(known: "Facts") -> Iterator[tuple[str, str]]:
    """What is known beside the prose, by name."""
    from foveate.cost import human
    from foveate.describe.facts import SHAPE, as_keywords

    cls = known.cls
    yield "place", known.place
    yield (
        "cost",
        f"{human(known.parameters)} parameters, {human(known.flops)} multiply-adds at "
        + " x ".join(map(str, SHAPE)),
    )
    yield "identity", known.identity
    for label, named in (("variants", cls.variants), ("in timm", cls.timm)):
        for name, options in named.items():
            yield label, f"{name}: {as_keywords(options)}"
            label = ""
    yield "class", f"{cls.__qualname__} in {cls.__module__}"


def _results(known: "Facts") -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "measure", "with", "without", "source"):
        table.add_column(column, overflow="fold")
    for result in known.results:
        table.add_row(
            result.model, result.metric, result.value, result.baseline or "-", result.source
        )
    return table


def _table(rows: Iterable[tuple[str, ...]], style: str = "bold") -> Any:
    """Columns of which the last takes the rest of the width."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        if not table.columns:
            table.add_column(style=style, no_wrap=True)
            for _ in row[1:]:
                table.add_column(overflow="fold")
        table.add_row(*row)
    return table
