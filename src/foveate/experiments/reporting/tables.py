"""The verdict table: the same columns for a terminal, a page and a spreadsheet."""

import csv
import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.experiments.reporting.results import (
    BASELINE,
    CONTROLS,
    Comparison,
    Cost,
    Results,
    RunResult,
)
from foveate.experiments.reporting.units import (
    MISSING,
    at_most,
    duration,
    milliseconds,
    p_value,
    si,
    signed,
)

COLOURS = {"better": "bold green", "worse": "bold red", "no verdict": "yellow"}


@dataclass(frozen=True)
class Row:
    """One mechanism of the table; ``comparison`` is None for the baseline."""

    mechanism: str
    runs: list[RunResult]
    comparison: Comparison | None
    cost: Cost | None

    @property
    def is_control(self) -> bool:
        return self.mechanism in CONTROLS

    @property
    def verdict(self) -> str:
        if self.mechanism == BASELINE:
            return "baseline"
        return self.comparison.verdict if self.comparison else MISSING

    def mean(self, field: str) -> float | None:
        """Mean of a field over the finished runs that have it."""
        values = [value for run in self.runs if (value := getattr(run, field)) is not None]
        return fmean(values) if values else None

    def spread(self, field: str) -> float | None:
        """Standard deviation of a field over the finished runs."""
        values = [value for run in self.runs if (value := getattr(run, field)) is not None]
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Column:
    """A column: its title, its text for a row, and what the title leaves out."""

    title: str
    text: Callable[[Row], str]
    help: str = ""

    def titled(self, metric: str) -> "Column":
        """The same column of a table whose metric is not the accuracy."""
        return replace(self, title=self.title.replace("accuracy", metric))


def rows(results: Results) -> list[Row]:
    """The baseline, the other control, then the mechanisms as the comparisons order them."""
    compared = {comparison.mechanism: comparison for comparison in results.comparisons}
    ranked = [key for key in results.mechanisms if key not in compared] + list(compared)
    return [
        Row(key, list(results.finished(key).values()), compared.get(key), results.costs.get(key))
        for key in ranked
    ]


def _accuracy(row: Row) -> str:
    mean, spread = row.mean("test_accuracy"), row.spread("test_accuracy")
    if mean is None:
        return MISSING
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _difference(row: Row) -> str:
    return signed(row.comparison.difference) if row.comparison else MISSING


def _interval(row: Row) -> str:
    seeds = row.comparison.interval if row.comparison else None
    return f"[{signed(seeds[0])}, {signed(seeds[1])}]" if seeds else MISSING


def _interval_both(row: Row) -> str:
    both = row.comparison.interval_both if row.comparison else None
    return f"[{signed(both[0])}, {signed(both[1])}]" if both else MISSING


def _added(row: Row) -> str:
    if row.cost is None:
        return MISSING
    added = row.cost.added_parameters
    return f"{si(added)} ({100 * added / max(1, row.cost.parameters - added):.1f} %)"


def _p(row: Row) -> str:
    return p_value(row.comparison.p_holm) if row.comparison else MISSING


def _seeds_needed(row: Row) -> str:
    comparison = row.comparison
    if comparison is None or comparison.seeds_needed is None or row.verdict in ("better", "worse"):
        return MISSING
    return at_most(comparison.seeds_needed)


def _energy(row: Row) -> str:
    return si(row.mean("energy_joules"), "J")


MECHANISM = Column("mechanism", lambda row: row.mechanism)
ACCURACY = Column("accuracy %", _accuracy, "mean and standard deviation over seeds")
DIFFERENCE = Column("difference to none", _difference, "percentage points, paired by seed")
INTERVAL = Column("95 % interval", _interval, "of the difference, over seeds")
INTERVAL_BOTH = Column("with other images", _interval_both, "over seeds and test images")
P = Column("p (Holm)", _p, "two-sided, corrected for the number of mechanisms")
VERDICT = Column("verdict", lambda row: row.verdict)
SEEDS = Column("seeds needed", _seeds_needed, "to see the difference, if it is true")
PARAMETERS = Column("params", lambda row: si(getattr(row.cost, "parameters", None)))
ADDED = Column("added params", _added, "and share of the host's")
FLOPS = Column("FLOPs", lambda row: si(getattr(row.cost, "flops", None)), "multiply-adds, an image")
LATENCY = Column("latency", lambda row: milliseconds(getattr(row.cost, "latency_ms", None)))
MEMORY = Column("peak memory", lambda row: si(getattr(row.cost, "peak_memory_bytes", None), "B"))
SPEED = Column("train images/s", lambda row: si(row.mean("images_per_second")))
WALL = Column("wall time", lambda row: duration(row.mean("wall_seconds")), "of one run")
ENERGY = Column("energy", _energy, "of one run")

