"""A run that is no part of a comparison, and its report."""

from pathlib import Path

from foveate.experiments.build import build_network
from foveate.experiments.config import RunConfig
from foveate.experiments.reporting.results import RunResult
from foveate.experiments.reporting.run_report import write_run_report
from foveate.experiments.run import check_folder, claimed, read_teacher, run
from foveate.experiments.tasks import get_task
from foveate.experiments.training.distill import check_teacher
from foveate.experiments.training.processes import launch
from foveate.experiments.training.progress import Watcher
from foveate.experiments.training.trackers import check_tracker


def run_alone(config: RunConfig, folder: Path, watcher: Watcher) -> RunResult:
    """Train, test and report, after everything was found to exist.

    Raises:
        ValueError: If anything is unknown, refused or unreadable; nothing has been written then.
        Interrupted: After Ctrl-C, with everything saved.
        DivergedError: When a loss is not finite.
    """
    check_tracker(config.recipe.tracker)
    data = get_task(config.task).load(config.data)
    network = build_network(config, data)
    check_teacher(network.module, read_teacher(config), config.recipe.distill, data)
    check_folder(folder, config, data)
    fabric = launch(config.recipe)
    with claimed(folder, fabric):
        result = run(config, data, folder, fabric, watcher)
        if fabric.is_global_zero:
            if config.explain and config.mechanism is not None:
                watcher.note(f"{config.label} seed {config.seed}", "diagnosing and drawing it")
            write_run_report(folder, config, result, data)
    fabric.barrier()
    return result
