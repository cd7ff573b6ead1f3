"""One image and what a network made of it: gates, affinities, features, class evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from foveate.figures.overlay import Meaning, Panel, draw_panel
from foveate.figures.profiles import draw_profiles, draw_strips
from foveate.figures.style import COLOURS, GREY, new_figure, plain, style

Array = NDArray[np.float64]

WIDTH = 9.2
COLUMNS = 5
_HEAD = 2.3
_CHANNELS = 2.5
_TITLE = 0.32
_AROUND = 0.34
"""Inches of a panel's bar, and of the space between rows."""
_LINE = 0.13
"""Inches of a line of a panel's title."""


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    meaning: Meaning
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Sheet:
    """Everything that is drawn of one image."""

    picture: Array
    """``(H, W, 3)`` from 0 to 1."""
    probabilities: Sequence[tuple[str, float]]
    """The likeliest classes, the likeliest first."""
    truth: str | None = None
    """The true class, where it is known."""
    channels: Mapping[str, Array] = field(default_factory=dict)
    """The gates of the channels, by layer in order of depth."""
    sections: Sequence[Section] = ()


def sheet(content: Sheet) -> Figure:
    """The image with its true and predicted class, and every section that has something to show."""
    parts: list[tuple[float, Any]] = [(_HEAD, _draw_head)]
    gates = [s for s in content.sections if s.panels and s.meaning is Meaning.GATE]
    others = [s for s in content.sections if s.panels and s.meaning is not Meaning.GATE]
    parts += [(_height(s, content.picture), s) for s in gates]
    if content.channels:
        parts.append((_CHANNELS, _draw_channels))
    parts += [(_height(s, content.picture), s) for s in others]
    heights = [height for height, _ in parts]
    with style():
        figure = new_figure(WIDTH, sum(heights))
        cells = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
        for cell, (_, part) in zip(cells, parts, strict=True):
            if isinstance(part, Section):
                _draw_section(cell, part, content.picture)
            else:
                part(cell, content)
    return figure


def _height(section: Section, picture: Array) -> float:
    rows = -(-len(section.panels) // COLUMNS)
    lines = max(len(panel.title.splitlines()) for panel in section.panels)
    return _TITLE + rows * (WIDTH / COLUMNS * 0.96 * _aspect(picture) + _AROUND + lines * _LINE)


def _aspect(picture: Array) -> float:
    return float(picture.shape[0] / picture.shape[1])


def _heading(cell: Any, text: str) -> None:
    cell.suptitle(text, x=0.008, ha="left", fontweight="bold", fontsize="medium")


def _draw_head(cell: Any, content: Sheet) -> None:
    names = [name for name, _ in content.probabilities]
    likeliest, share = content.probabilities[0]
    told = f"predicted: {likeliest}, {share:.1%}"
    if content.truth is not None:
        verdict = "right" if likeliest == content.truth else "wrong"
        told = f"true: {content.truth}   {told} ({verdict})"
    _heading(cell, told)
    left, right = cell.subplots(1, 2, width_ratios=[1, 2.2])
    left.imshow(content.picture, interpolation="nearest")
    left.set_axis_off()
    shares = [share for _, share in content.probabilities]
    colours = [COLOURS[2] if name == content.truth else GREY for name in names]
    places = range(len(names))
    right.barh(places, shares, color=colours, height=0.6)
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.set_xlim(0, 1.12)
    right.set_xticks([])
    for place, share in zip(places, shares, strict=True):
        right.text(share + 0.01, place, f"{share:.1%}", va="center", fontsize="small")
    right.spines[:].set_visible(False)
    right.tick_params(length=0)


def _draw_section(cell: Any, section: Section, picture: Array) -> None:
    _heading(cell, section.title)
    rows = -(-len(section.panels) // COLUMNS)
    grid = list(cell.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, panel in zip(grid, section.panels, strict=False):
        draw_panel(axes, panel, picture, section.meaning)
    for axes in grid[len(section.panels) :]:
        axes.set_visible(False)


def _draw_channels(cell: Any, content: Sheet) -> None:
    _heading(cell, "Channel gates, each layer's sorted from high to low")
    left, right = cell.subplots(1, 2, width_ratios=[1, 1.25])
    plain(left)
    draw_profiles(left, content.channels)
    draw_strips(right, content.channels)