VERDICTS = (MECHANISM, ACCURACY, DIFFERENCE, INTERVAL, INTERVAL_BOTH, P, VERDICT, SEEDS)
COSTS = (PARAMETERS, ADDED, FLOPS, LATENCY, MEMORY, SPEED, WALL, ENERGY)
PRIORITY = (
    *(MECHANISM, VERDICT, DIFFERENCE, ACCURACY, INTERVAL, P),
    *(PARAMETERS, LATENCY, FLOPS, SEEDS, MEMORY, SPEED, WALL, ENERGY),
)
"""The order in which a terminal shows columns while it has room; the others are for the page."""


_NOT_IN_A_CELL = frozenset(
    ("curves", "test_correct", "test_per_class", "test_scores", "test_values")
)


def verdicts(results: Results) -> list[Column]:
    """The columns of the verdicts, but no interval over images where there is none."""
    shown = any(comparison.interval_both for comparison in results.comparisons)
    left_out = results.metric_name != "accuracy" and not shown
    return [column for column in VERDICTS if not (left_out and column is INTERVAL_BOTH)]


def cost_columns(results: Results) -> list[Column]:
    """The columns of cost, but no energy where nothing could read it."""
    readable = any(run.energy_joules is not None for run in results.runs)
    return [column for column in COSTS if readable or column is not ENERGY]


def verdict_table(results: Results, *, width: int | None = None) -> Table:
    """The verdicts for a terminal, in unbroken lines.

    Args:
        results: With its ``comparisons`` filled.
        width: Characters to fill, by default the terminal's; columns that do not fit are dropped,
            those of cost first.
    """
    listed = rows(results)
    table = Table(
        title=f"{results.metric}: {results.host} on {results.data.get('name', '')}",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    available = [*verdicts(results), *cost_columns(results)]
    fitting = _fitting(available, listed, Console().width if width is None else width)
    shown = [column.titled(results.metric_name) for column in fitting]
    for column in shown:
        side: Literal["left", "right"] = "left" if column in (MECHANISM, VERDICT) else "right"
        table.add_column("\n".join(_header(column, listed)), justify=side, no_wrap=True)
    for place, row in enumerate(listed):
        last_control = row.is_control and not any(r.is_control for r in listed[place + 1 :])
        style = COLOURS.get(row.verdict, "dim")
        texts = [Text(c.text(row), style=style if c == VERDICT else "") for c in shown]
        table.add_row(*texts, end_section=last_control)
    return table


def _fitting(available: list[Column], listed: list[Row], width: int) -> list[Column]:
    """The two dearest columns and those that fit beside them, in the order of ``available``."""
    chosen: list[Column] = []
    for column in (column for column in PRIORITY if column in available):
        width -= 2 + max(
            cell_len(line) for line in (*_header(column, listed), *_cells(column, listed))
        )
        if width < 0 and len(chosen) > 1:
            break
        chosen.append(column)
    return [column for column in available if column in chosen]


def _header(column: Column, listed: list[Row]) -> list[str]:
    """The title in lines no longer than its longest word or the column's longest text."""
    words = (*column.title.split(), *_cells(column, listed))
    return textwrap.wrap(column.title, max(cell_len(word) for word in words))


def _cells(column: Column, listed: list[Row]) -> list[str]:
    return [column.text(row) for row in listed]


def runs_csv(results: Results) -> str:
    """One line a run, in plain numbers: its result and the cost of its mechanism."""
    result = [name for name in RunResult.model_fields if name not in _NOT_IN_A_CELL]
    if results.metric_name == "accuracy":
        result.remove("metric")
    cost = [f"cost_{name}" for name in Cost.model_fields]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*result, "difference_to_none", *cost], lineterminator="\n")
    writer.writeheader()
    for run in results.runs:
        line = run.model_dump(include=set(result))
        line["difference_to_none"] = results.differences(run.mechanism).get(run.seed)
        if known := results.costs.get(run.mechanism):
            line |= {f"cost_{name}": value for name, value in known.model_dump().items()}
        writer.writerow(line)
    return text.getvalue()
