"""The report of one run: one page that stands alone, and its figures."""

import json
from collections.abc import Iterator
from pathlib import Path

from foveate import __version__, figures
from foveate.experiments.config import RunConfig
from foveate.experiments.configfile import to_yaml
from foveate.experiments.data.load import Data, describe_data
from foveate.experiments.reporting.explained import explain_run
from foveate.experiments.reporting.illustration import Illustration, write_figures
from foveate.experiments.reporting.report import templates
from foveate.experiments.reporting.results import BASELINE, RunResult
from foveate.experiments.run import ENVIRONMENT
from foveate.experiments.training.checkpoint import write_text


def write_run_report(folder: Path, config: RunConfig, result: RunResult, data: Data) -> Path:
    """Write ``report.html`` and ``figures/`` into the folder of a finished run.

    Returns:
        The path of the page.
    """
    explained = []
    if config.explain and config.mechanism is not None:
        explained.append(explain_run(folder, result, data, images=config.explain))
    illustrations = list(_illustrate(result))
    pictures = [drawn for one in explained for drawn in one.illustrations]
    write_figures([*illustrations, *pictures], folder / "figures")
    page = folder / "report.html"
    text = (
        templates()
        .get_template("run.html.j2")
        .render(
            result=result,
            host=config.host,
            data=describe_data(data),
            illustrations=illustrations,
            explained=explained,
            config=to_yaml(config),
            environment=json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8")),
            foveate=__version__,
        )
    )
    write_text(page, text)
    return page


def _illustrate(result: RunResult) -> Iterator[Illustration]:
    looks = figures.looks([result.mechanism])
    name, curves = result.mechanism, result.curves
    yield Illustration(
        "accuracy-per-epoch",
        "Accuracy at each epoch",
        "Line: validation accuracy; dotted: training accuracy.",
        figures.accuracy_per_epoch(
            {name: [figures.Curve(curves.epoch, curves.val_accuracy)]},
            {name: [figures.Curve(curves.epoch, curves.train_accuracy)]},
            looks,
            reference=BASELINE,
        ),
    )
    yield Illustration(
        "loss-per-step",
        "Training loss at each step",
        "Faint: as it was; line: smoothed.",
        figures.loss_per_step(
            {name: [figures.Curve(curves.step, curves.train_loss)]}, looks, reference=BASELINE
        ),
    )
