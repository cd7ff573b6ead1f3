"""Tables in Markdown, and what stands between two marks in a text."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""A table in Markdown.

    Example:
        >>> print(table(("a", "b"), [(1, "x|y")]))
        | a | b |
        | --- | --- |
        | 1 | x\|y |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(cell: Any) -> str:
    return str(cell).replace("|", "\\|")


def between(text: str, start: str, end: str, content: str) -> str:
    """The text with ``content`` between its two marks."""
    before, _, rest = text.partition(start)
    return before + start + content + end + rest.partition(end)[2]
