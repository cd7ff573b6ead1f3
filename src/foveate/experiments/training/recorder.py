"""Where the numbers of a run go while it trains: journal, tracker and screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.experiments.config import RunConfig
from foveate.experiments.tasks import get_task
from foveate.experiments.training.journal import Journal
from foveate.experiments.training.progress import Watcher
from foveate.experiments.training.state import State
from foveate.experiments.training.trackers import Tracker, open_tracker

METRICS = "metrics.jsonl"


class Recorder:
    """Writes what one process is told."""

    def __init__(
        self, folder: Path, config: RunConfig, state: State, done: int, watcher: Watcher
    ) -> None:
        self._journal = Journal(folder / METRICS, state.journal)
        self._tracker: Tracker = open_tracker(folder, config, done)
        self._watcher = watcher
        self._counts = get_task(config.task).train_metric is not None

    def steps(self, rows: Sequence[Mapping[str, Any]], state: State) -> None:
        """Note optimiser steps that are done, and the means of the epoch so far."""
        for row in rows:
            self._journal.write(row)
            self._tracker.log(row["step"], {"step/loss": row["loss"], "step/lr": row["lr"]})
        self._watcher.advance(
            len(rows),
            loss=state.loss_sum / state.seen,
            accuracy=state.train_score if self._counts else None,
            speed=state.seen / state.epoch_seconds,
        )

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Note an epoch that was validated."""
        self._journal.write(row)
        names = [name for name in row if name.startswith(("train_", "val_"))]
        shown = {name.replace("_", "/", 1): row[name] for name in names}
        self._tracker.log(row["step"], shown)
        self._watcher.end_epoch(row)

    def snapshot(self, step: int, gates: Mapping[str, Sequence[float]]) -> None:
        """Note the percentiles of the gates after ``step`` steps."""
        self._journal.write({"step": step, "gates": gates})

    def sync(self) -> int:
        """Bring the journal to the disk and return its length."""
        return self._journal.sync()

    def close(self) -> None:
        self._journal.close()
        self._tracker.close()


class Silent(Recorder):
    """Writes nothing: the other processes of a distributed run."""

    def __init__(self) -> None:
        pass

    def steps(self, rows: Sequence[Mapping[str, Any]], state: State) -> None:
        pass

    def epoch(self, row: Mapping[str, Any]) -> None:
        pass

    def snapshot(self, step: int, gates: Mapping[str, Sequence[float]]) -> None:
        pass

    def sync(self) -> int:
        return 0

    def close(self) -> None:
        pass
