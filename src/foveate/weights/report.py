"""What became of each tensor of a checkpoint, and of each of the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foveate.printing import as_text


@dataclass(frozen=True)
class Loaded:
    """What :func:`foveate.load_weights` did; all names but those said otherwise are the model's."""

    layouts: Mapping[str, str]
    """Whose names the checkpoint had, by mechanism; ``"foveate"`` for our own."""
    loaded: tuple[str, ...]
    """Copied from the checkpoint."""
    renamed: Mapping[str, str]
    """Those of them that the checkpoint calls otherwise, with its name for each."""
    filled: Mapping[str, float]
    """Not in the checkpoint, and set to the number with which the model does the same."""
    skipped: tuple[str, ...]
    """The classifier, where it was left as it was."""
    missing: tuple[str, ...]
    """Not in the checkpoint, and left as they were."""
    unexpected: tuple[str, ...]
    """The checkpoint's names of what the model has no place for."""

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right")
        table.add_column(overflow="fold")
        for word, names in (
            ("loaded", self.loaded),
            ("renamed", [f"{theirs} -> {ours}" for ours, theirs in self.renamed.items()]),
            ("filled", [f"{ours} = {value:g}" for ours, value in self.filled.items()]),
            ("skipped", self.skipped),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
        ):
            table.add_row(word, str(len(names)), shortened(names) if word != "loaded" else "")
        yield from (f"{key}: names as in '{name}'" for key, name in self.layouts.items())
        yield table


def shortened(names: Any, limit: int = 4) -> str:
    """The first few names, and how many there are beside them."""
    shown = list(names)
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more
