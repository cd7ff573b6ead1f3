"""Accuracy against what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from foveate.figures.style import FONT_SIZE, GREY, Look, new_figure, plain, style

LINE_HEIGHT = 1.35
NAME_LENGTH = 24


@dataclass(frozen=True)
class CostAxis:
    """One way to count cost; a metric prefix stands before the unit."""

    label: str
    unit: str = ""


@dataclass(frozen=True)
class CostPoint:
    """One mechanism: accuracy in percent, and a (value, spread) for each axis."""

    name: str
    accuracy: float
    spread: float
    costs: Sequence[tuple[float, float]]


def accuracy_against_cost(
    points: Sequence[CostPoint],
    axes: Sequence[CostAxis],
    looks: Mapping[str, Look],
    *,
    ylabel: str,
) -> Figure:
    """One panel a cost, all with the same accuracy axis; names stand once, at the right."""
    height = max(3.0, 1.1 + len(points) * FONT_SIZE * LINE_HEIGHT / 72)
    with style():
        figure = new_figure(9.2, height)
        panels = figure.subplots(
            1, len(axes) + 1, sharey=True, width_ratios=[1.0] * len(axes) + [0.42]
        )
        for index, axis in enumerate(axes):
            _panel(panels[index], axis, index, points, looks)
        panels[0].set_ylabel(ylabel)
        _names(panels[-1], points, looks, inches=height - 0.9)
    return figure


def _panel(
    panel: Axes, axis: CostAxis, index: int, points: Sequence[CostPoint], looks: Mapping[str, Look]
) -> None:
    plain(panel)
    panel.set_xlabel(axis.label)
    panel.xaxis.set_major_locator(MaxNLocator(3))
    panel.xaxis.set_major_formatter(EngFormatter(unit=axis.unit))
    panel.margins(x=0.12, y=0.1)
    for point in points:
        value, spread = point.costs[index]
        look = looks[point.name]
        panel.errorbar(
            value,
            point.accuracy,
            xerr=spread,
            yerr=point.spread,
            color=look.colour,
            marker=look.marker,
            markersize=6,
            linewidth=1,
        )


def _names(
    panel: Axes, points: Sequence[CostPoint], looks: Mapping[str, Look], *, inches: float
) -> None:
    """Each name at the height of its points, moved apart where they would touch."""
    panel.axis("off")
    low, high = panel.get_ylim()
    gap = (high - low) * FONT_SIZE * LINE_HEIGHT / (72 * inches)
    heights = spread_apart([point.accuracy for point in points], gap=gap, low=low, high=high)
    panel.set_xlim(0, 1)
    for point, at in zip(points, heights, strict=True):
        look = looks[point.name]
        panel.plot([0, 0.2], [point.accuracy, at], color=GREY, linewidth=0.6)
        panel.plot(0.29, at, color=look.colour, marker=look.marker, markersize=5)
        panel.text(0.4, at, _shortened(point.name), va="center_baseline")
    panel.set_ylim(low, high)


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def spread_apart(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move values apart until neighbours differ by ``gap``, in their order, between the bounds.

    Where the bounds are too close for all of them, the gap shrinks.

    Example:
        >>> spread_apart([1.0, 1.0, 5.0], gap=1.0, low=0.0, high=6.0)
        [0.5, 1.5, 5.0]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    gap = min(gap, (high - low) / max(1, len(values)))
    groups: list[tuple[float, int]] = []  # centre and count of runs of labels that touch
    for index in order:
        centre, count = values[index], 1
        while True:
            half = count * gap / 2
            centre = min(max(centre, low + half), high - half)
            if not groups or groups[-1][0] + groups[-1][1] * gap / 2 <= centre - half:
                break
            before, more = groups.pop()
            centre = (centre * count + before * more) / (count + more)
            count += more
        groups.append((centre, count))
    spread = [centre + (i - (n - 1) / 2) * gap for centre, n in groups for i in range(n)]
    return [at for _, at in sorted(zip(order, spread, strict=True))]
