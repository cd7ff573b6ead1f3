"""``foveate compare``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from foveate.cli import experiment as options

_OWN = ("host", "pretrained", "mechanisms", "where", "at", "init", "seeds", "out")


def compare(
    context: typer.Context,
    task: options.Task = None,
    data: options.DataName = None,
    host: options.Host = None,
    head: options.Head = None,
    mechanisms: Annotated[
        str | None, typer.Option(help="Keys with commas; the controls are added.")
    ] = None,
    where: options.Where = None,
    at: options.At = None,
    init: options.Init = None,
    seeds: Annotated[str | None, typer.Option(help="How many, or which: 3, or 0,1,2.")] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    optimizer: options.Optimizer = None,
    schedule: options.Schedule = None,
    augment: options.Augment = None,
    precision: options.Precision = None,
    accelerator: options.Accelerator = None,
    tracker: options.Tracker = None,
    pretrained: options.Pretrained = None,
    teacher: options.Teacher = None,
    trust_code: options.TrustCode = None,
    root: options.Root = None,
    image_size: options.ImageSize = None,
    void: options.Void = None,
    limit: options.Limit = None,
    skip_bad: options.SkipBad = None,
    download: options.Download = None,
    changes: options.Changes = None,
    config: options.ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison.")] = None,
    as_json: options.AsJson = False,
) -> int:
    """Train a network with each mechanism, several seeds each, and say whether any helped."""
    values = options.settings(context, {name: name for name in _OWN})
    from foveate.experiments.compare import compare as run_comparison
    from foveate.experiments.compare import prepare
    from foveate.experiments.config import CompareConfig
    from foveate.experiments.configfile import parse
    from foveate.experiments.reporting.tables import verdict_table
    from foveate.experiments.training.interrupt import Interrupted
    from foveate.experiments.training.progress import watch

    console = options.progress_console(as_json)
    grid = prepare(parse(CompareConfig, values))
    with watch(console, runs=len(grid.runs)) as watcher:
        try:
            results = run_comparison(grid, watcher, command=shlex.join(["foveate", *sys.argv[1:]]))
        except Interrupted:
            return options.stopped(grid.config.out)
    if as_json and not console.quiet:
        print(results.to_json())
    console.print(verdict_table(results))
    console.print(f"report: {grid.config.out / 'report.html'}", soft_wrap=True, highlight=False)
    return 0 if results.finished(results.baseline) else 1
