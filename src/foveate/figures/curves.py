"""How training went: one small panel a mechanism, the reference behind each in grey."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from foveate.figures.style import GREY, Look, new_figure, plain, style

COLUMNS = 3
TITLE_WIDTH = 28
POINTS = 200
"""A drawn mean has this many points, however long the training was."""
RAW_POINTS = 12_000
"""All raw lines of a figure together."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One run."""

    x: Sequence[float]
    y: Sequence[float]


def loss_per_step(
    runs: Mapping[str, Sequence[Curve]], looks: Mapping[str, Look], *, reference: str
) -> Figure:
    """Training loss at each optimiser step: every run faintly, the smoothed mean in front."""
    drawn = max(1, sum(len(curves) for curves in runs.values()))
    means = {name: mean_of([smooth(curve) for curve in curves]) for name, curves in runs.items()}
    with style():
        figure, panels = _panels(runs, "optimiser step", "training loss")
        for name, panel in panels.items():
            for curve in runs[name]:
                stride = -(-len(curve.x) // max(1, RAW_POINTS // drawn))
                x, y = curve.x[::stride], curve.y[::stride]
                panel.plot(x, y, color=looks[name].colour, linewidth=0.5, alpha=0.25)
            _mean(panel, means, name, looks, reference)
        losses = [loss for curves in runs.values() for curve in curves for loss in curve.y]
        _scale(next(iter(panels.values())), losses)
    return figure


def accuracy_per_epoch(
    val: Mapping[str, Sequence[Curve]],
    train: Mapping[str, Sequence[Curve]],
    looks: Mapping[str, Look],
    *,
    reference: str,
    ylabel: str = "accuracy, %",
) -> Figure:
    """Validation accuracy, mean and range over seeds; training accuracy as a dotted mean."""
    means = {name: mean_of(curves) for name, curves in val.items()}
    with style():
        figure, panels = _panels(val, "epoch", ylabel)
        for name, panel in panels.items():
            x, rows = common_grid(val[name])
            panel.fill_between(
                x, rows.min(0), rows.max(0), color=looks[name].colour, alpha=0.2, linewidth=0
            )
            _mean(panel, means, name, looks, reference)
            if name in train:
                panel.plot(*mean_of(train[name]), ":", color=looks[name].colour, linewidth=1)
        learned = [float(mean_of(curves)[1].max()) for curves in train.values()]
        _look_closely(next(iter(panels.values())), means, top=max(learned, default=0.0))
    return figure


def smooth(curve: Curve) -> Curve:
    """A centred moving average over a twentieth of the curve, narrower at its ends."""
    y = np.asarray(curve.y, dtype=np.float64)
    half = y.size // 40
    total = np.concatenate([[0.0], np.cumsum(y)])
    at = np.arange(y.size)
    reach = np.minimum(half, np.minimum(at, y.size - 1 - at))
    return Curve(curve.x, ((total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)).tolist())


def common_grid(curves: Sequence[Curve]) -> tuple[Array, Array]:
    """The curves ``(runs, points)`` on one grid, as far as the shortest of them goes."""
    start, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    longest = max(len(curve.x) for curve in curves)
    grid = np.linspace(start, end, min(longest, POINTS))
    return grid, np.stack([np.interp(grid, curve.x, curve.y) for curve in curves])


def mean_of(curves: Sequence[Curve]) -> tuple[Array, Array]:
    """Grid and mean of the curves."""
    grid, rows = common_grid(curves)
    return grid, rows.mean(axis=0)


def _panels(names: Iterable[str], xlabel: str, ylabel: str) -> tuple[Figure, dict[str, Axes]]:
    keys = list(names)
    columns = min(COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = new_figure(9.2 * max(2, columns) / COLUMNS, 0.6 + 1.9 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    cells = list(grid.flat)
    for cell in cells[len(keys) :]:
        cell.set_visible(False)
    for cell, key in zip(cells, keys, strict=False):
        plain(cell)
        cell.set_title(textwrap.fill(key, TITLE_WIDTH), loc="left", fontweight="bold")
        cell.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        cell.xaxis.set_major_formatter(EngFormatter(sep=""))
    for cell in cells[max(0, len(keys) - columns) : len(keys)]:
        cell.tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.supylabel(ylabel, fontsize="medium")
    return figure, dict(zip(keys, cells, strict=False))


def _mean(
    panel: Axes,
    means: Mapping[str, tuple[Array, Array]],
    name: str,
    looks: Mapping[str, Look],
    reference: str,
) -> None:
    for key, colour, width in ((reference, GREY, 1.2), (name, looks[name].colour, 1.6)):
        if key in means:
            x, y = means[key]
            panel.plot(x, y, color=colour, linewidth=width, marker="o" if len(x) == 1 else "")


def _scale(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where the values span enough of it, with labels that have room."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < 4:
        return
    subs = (1, 2, 5) if high / low < 30 else (1, 3) if high / low < 1000 else (1,)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=subs))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _look_closely(panel: Axes, means: Mapping[str, tuple[Array, Array]], *, top: float) -> None:
    """Start the shared axis where the first tenth of training has passed, and end it above all."""
    late = np.concatenate([y[len(y) // 10 :] for _, y in means.values()])
    low, high = float(late.min()), float(late.max())
    margin = max(0.1 * (high - low), 0.5)
    panel.set_ylim(low - margin, min(100.5, max(high, top) + margin))
