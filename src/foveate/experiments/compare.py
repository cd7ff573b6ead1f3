"""The comparison: a grid of paired runs, their costs, their statistics, and the report."""

import datetime
import json
import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from foveate import __version__
from foveate.errors import UserError
from foveate.experiments.build import Network, build_network
from foveate.experiments.config import CompareConfig, RunConfig
from foveate.experiments.configfile import to_yaml
from foveate.experiments.data.load import Data, describe_data
from foveate.experiments.reporting.costs import measure_costs
from foveate.experiments.reporting.explained import explain_run
from foveate.experiments.reporting.illustration import Explained
from foveate.experiments.reporting.report import write_report
from foveate.experiments.reporting.results import CONTROLS, Results, RunResult, Site
from foveate.experiments.reporting.scenes import picture_run
from foveate.experiments.reporting.statistics import compare_to_baseline
from foveate.experiments.run import (
    CONFIG,
    ENVIRONMENT,
    check_folder,
    claimed,
    read_teacher,
    run,
    write_result,
)
from foveate.experiments.tasks import get_task
from foveate.experiments.training import checkpoint
from foveate.experiments.training.distill import check_teacher
from foveate.experiments.training.environment import describe
from foveate.experiments.training.processes import launch
from foveate.experiments.training.progress import Watcher
from foveate.experiments.training.trackers import check_tracker


@dataclass(frozen=True)
class Grid:
    """A comparison whose every part was found to exist; nothing has been written for it."""

    config: CompareConfig
    data: Data
    networks: dict[str, Network]
    runs: tuple[RunConfig, ...]

    def folder(self, cell: RunConfig) -> Path:
        """Where a run of the grid lives."""
        return self.config.out / "runs" / f"{cell.label}-seed{cell.seed}"


def prepare(config: CompareConfig) -> Grid:
    """Load the data, build each network once, and look at the folders.

    Raises:
        ValueError: If anything is unknown, refused or unreadable, or a folder holds another run.
    """
    check_tracker(config.recipe.tracker)
    data = get_task(config.task).load(config.data)
    cells = [config.run(variant, config.seeds[0]) for variant in config.variants()]
    networks = {cell.label: build_network(cell, data) for cell in cells}
    for cell in cells:
        teacher = read_teacher(cell)
        check_teacher(networks[cell.label].module, teacher, config.recipe.distill, data)
    grid = Grid(config, data, networks, tuple(_order(config)))
    for cell in grid.runs:
        check_folder(grid.folder(cell), cell, data)
    return grid


def compare(grid: Grid, watcher: Watcher, *, command: str) -> Results:
    """Run what is missing, measure the costs, compare, and write the report.

    A run that fails is recorded with its reason and does not stop the others.

    Args:
        grid: From :func:`prepare`.
        watcher: Is told how the runs go.
        command: What a person would type to repeat it.

    Raises:
        ValueError: If the folder cannot be written, or another process writes it.
        Interrupted: After Ctrl-C; the same call then goes on where it stopped.
    """
    config = grid.config
    fabric = launch(config.recipe)
    with claimed(config.out, fabric):
        if fabric.is_global_zero:
            environment = json.dumps(describe(fabric), indent=2)
            checkpoint.write_text(config.out / CONFIG, to_yaml(config))
            checkpoint.write_text(config.out / ENVIRONMENT, environment)
        runs = [_attempt(grid, cell, fabric, watcher) for cell in grid.runs]
        results = _results(grid, runs, fabric, command)
        if fabric.is_global_zero:
            explained, pictured = _explained(grid, runs, watcher), _pictured(grid, runs)
            write_report(results, config.out, list(explained), list(pictured))
    fabric.barrier()
    return results


def _order(config: CompareConfig) -> Iterator[RunConfig]:
    """All variants of one seed in an order of chance, then the next seed."""
    for seed in config.seeds:
        variants = config.variants()
        random.Random(seed).shuffle(variants)
        for variant in variants:
            yield config.run(variant, seed)


def _attempt(grid: Grid, cell: RunConfig, fabric: Fabric, watcher: Watcher) -> RunResult:
    folder = grid.folder(cell)
    log = folder / "error.txt"
    try:
        result = run(cell, grid.data, folder, fabric, watcher)
        log.unlink(missing_ok=True)
        return result
    except UserError:
        raise
    except Exception as error:  # of any kind: a night of runs must not end with one of them
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(log, traceback.format_exc())
        result = RunResult(mechanism=cell.label, seed=cell.seed, status="failed", reason=reason)
        write_result(folder, result)
        watcher.end_run(f"{cell.label} seed {cell.seed}", f"failed: {reason}")
        return result


def _explained(grid: Grid, runs: list[RunResult], watcher: Watcher) -> Iterator[Explained]:
    """What the attention does, in the best run of each mechanism; the control comes last."""
    for label, best, folder in _best_runs(grid, runs):
        if grid.config.explain and grid.networks[label].attention is not None:
            watcher.note(f"{label} seed {best.seed}", "diagnosing and drawing it")
            yield explain_run(folder, best, grid.data, images=grid.config.explain)


def _pictured(grid: Grid, runs: list[RunResult]) -> Iterator[Explained]:
    """What the best run of each mechanism finds in images, if it looks into them."""
    for _, best, folder in _best_runs(grid, runs):
        if grid.config.explain and (drawn := picture_run(folder, best, grid.data)):
            yield drawn


def _best_runs(grid: Grid, runs: list[RunResult]) -> Iterator[tuple[str, RunResult, Path]]:
    """Of each mechanism with a finished run; the controls come last."""
    folders = {(cell.label, cell.seed): grid.folder(cell) for cell in grid.runs}
    for label in sorted(grid.networks, key=CONTROLS.__contains__):
        done = [run for run in runs if run.mechanism == label and run.status == "finished"]
        if done:
            best = max(done, key=lambda run: run.val_accuracy or 0.0)
            yield label, best, folders[label, best.seed]


def _results(grid: Grid, runs: list[RunResult], fabric: Fabric, command: str) -> Results:
    config, networks = grid.config, grid.networks
    results = Results(
        foveate=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        config=config.model_dump(mode="json"),
        environment=describe(fabric),
        data=describe_data(grid.data),
        metric=f"test {get_task(config.task).metric.name}",
        host=config.host,
        runs=runs,
        costs=measure_costs(
            {label: network.module for label, network in networks.items()},
            grid.data,
            runs,
            batch_size=config.recipe.batch_size,
            device=fabric.device,
        ),
        sites={label: _sites(network) for label, network in networks.items()},
    )
    results.comparisons = compare_to_baseline(results)
    return results


def _sites(network: Network) -> list[Site]:
    if network.attention is None:
        return []
    return [
        Site(
            name=site.label,
            channels=site.channels,
            height=site.height,
            width=site.width,
        )
        for site in network.attention.sites
    ]
