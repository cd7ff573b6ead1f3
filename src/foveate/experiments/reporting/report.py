"""The report of a comparison: one page that stands alone, its figures, and the numbers."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml

from foveate import figures
from foveate.experiments.reporting.explained import Explained
from foveate.experiments.reporting.illustration import Illustration, write_figures
from foveate.experiments.reporting.results import BASELINE, CONTROLS, STATIC, Results, Site
from foveate.experiments.reporting.tables import MECHANISM, VERDICTS, cost_columns, rows, runs_csv
from foveate.experiments.reporting.units import signed
from foveate.experiments.training.checkpoint import write_text

LISTED = 60
"""Of a longer list the page shows this many; results.json has them all."""


def write_report(results: Results, out: Path, explained: Sequence[Explained] = ()) -> Path:
    """Write ``report.html``, ``results.json``, ``results.csv`` and ``figures/``.

    Each file is replaced in one step, and the page last: it never shows what is not yet there.

    Args:
        results: With its ``comparisons`` filled.
        out: The folder, made if missing.
        explained: What the attention of each mechanism does.

    Returns:
        The path of ``report.html``.
    """
    illustrations = illustrate(results)
    pictures = [drawn for one in explained for drawn in one.illustrations]
    write_figures([*illustrations, *pictures], out / "figures")
    write_text(out / "results.json", results.to_json())
    write_text(out / "results.csv", runs_csv(results))
    page = out / "report.html"
    write_text(page, render(results, illustrations, explained))
    return page


def render(
    results: Results, illustrations: list[Illustration], explained: Sequence[Explained] = ()
) -> str:
    """The text of the page."""
    seeds = sorted({run.seed for run in results.runs})
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            results=results,
            answers=answers(results),
            tables={"Verdicts": VERDICTS, "Costs": (MECHANISM, *cost_columns(results))},
            rows=rows(results),
            illustrations=illustrations,
            explained=explained,
            seeds=seeds,
            accuracies={key: results.finished(key) for key in results.mechanisms},
            differences={key: results.differences(key) for key in results.mechanisms},
            sites=sites(results),
            images=images_tested(results),
            config=yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True),
            signed=signed,
            baseline=BASELINE,
            static=STATIC,
        )
    )


def templates() -> jinja2.Environment:
    """The pages; what a person called a thing is escaped in all of them."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("foveate.experiments.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["listed"] = LISTED
    return environment


def answers(results: Results) -> dict[str, list[str]]:
    """The mechanisms by verdict, the clear verdicts first."""
    order = ("better", "worse", "not distinguishable", "no verdict")
    found = {
        verdict: [c.mechanism for c in results.comparisons if c.verdict == verdict]
        for verdict in order
    }
    return {verdict: names for verdict, names in found.items() if names}


def sites(results: Results) -> list[tuple[str, list[Site]]]:
    """Where attention was put; mechanisms that share their places share an entry."""
    shared: list[tuple[list[str], list[Site]]] = []
    for mechanism, places in results.sites.items():
        same = next((names for names, others in shared if others == places), None)
        if same is not None:
            same.append(mechanism)
        elif places:
            shared.append(([mechanism], places))
    return [(", ".join(names), places) for names, places in shared]


def images_tested(results: Results) -> int | None:
    """How many images decide the accuracy."""
    counted = (len(run.test_correct) for run in results.runs if run.test_correct)
    return next(counted, None)


def illustrate(results: Results) -> list[Illustration]:
    """The figures for which there are numbers."""
    looks = figures.looks(results.mechanisms, controls=CONTROLS)
    drawn = (
        _differences(results, looks),
        _costs(results, looks),
        _per_epoch(results, looks),
        _per_step(results, looks),
    )
    return [illustration for illustration in drawn if illustration]


Looks = dict[str, figures.Look]


def _differences(results: Results, looks: Looks) -> Illustration | None:
    lines = [
        figures.DifferenceRow(
            name=comparison.mechanism,
            seeds=list(results.differences(comparison.mechanism).values()),
            mean=comparison.difference,
            inner=comparison.interval,
            outer=comparison.interval_both,
            note=f"{signed(comparison.difference)}  {comparison.verdict}",
            control=comparison.mechanism in CONTROLS,
        )
        for comparison in results.comparisons
        if comparison.difference is not None
    ]
    if not lines:
        return None
    return Illustration(
        "differences",
        "Difference to no attention",
        "Each dot is one seed. Thick: 95 % interval over seeds; thin: over seeds and test images.",
        figures.differences(lines, looks, xlabel=f"{results.metric} less that of none, points"),
    )


def _costs(results: Results, looks: Looks) -> Illustration | None:
    points = []
    for row in rows(results):
        accuracy, cost = row.mean("test_accuracy"), row.cost
        if accuracy is None or cost is None:
            continue
        latency = (cost.latency_ms / 1e3, cost.latency_iqr_ms / 2e3)
        costs = [(cost.parameters, 0.0), (cost.flops, 0.0), latency]
        spread = row.spread("test_accuracy") or 0.0
        points.append(figures.CostPoint(row.mechanism, accuracy, spread, costs))
    if not points:
        return None
    axes = [
        figures.CostAxis("parameters"),
        figures.CostAxis("FLOPs of an image"),
        figures.CostAxis("latency of an image", "s"),
    ]
    return Illustration(
        "accuracy-against-cost",
        "Accuracy against cost",
        "Mean and standard deviation over seeds; of the latency, median and quartiles."
        " FLOPs are multiply-adds.",
        figures.accuracy_against_cost(points, axes, looks, ylabel=f"{results.metric}, %"),
    )


def _curves(results: Results, x: str, y: str) -> dict[str, list[figures.Curve]]:
    """The curves of all finished runs that have one, by mechanism."""
    found: dict[str, list[figures.Curve]] = {}
    for mechanism in results.mechanisms:
        for run in results.finished(mechanism).values():
            xs: list[float] = getattr(run.curves, x)
            ys: list[float] = getattr(run.curves, y)
            if xs and len(xs) == len(ys):
                found.setdefault(mechanism, []).append(figures.Curve(xs, ys))
    return found


def _per_epoch(results: Results, looks: Looks) -> Illustration | None:
    val, train = (_curves(results, "epoch", y) for y in ("val_accuracy", "train_accuracy"))
    if not val:
        return None
    return Illustration(
        "accuracy-per-epoch",
        "Accuracy at each epoch",
        "Line: mean validation accuracy; band: lowest to highest seed; dotted: training accuracy;"
        " grey: validation accuracy of none.",
        figures.accuracy_per_epoch(val, train, looks, reference=BASELINE),
    )


def _per_step(results: Results, looks: Looks) -> Illustration | None:
    loss = _curves(results, "step", "train_loss")
    if not loss:
        return None
    return Illustration(
        "loss-per-step",
        "Training loss at each step",
        "Faint: every seed; line: smoothed mean over seeds; grey: that of none.",
        figures.loss_per_step(loss, looks, reference=BASELINE),
    )
