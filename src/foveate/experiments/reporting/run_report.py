"""The report of one run: one page that stands alone, and its figures."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from foveate import __version__, figures
from foveate.experiments.config import RunConfig
from foveate.experiments.configfile import to_yaml
from foveate.experiments.data.load import Data, describe_data
from foveate.experiments.reporting.explained import explain_run
from foveate.experiments.reporting.illustration import Illustration, write_figures
from foveate.experiments.reporting.report import capitalised, templates
from foveate.experiments.reporting.results import BASELINE, RunResult
from foveate.experiments.reporting.scenes import picture_run
from foveate.experiments.run import ENVIRONMENT
from foveate.experiments.tasks import get_task
from foveate.experiments.training.checkpoint import write_text


def write_run_report(folder: Path, config: RunConfig, result: RunResult, data: Data) -> Path:
    """Write ``report.html`` and ``figures/`` into the folder of a finished run.

    Returns:
        The path of the page.
    """
    explained, pictured = [], []
    if config.explain and config.mechanism is not None:
        explained.append(explain_run(folder, result, data, images=config.explain))
    if config.explain and (seen := picture_run(folder, result, data)):
        pictured.append(seen)
    illustrations = list(_illustrate(result))
    pictures = [drawn for one in (*explained, *pictured) for drawn in one.illustrations]
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
            pictured=pictured,
            metric=result.metric,
            judged=get_task(data.task).judged,
            per_class=_of(result, result.test_per_class),
            scores=_of(result, result.test_scores),
            config=to_yaml(config),
            environment=json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8")),
            foveate=__version__,
        )
    )
    write_text(page, text)
    return page


def _of(
    result: RunResult, values: Mapping[str, float | None] | None
) -> dict[str, dict[str, float | None]]:
    """A table of one column."""
    return {name: {result.mechanism: value} for name, value in (values or {}).items()}


def _illustrate(result: RunResult) -> Iterator[Illustration]:
    looks = figures.looks([result.mechanism])
    name, curves, metric = result.mechanism, result.curves, result.metric
    train = {name: [figures.Curve(curves.epoch, curves.train_accuracy)]}
    dotted = "; dotted: training accuracy" if curves.train_accuracy else ""
    yield Illustration(
        f"{metric.lower()}-per-epoch",
        f"{capitalised(metric)} at each epoch",
        f"Line: validation {metric}{dotted}.",
        figures.accuracy_per_epoch(
            {name: [figures.Curve(curves.epoch, curves.val_accuracy)]},
            train if curves.train_accuracy else {},
            looks,
            reference=BASELINE,
            ylabel=f"{metric}, %",
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
