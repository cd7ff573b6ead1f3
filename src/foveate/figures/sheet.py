"""One image and what a network made of it: gates, affinities, features, class evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from foveate.figures.overlay import Meaning, Panel, draw_panel, shortened
from foveate.figures.profiles import draw_profiles, draw_strips
from foveate.figures.style import COLOURS, GREY, new_figure, plain, style

Array = NDArray[np.float64]
Part = tuple[float, Callable[[Any, "Sheet"], None]]

WIDTH = 9.2
COLUMNS = 5
_HEAD = 2.3
_CHANNELS = 2.5
_NAME = 0.4
_TITLE = 0.32
_AROUND = 0.34
"""Inches of a panel's bar, and of the space between rows."""
_TALLEST = 3.0
_NAME_WIDTH = 36
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
    parts = _parts(content)
    with style():
        figure = new_figure(WIDTH, sum(height for height, _ in parts))
        _fill(figure, parts, content)
    return figure


def beside(contents: Mapping[str, Sheet]) -> Figure:
    """Sheets side by side, each under its name."""
    drawn = [_parts(content) for content in contents.values()]
    heights = [sum(height for height, _ in parts) for parts in drawn]
    tallest = max(heights)
    with style():
        figure = new_figure(WIDTH * len(drawn), tallest + _NAME)
        columns = figure.subfigures(1, len(drawn), squeeze=False)[0]
        for cell, name, content, parts, height in zip(
            columns, contents, contents.values(), drawn, heights, strict=True
        ):
            named: Part = (_NAME, partial(_draw_name, name=name))
            below: list[Part] = [(tallest - height, _draw_nothing)] if height < tallest else []
            _fill(cell, [named, *parts, *below], content)
    return figure


def _parts(content: Sheet) -> list[Part]:
    """What a sheet holds from top to bottom: the height of each part, and what draws it."""
    parts: list[Part] = [(_HEAD, _draw_head)]
    shown = [s for s in content.sections if s.panels]
    gates = [s for s in shown if s.meaning is Meaning.GATE]
    others = [s for s in shown if s.meaning is not Meaning.GATE]
    parts += [(_height(s, content.picture), partial(_draw_section, section=s)) for s in gates]
    if content.channels:
        parts.append((_CHANNELS, _draw_channels))
    parts += [(_height(s, content.picture), partial(_draw_section, section=s)) for s in others]
    return parts


def _fill(whole: Any, parts: Sequence[Part], content: Sheet) -> None:
    heights = [height for height, _ in parts]
    cells = whole.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for cell, (_, draw) in zip(cells, parts, strict=True):
        draw(cell, content)


def _draw_nothing(cell: Any, content: Sheet) -> None:
    """Leaves room, so that what stands side by side has one height."""


def _draw_name(cell: Any, content: Sheet, name: str) -> None:
    cell.suptitle(name, x=0.008, ha="left", fontweight="bold", fontsize="large")


def _height(section: Section, picture: Array) -> float:
    rows = -(-len(section.panels) // COLUMNS)
    lines = max(len(panel.title.splitlines()) for panel in section.panels)
    return _TITLE + rows * (WIDTH / COLUMNS * 0.96 * _aspect(picture) + _AROUND + lines * _LINE)


def _aspect(picture: Array) -> float:
    """Height over width of the room for a picture; a very tall one is narrower than its room."""
    return min(_TALLEST, float(picture.shape[0] / picture.shape[1]))


def _heading(cell: Any, text: str) -> None:
    cell.suptitle(text, x=0.008, ha="left", fontweight="bold", fontsize="medium")


def _draw_head(cell: Any, content: Sheet) -> None:
    names = [name for name, _ in content.probabilities]
    likeliest, share = content.probabilities[0]
    told = f"predicted: {shortened(likeliest, _NAME_WIDTH)}, {share:.1%}"
    if content.truth is not None:
        verdict = "right" if likeliest == content.truth else "wrong"
        told = f"true: {shortened(content.truth, _NAME_WIDTH)}   {told} ({verdict})"
    _heading(cell, told)
    left, right = cell.subplots(1, 2, width_ratios=[1, 2.2])
    left.imshow(content.picture, interpolation="nearest")
    left.set_axis_off()
    shares = [share for _, share in content.probabilities]
    colours = [COLOURS[2] if name == content.truth else GREY for name in names]
    places = range(len(names))
    right.barh(places, shares, color=colours, height=0.6)
    right.set_yticks(places, [shortened(name) for name in names])
    right.invert_yaxis()
    right.set_xlim(0, 1.12)
    right.set_xticks([])
    for place, share in zip(places, shares, strict=True):
        right.text(share + 0.01, place, f"{share:.1%}", va="center", fontsize="small")
    right.spines[:].set_visible(False)
    right.tick_params(length=0)


def _draw_section(cell: Any, content: Sheet, section: Section) -> None:
    _heading(cell, shortened(section.title, 2 * _NAME_WIDTH + 20))
    rows = -(-len(section.panels) // COLUMNS)
    grid = list(cell.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, panel in zip(grid, section.panels, strict=False):
        draw_panel(axes, panel, content.picture, section.meaning)
    for axes in grid[len(section.panels) :]:
        axes.set_visible(False)


def _draw_channels(cell: Any, content: Sheet) -> None:
    _heading(cell, "Channel gates, each layer's sorted from high to low")
    left, right = cell.subplots(1, 2, width_ratios=[1, 1.25])
    plain(left)
    draw_profiles(left, content.channels)
    draw_strips(right, content.channels)
