"""The report of a comparison: one page that stands alone, its figures, and the numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import jinja2
import yaml

from foveate import figures
from foveate.experiments.reporting.illustration import Explained, Illustration, write_figures
from foveate.experiments.reporting.results import (
    BASELINE,
    CONTROLS,
    STATIC,
    Results,
    RunResult,
    Site,
)
from foveate.experiments.reporting.tables import (
    MECHANISM,
    cost_columns,
    rows,
    runs_csv,
    verdicts,
)
from foveate.experiments.reporting.units import signed
from foveate.experiments.tasks import get_task
from foveate.experiments.training.checkpoint import write_text

LISTED = 60
"""Of a longer list the page shows this many; results.json has them all."""


def write_report(
    results: Results,
    out: Path,
    explained: Sequence[Explained] = (),
    pictured: Sequence[Explained] = (),
) -> Path:
    """Write ``report.html``, ``results.json``, ``results.csv`` and ``figures/``.

    Each file is replaced in one step, and the page last: it never shows what is not yet there.

    Args:
        results: With its ``comparisons`` filled.
        out: The folder, made if missing.
        explained: What the attention of each mechanism does.
        pictured: What each mechanism finds in images.

    Returns:
        The path of ``report.html``.
    """
    illustrations = illustrate(results)
    pictures = [drawn for one in (*explained, *pictured) for drawn in one.illustrations]
    write_figures([*illustrations, *pictures], out / "figures")
    write_text(out / "results.json", results.to_json())
    write_text(out / "results.csv", runs_csv(results))
    page = out / "report.html"
    write_text(page, render(results, illustrations, explained, pictured))
    return page


def render(
    results: Results,
    illustrations: list[Illustration],
    explained: Sequence[Explained] = (),
    pictured: Sequence[Explained] = (),
) -> str:
    """The text of the page."""
    seeds = sorted({run.seed for run in results.runs})
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            results=results,
            answers=answers(results),
            tables={
                "Verdicts": [column.titled(results.metric_name) for column in verdicts(results)],
                "Costs": [MECHANISM, *cost_columns(results)],
            },
            per_class=per_class(results),
            scores=other_scores(results),
            other_images=get_task(results.task).other_images,
            metric=results.metric_name,
            judged=get_task(results.task).judged,
            rows=rows(results),
            illustrations=illustrations,
            explained=explained,
            pictured=pictured,
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
    environment.filters["capitalised"] = capitalised
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


def per_class(results: Results) -> dict[str, dict[str, float | None]]:
    """The mean of the metric over seeds, by class and mechanism; empty for a classification."""
    return _means(results, lambda run: run.test_per_class)


def other_scores(results: Results) -> dict[str, dict[str, float | None]]:
    """The means of the other metrics over seeds, by their names and mechanism."""
    return _means(results, lambda run: run.test_scores)


def _means(
    results: Results, look: Callable[[RunResult], Mapping[str, float | None] | None]
) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, list[float]]] = {}
    for mechanism in results.mechanisms:
        for run in results.finished(mechanism).values():
            for name, value in (look(run) or {}).items():
                seen = found.setdefault(name, {}).setdefault(mechanism, [])
                seen += [] if value is None else [value]
    return {
        name: {key: fmean(seen) if seen else None for key, seen in row.items()}
        for name, row in found.items()
    }


def capitalised(name: str) -> str:
    """As at the beginning of a sentence; mIoU stays what it is."""
    first, *_ = name.split()
    return name[:1].upper() + name[1:] if first.islower() else name


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
    name = results.metric_name
    axes = [
        figures.CostAxis("parameters"),
        figures.CostAxis("FLOPs of an image"),
        figures.CostAxis("latency of an image", "s"),
    ]
    return Illustration(
        f"{name.lower()}-against-cost",
        f"{capitalised(name)} against cost",
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
    name, dotted = results.metric_name, " dotted: training accuracy;" if train else ""
    return Illustration(
        f"{name.lower()}-per-epoch",
        f"{capitalised(name)} at each epoch",
        f"Line: mean validation {name}; band: lowest to highest seed;{dotted}"
        f" grey: validation {name} of none.",
        figures.accuracy_per_epoch(val, train, looks, reference=BASELINE, ylabel=f"{name}, %"),
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
