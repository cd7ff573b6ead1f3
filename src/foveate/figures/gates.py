"""Gates over many images: how they are spread, by layer, by class, and while a network learns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from foveate.figures.overlay import shortened
from foveate.figures.style import COLOURS, GREY, new_figure, plain, style

Array = NDArray[np.float64]

WIDTH = 9.2
COLUMNS = 4
MOST = 12
"""Of more layers than this an even choice has a panel."""
SHARES = (5, 25, 50, 75, 95)
"""The percentiles of :class:`Spread`."""


@dataclass(frozen=True)
class Spread:
    """The values of a gate over images, channels and positions."""

    percentiles: Sequence[float]
    """At :data:`SHARES`."""
    edges: Sequence[float] = ()
    counts: Sequence[float] = ()


@dataclass(frozen=True)
class ClassProfile:
    """The mean gate of each channel for each class."""

    title: str
    values: Array
    """``(classes, channels)``."""
    between: float
    """Share of the variance over images that lies between the classes."""
    by_chance: float
    """What that share would be on average if the classes meant nothing."""


@dataclass(frozen=True)
class Slope:
    """The gradient of one part of a network."""

    name: str
    size: float
    attention: bool


def gate_histograms(gates: Mapping[str, Spread]) -> Figure:
    """How often each value occurs, a panel a gate, in the order of depth."""
    chosen = even(list(gates), MOST)

    def draw(axes: Axes, name: str) -> None:
        spread = gates[name]
        share = 100 * np.asarray(spread.counts) / max(1.0, float(np.sum(spread.counts)))
        axes.stairs(share, spread.edges, fill=True, color=COLOURS[0], alpha=0.75)
        axes.axvline(spread.percentiles[2], color=COLOURS[1], linewidth=1.2)

    return _panels(chosen, draw, "gate (line: median)", "values, %", one_scale=False)


def gates_by_depth(gates: Mapping[str, Mapping[str, Spread]]) -> Figure:
    """Median and spread of each part, from the first layer to the last: a panel a part.

    Args:
        gates: By part, then by layer.
    """
    with style():
        figure = new_figure(WIDTH, 2.8)
        grid = figure.subplots(1, len(gates), squeeze=False, sharey=True)[0]
        for axes, (part, layers) in zip(grid, gates.items(), strict=True):
            plain(axes)
            rows = np.array([spread.percentiles for spread in layers.values()])
            _bands(axes, np.arange(1.0, len(rows) + 1), rows, marker="o")
            axes.set_title(part, loc="left", fontweight="bold")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
            axes.set_xlabel("layer, from the first to the last")
        grid[0].set_ylabel("gate")
    return figure


def gate_evolution(steps: Sequence[int], gates: Mapping[str, Sequence[Spread]]) -> Figure:
    """Median and spread of each gate while the network learns: a panel a gate."""

    def draw(axes: Axes, name: str) -> None:
        rows = np.array([spread.percentiles for spread in gates[name]])
        _bands(
            axes, np.asarray(steps, dtype=np.float64), rows, marker="o" if len(rows) == 1 else ""
        )

    return _panels(even(list(gates), MOST), draw, "optimiser step", "gate", one_scale=True)


def class_profiles(profiles: Sequence[ClassProfile], classes: Sequence[str]) -> Figure:
    """The mean gate of each class, less that of all, by channel: a panel a layer."""
    height = 0.9 + min(3.0, 0.16 * len(classes) + 0.3)
    with style():
        figure = new_figure(WIDTH, height * len(profiles))
        grid = figure.subplots(len(profiles), 1, squeeze=False)[:, 0]
        for axes, profile in zip(grid, profiles, strict=True):
            _profile(axes, profile, classes)
        grid[-1].set_xlabel("channels, those that differ most between classes first")
    return figure


def gradients_by_depth(slopes: Sequence[Slope]) -> Figure:
    """Size of the gradient of each layer of the host and of each mechanism, in their order."""
    with style():
        figure = new_figure(WIDTH, 2.8)
        axes = figure.subplots()
        plain(axes)
        for attention, colour, marker, label in (
            (False, GREY, ".", "host"),
            (True, COLOURS[1], "o", "attention"),
        ):
            x = [i for i, s in enumerate(slopes, 1) if s.attention is attention and s.size > 0]
            y = [slopes[i - 1].size for i in x]
            axes.plot(x, y, marker, color=colour, label=label, markersize=5)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel("layer, from the first to the last")
        axes.set_ylabel("gradient, root mean square")
        axes.legend(frameon=False, ncols=2, loc="best")
        none = sum(s.size == 0 for s in slopes)
        if none:
            axes.set_title(f"{none} without any gradient", loc="left", fontsize="small")
    return figure


def even(names: Sequence[Any], most: int) -> list[Any]:
    """All, or an even choice of them, the first and the last included.

    Example:
        >>> even("abcdefg", 3)
        ['a', 'd', 'g']
    """
    if len(names) <= most:
        return list(names)
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _panels(
    names: Sequence[str],
    draw: Callable[[Axes, str], None],
    xlabel: str,
    ylabel: str,
    *,
    one_scale: bool,
) -> Figure:
    columns = min(COLUMNS, max(2, len(names)))
    rows = -(-len(names) // columns)
    with style():
        figure = new_figure(WIDTH, 0.5 + 1.55 * rows)
        cells = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=one_scale)
        grid = list(cells.flat)
        for axes in grid[len(names) :]:
            axes.set_visible(False)
        for place, (axes, name) in enumerate(zip(grid, names, strict=False)):
            plain(axes)
            draw(axes, name)
            axes.set_title(shortened(name), loc="left", fontsize="small")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=one_scale))
            axes.tick_params(labelbottom=place >= len(names) - columns)
        figure.supxlabel(xlabel, fontsize="medium")
        figure.supylabel(ylabel, fontsize="medium")
    return figure


def _bands(axes: Axes, x: Array, rows: Array, *, marker: str) -> None:
    """Percentiles ``(points, 5)``: half of all values in the dark band, 90 % in the light one."""
    for low, high, alpha in ((0, 4, 0.18), (1, 3, 0.3)):
        axes.fill_between(x, rows[:, low], rows[:, high], color=COLOURS[0], alpha=alpha, lw=0)
    axes.plot(x, rows[:, 2], color=COLOURS[0], linewidth=1.5, marker=marker, markersize=4)


def _profile(axes: Axes, profile: ClassProfile, classes: Sequence[str]) -> None:
    shown = profile.values - profile.values.mean(0)
    shown = shown[:, np.argsort(-shown.var(0), kind="stable")]
    bound = max(float(np.abs(shown).max()), 1e-12)
    image = axes.imshow(
        shown, aspect="auto", cmap="PuOr", vmin=-bound, vmax=bound, interpolation="nearest"
    )
    axes.set_title(
        f"{profile.title}: {profile.between:.1%} of the variance between classes "
        f"({profile.by_chance:.1%} by chance)",
        loc="left",
        fontsize="small",
    )
    axes.spines[:].set_visible(False)
    if len(classes) <= 20:
        axes.set_yticks(range(len(classes)), [shortened(name) for name in classes])
        axes.tick_params(axis="y", labelsize="xx-small", length=0)
    else:
        axes.set_ylabel(f"{len(classes)} classes")
        axes.set_yticks([])
    figure: Any = axes.get_figure()
    figure.colorbar(image, ax=axes, label="gate less mean", pad=0.01)
