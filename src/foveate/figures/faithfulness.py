"""How the output goes with the pixels that maps rank highest, and how much better than chance."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foveate.figures.overlay import shortened
from foveate.figures.style import Look, looks, new_figure, plain, style

Interval = tuple[float, float, float]
_HINTS = {"deletion": "lower is better", "insertion": "higher is better"}


def faithfulness(
    shares: Sequence[float],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    gains: Mapping[str, Mapping[str, Interval]],
    *,
    controls: Sequence[str],
) -> Figure:
    """A column for each kind: the curves on top, the gains over chance with intervals below.

    Args:
        shares: Of the pixels, at which the curves are known.
        curves: By kind, then by map.
        gains: By kind, then by map: mean and the ends of an interval.
        controls: Maps that are drawn in grey.
    """
    names = list(next(iter(curves.values())))
    given = looks(names, controls=controls)
    rows = max(len(found) for found in gains.values())
    with style():
        figure = new_figure(9.2, 3.4 + 0.26 * rows)
        grid = figure.subplots(2, len(curves), height_ratios=[2.7, 0.5 + 0.26 * rows], sharey="row")
        for (kind, lines), above, below in zip(curves.items(), grid[0], grid[1], strict=True):
            _curves(above, kind, shares, lines, given)
            _gains(below, gains[kind], given)
        grid[0][0].set_ylabel("probability of the class")
    return figure


def _curves(
    axes: Axes,
    kind: str,
    shares: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    given: Mapping[str, Look],
) -> None:
    plain(axes)
    for name, line in lines.items():
        look = given[name]
        axes.plot(
            100 * np.asarray(shares),
            line,
            color=look.colour,
            marker=look.marker,
            markersize=3,
            linewidth=1.2,
            label=shortened(name),
        )
    axes.set_title(f"{kind} ({_HINTS[kind]})", loc="left", fontweight="bold")
    axes.set_xlabel("pixels, %")
    if kind == "deletion":  # whose curves leave this corner free
        axes.legend(fontsize="x-small", frameon=False, loc="upper right")


def _gains(axes: Axes, gains: Mapping[str, Interval], given: Mapping[str, Look]) -> None:
    plain(axes)
    axes.axvline(0, color=given["random"].colour, linewidth=0.8)
    for place, (name, (mean, low, high)) in enumerate(gains.items()):
        look = given[name]
        axes.plot([low, high], [place, place], color=look.colour, linewidth=2)
        axes.plot(mean, place, marker=look.marker, color=look.colour, markersize=5)
    axes.set_yticks(range(len(gains)), [shortened(name) for name in gains])
    axes.set_ylim(len(gains) - 0.5, -0.5)
    axes.set_xlabel("better than a random map by, 95 % interval")
