"""Where the metrics of a run are shown beside its journal."""

from collections.abc import Callable, Mapping
from pathlib import Path

from foveate.errors import require
from foveate.experiments.config import RunConfig


class Tracker:
    """Takes metrics and keeps none; the base of those that do."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Note values by name at an optimiser step."""

    def close(self) -> None:
        """Bring everything to its place."""


class TensorBoard(Tracker):
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, folder: Path, config: RunConfig, first_step: int) -> None:
        writer = require("torch.utils.tensorboard", extra="train").SummaryWriter
        # What an interrupted run logged after its checkpoint is repeated: hide the first copy.
        self._writer = writer(folder / "tensorboard", purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, continued under one id."""

    def __init__(self, folder: Path, config: RunConfig, first_step: int) -> None:
        wandb = require("wandb", extra="wandb")
        name = f"{config.label}-seed{config.seed}"
        self._run = wandb.init(
            project="foveate",
            id=f"{folder.parent.parent.name}-{name}",
            name=name,
            dir=folder,
            config=config.model_dump(mode="json"),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """A run of MLflow, at the tracking address that MLflow is set to."""

    def __init__(self, folder: Path, config: RunConfig, first_step: int) -> None:
        self._mlflow = require("mlflow", extra="mlflow")
        self._mlflow.set_experiment("foveate")
        self._mlflow.start_run(run_name=f"{config.label}-seed{config.seed}")
        self._mlflow.log_dict(config.model_dump(mode="json"), "config.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_TRACKERS: dict[str, Callable[[Path, RunConfig, int], Tracker]] = {
    "none": lambda *_: Tracker(),
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}

_MODULES: dict[str, tuple[str, str]] = {
    "tensorboard": ("torch.utils.tensorboard", "train"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}


def open_tracker(folder: Path, config: RunConfig, first_step: int) -> Tracker:
    """The tracker that the recipe names, for a run that starts at an optimiser step."""
    return _TRACKERS[config.recipe.tracker](folder, config, first_step)


def check_tracker(name: str) -> None:
    """Fail now, and with the extra's name, rather than at the first step.

    Raises:
        ImportError: If the tracker's package is not installed.
    """
    if name in _MODULES:
        module, extra = _MODULES[name]
        require(module, extra=extra)
