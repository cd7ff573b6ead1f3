"""What a person sees while runs go on."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Watcher:
    """Is told how runs go and shows nothing; the base of those that do."""

    def begin_run(self, title: str, steps: int, done: int) -> None:
        """A run of ``steps`` steps starts, or goes on after ``done`` of them."""

    def advance(self, steps: int, *, loss: float, accuracy: float | None, speed: float) -> None:
        """``steps`` more are done; means of the epoch so far, hits in percent, images/s."""

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch was validated; ``row`` is its line of the journal."""

    def end_run(self, title: str, message: str) -> None:
        """A run came to its end, failed, or was there already."""

    def note(self, title: str, message: str) -> None:
        """Something else begins that takes a while."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Clean up what is on the screen."""


class Lines(Watcher):
    """One line an epoch, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title = ""

    def begin_run(self, title: str, steps: int, done: int) -> None:
        self._title = title

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        _say(self._console, self._title, _summary(row))

    def end_run(self, title: str, message: str) -> None:
        _say(self._console, title, message)

    def note(self, title: str, message: str) -> None:
        _say(self._console, title, message)


class Bars(Watcher):
    """A live bar for the current run, and one for the grid where there are several runs."""

    def __init__(self, console: Console, runs: int = 1) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(),
            console=console,
        )
        self._grid = self._add("all runs", runs) if runs > 1 else None
        self._run: TaskID | None = None
        self._title = ""

    def _add(self, title: str, total: int) -> TaskID:
        return self._progress.add_task(title, total=total, numbers="")

    def begin_run(self, title: str, steps: int, done: int) -> None:
        self._title = title
        self._run = self._add(title, steps)
        self._progress.update(self._run, completed=done)

    def advance(self, steps: int, *, loss: float, accuracy: float | None, speed: float) -> None:
        if self._run is not None:
            hits = "" if accuracy is None else f"acc {accuracy:.1f} %  "
            numbers = f"loss {loss:.3f}  {hits}{speed:,.0f} img/s"
            self._progress.update(self._run, advance=steps, numbers=numbers)

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        if self._grid is None:
            _say(self._progress.console, self._title, _summary(row))

    def end_run(self, title: str, message: str) -> None:
        if self._run is not None:
            self._progress.remove_task(self._run)
            self._run = None
        if self._grid is not None:
            self._progress.advance(self._grid)
        self.note(title, message)

    def note(self, title: str, message: str) -> None:
        _say(self._progress.console, title, message)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def watch(console: Console, runs: int = 1) -> Watcher:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console, runs) if console.is_terminal else Lines(console)


def _summary(row: Mapping[str, Any]) -> str:
    scores = []
    for key, value in row.items():
        split, _, metric = key.partition("_")
        if split in ("train", "val") and metric != "loss":
            named = split if metric == "accuracy" else f"{split} {metric.replace('_', ' ')}"
            scores.append(f"{named} {value:.1f} %")
    return ", ".join([f"epoch {row['epoch']}: loss {row['train_loss']:.4f}", *scores])


def _say(console: Console, title: str, message: str) -> None:
    console.print(f"{title}: {message}", markup=False, highlight=False, soft_wrap=True)
