"""One run in one folder: begun, resumed, or found finished."""

import json
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning_fabric import Fabric

from foveate.errors import InvalidValueError
from foveate.experiments.build import build_network
from foveate.experiments.config import RunConfig
from foveate.experiments.configfile import parse, read_yaml, to_yaml
from foveate.experiments.data.load import Data
from foveate.experiments.reporting.results import Curves, RunResult
from foveate.experiments.saved import MODEL, Trained, load
from foveate.experiments.tasks import get_task
from foveate.experiments.training import checkpoint
from foveate.experiments.training.environment import describe
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.processes import deterministic
from foveate.experiments.training.progress import Watcher
from foveate.experiments.training.recorder import METRICS
from foveate.experiments.training.train import CHECKPOINT, Trainer

CONFIG, DATA, ENVIRONMENT = "config.yaml", "data.json", "environment.json"
RESULT = "result.json"

# More points than this would not be seen in a figure: neighbours are averaged.
_CURVE_POINTS = 2000


def run(
    config: RunConfig,
    data: Data,
    folder: Path,
    fabric: Fabric,
    watcher: Watcher,
    *,
    save_every: float = 60.0,
) -> RunResult:
    """Train, test once with the weights that validation chose, and keep the result.

    What is there already counts: a finished run is only read, an interrupted one goes on.

    Args:
        config: The run.
        data: Its images.
        folder: Where it lives; made if missing.
        fabric: Launched.
        watcher: Is told how it goes.
        save_every: Seconds between checkpoints within an epoch.

    Raises:
        ValueError: If the folder holds another run.
        Interrupted: After Ctrl-C, with everything saved.
        DivergedError: When a loss is not finite.
    """
    check_folder(folder, config, data)
    before = finished(folder)
    fabric.barrier()  # nobody may write before all have looked
    title = f"{config.label} seed {config.seed}"
    if before is not None:
        watcher.end_run(title, f"finished before: {before.on_test}")
        return before
    if fabric.is_global_zero:
        _prepare(folder, config, data, fabric)
    fabric.barrier()
    with deterministic(config.recipe.deterministic):
        network = build_network(config, data)
        teacher = read_teacher(config)
        trainer = Trainer(
            config, data, network, folder, fabric, watcher, teacher=teacher, save_every=save_every
        )
        watcher.begin_run(title, trainer.total_steps, trainer.done_steps)
        trainer.run()
        result = _conclude(trainer)
    watcher.end_run(title, result.on_test)
    return result


@contextmanager
def claimed(folder: Path, fabric: Fabric) -> Iterator[None]:
    """The folder, made if missing and kept from other processes than those of ``fabric``.

    Raises:
        ValueError: If it cannot be written, or another process holds it.
    """
    if not fabric.is_global_zero:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise InvalidValueError(f"another process writes to {folder}") from error
    except OSError as error:
        raise InvalidValueError(f"cannot write to {folder}: {error.strerror or error}") from error


def check_folder(folder: Path, config: RunConfig, data: Data) -> None:
    """Refuse a folder that holds another run.

    Raises:
        ValueError: With the first setting that differs.
    """
    if not (folder / CONFIG).exists():
        return
    there, here = parse(RunConfig, read_yaml(folder / CONFIG)).identity(), config.identity()
    difference = _first_difference(there, here)
    fingerprint = json.loads((folder / DATA).read_text(encoding="utf-8"))["fingerprint"]
    if difference is None and fingerprint != data.record["fingerprint"]:
        difference = "the images or their split changed"
    if difference:
        raise InvalidValueError(f"{folder} holds another run ({difference}): choose another folder")


def finished(folder: Path) -> RunResult | None:
    """The result of a run that came to its end; None for any other."""
    path = folder / RESULT
    if not path.exists():
        return None
    result = RunResult.model_validate_json(path.read_bytes())
    return result if result.status == "finished" else None


def write_result(folder: Path, result: RunResult) -> None:
    """Keep a result; a run that has one and did not fail is never repeated."""
    checkpoint.write_text(folder / RESULT, result.model_dump_json())


def _prepare(folder: Path, config: RunConfig, data: Data, fabric: Fabric) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((DATA, data.record), (ENVIRONMENT, describe(fabric))):
        checkpoint.write_text(folder / name, json.dumps(content, indent=2, ensure_ascii=False))
    checkpoint.write_text(folder / CONFIG, to_yaml(config))  # last: it marks the folder as ours


def _conclude(trainer: Trainer) -> RunResult:
    state, folder = trainer.state, trainer.folder
    test = trainer.test()
    result = RunResult(
        mechanism=trainer.config.label,
        seed=trainer.config.seed,
        status="finished",
        metric=get_task(trainer.data.task).metric.name,
        test_accuracy=test.score,
        val_accuracy=state.val_accuracies[state.best_epoch],
        best_epoch=state.best_epoch + 1,
        test_correct=test.correct,
        test_values=test.values,
        test_scores=dict(test.scores) or None,
        test_per_class=dict(test.per_class) or None,
        wall_seconds=state.wall_seconds,
        energy_joules=state.joules,
    )
    if trainer.fabric.is_global_zero:
        rows = read_journal(folder / METRICS)
        result.curves = _curves(rows, get_task(trainer.data.task).metric.key)
        result.images_per_second = statistics.median(_column(rows, "images_per_second"))
        _trained(trainer).save(folder / MODEL)
        write_result(folder, result)
        (folder / CHECKPOINT).unlink()
    trainer.fabric.barrier()
    return result


def _trained(trainer: Trainer) -> Trained:
    data = trainer.data
    return Trained(
        trainer.module, trainer.config, data.classes, data.mean, data.std, data.image_size
    )


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows if name in row]


def _curves(rows: list[dict[str, Any]], metric: str) -> Curves:
    steps = [row for row in rows if "loss" in row]
    epochs = [row for row in rows if "epoch" in row]
    width = -(-len(steps) // _CURVE_POINTS)
    groups = [steps[start : start + width] for start in range(0, len(steps), width)]
    return Curves(
        step=[group[-1]["step"] for group in groups],
        train_loss=[statistics.fmean(row["loss"] for row in group) for group in groups],
        epoch_train_loss=_column(epochs, "train_loss"),
        val_accuracy=_column(epochs, f"val_{metric}"),
        **{name: _column(epochs, name) for name in ("epoch", "train_accuracy", "val_loss", "lr")},
    )


def _first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    for key, value in here.items():
        other = there.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if inner := _first_difference(other, value):
                return f"{key}.{inner}"
        elif value != other:
            return f"{key} is {other!r} there and {value!r} here"
    return None


def read_teacher(config: RunConfig) -> Trained | None:
    """The network whose attention a run distils, if it does.

    Raises:
        ValueError: If there is none at the path.
    """
    if config.teacher is None:
        return None
    return load(config.teacher, trust_code=config.trust_code)
