"""``foveate train``."""

from pathlib import Path
from typing import Annotated

import typer

from foveate.cli import experiment as options

_PATHS = {
    "host": "host",
    "pretrained": "pretrained",
    "seed": "seed",
    "mechanism": "mechanism.key",
    "where": "mechanism.where",
    "at": "mechanism.at",
    "init": "mechanism.init",
}


def train(
    context: typer.Context,
    task: options.Task = None,
    data: options.DataName = None,
    host: options.Host = None,
    head: options.Head = None,
    mechanism: Annotated[str | None, typer.Option(help="Key of a mechanism; none if bare.")] = None,
    where: options.Where = None,
    at: options.At = None,
    init: options.Init = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and augmentation.")] = None,
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
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("foveate-run"),
    as_json: options.AsJson = False,
) -> int:
    """Train one network, or go on with what the folder holds, and test it once at the end."""
    values = options.settings(context, _PATHS)
    from foveate.experiments.alone import run_alone
    from foveate.experiments.config import RunConfig
    from foveate.experiments.configfile import parse
    from foveate.experiments.training.interrupt import Interrupted
    from foveate.experiments.training.progress import watch
    from foveate.experiments.training.train import DivergedError

    console = options.progress_console(as_json)
    with watch(console) as watcher:
        try:
            result = run_alone(parse(RunConfig, values), out, watcher)
        except Interrupted:
            return options.stopped(out)
        except DivergedError as error:
            return options.failed(str(error))
    if as_json and not console.quiet:
        print(result.model_dump_json(indent=2))
    weights = out / "model.safetensors"
    console.print(
        f"test {result.metric} {result.test_accuracy:.2f} %, weights in {weights}", soft_wrap=True
    )
    return 0
