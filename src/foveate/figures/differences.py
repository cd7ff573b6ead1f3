"""Paired differences with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foveate.figures.style import INK, Look, new_figure, plain, style

Interval = tuple[float, float]


@dataclass(frozen=True)
class DifferenceRow:
    """One mechanism: its difference at each seed, their mean and intervals, a word at the right.

    ``inner`` is the interval over seeds, ``outer`` that over seeds and images; None is not drawn.
    """

    name: str
    seeds: Sequence[float]
    mean: float
    inner: Interval | None
    outer: Interval | None
    note: str
    control: bool = False


def differences(rows: Sequence[DifferenceRow], looks: Mapping[str, Look], *, xlabel: str) -> Figure:
    """One line a mechanism, from the top; the controls first and set apart by a rule."""
    ordered = [row for row in rows if row.control] + [row for row in rows if not row.control]
    controls = sum(row.control for row in ordered)
    with style():
        figure = new_figure(8.2, 0.9 + 0.42 * len(ordered))
        axes = figure.subplots()
        plain(axes)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.axvline(0, color=INK, linewidth=1)
        for place, row in enumerate(ordered):
            look = looks[row.name]
            _interval(axes, row.outer, place, look.colour, width=1.2, alpha=0.7)
            _interval(axes, row.inner, place, look.colour, width=4.5, alpha=0.45)
            axes.plot(row.seeds, [place + 0.22] * len(row.seeds), ".", color=look.colour, alpha=0.6)
            axes.plot(row.mean, place, color=look.colour, marker=look.marker, markersize=6)
            axes.annotate(
                row.note,
                (1, place),
                xytext=(8, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                va="center_baseline",
            )
        if 0 < controls < len(ordered):
            axes.axhline(controls - 0.5, color=INK, linewidth=0.6, alpha=0.4)
        axes.set_yticks(range(len(ordered)), [row.name for row in ordered])
        axes.set_ylim(len(ordered) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
    return figure


def _interval(
    axes: Axes, interval: Interval | None, place: int, colour: str, *, width: float, alpha: float
) -> None:
    if interval is not None:
        axes.plot(interval, [place, place], color=colour, linewidth=width, alpha=alpha)
