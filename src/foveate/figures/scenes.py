"""What is in an image and what a network finds there, beside what its attention looks at."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from foveate.figures.overlay import Meaning, Panel, draw_panel, shortened
from foveate.figures.style import COLOURS, PAPER, new_figure, style

Array = NDArray[np.float64]
Colour = tuple[float, float, float]

WIDTH = 9.2
COLUMNS = 5
"""Truth, what was found, and at most three maps."""
SHOWN_CLASSES = 12
"""Of more classes than this the legend names those that cover most."""
_STRENGTH = 0.55
"""How much of a coloured region is its colour; the rest is the picture."""
_AROUND = 0.55
"""Inches of the titles and bars of a row."""


@dataclass(frozen=True)
class Marks:
    """What is said to be in an image: a class for each pixel, or named boxes."""

    classes: NDArray[np.int64] | None = None
    """``(H, W)``; what is outside the names belongs to no class."""
    boxes: Sequence[Sequence[float]] = ()
    """Left, top, right and bottom, in pixels."""
    names: Sequence[str] = ()
    """Of the boxes."""


@dataclass(frozen=True)
class Scene:
    """One image: the truth, what was found, and maps over the picture."""

    title: str
    picture: Array
    """``(H, W, 3)`` from 0 to 1."""
    truth: Marks
    found: Marks
    panels: Sequence[Panel] = ()
    """At most three."""


def scenes(content: Sequence[Scene], classes: Sequence[str]) -> Figure:
    """A row for each image: truth, what was found, and the maps of its attention."""
    colours = class_colours(len(classes))
    shown = _most(content, len(classes))
    columns = 2 + max((len(scene.panels) for scene in content), default=0)
    side = WIDTH / COLUMNS
    height = (side + _AROUND) * len(content) + (0.5 if shown else 0.0)
    with style():
        figure = new_figure(side * columns, height)
        grid = figure.subplots(len(content), columns, squeeze=False)
        for row, scene in zip(grid, content, strict=True):
            _draw_marks(row[0], scene, scene.truth, colours, f"{scene.title}\ntruth")
            _draw_marks(row[1], scene, scene.found, colours, "\nfound")
            for axes, panel in zip(row[2:], scene.panels, strict=False):
                draw_panel(axes, panel, scene.picture, Meaning.GATE)
            for axes in row[2 + len(scene.panels) :]:
                axes.set_visible(False)
        if shown:
            handles = [Patch(color=colours[i], label=shortened(classes[i])) for i in shown]
            rows = {"ncols": 2 * columns - 1, "fontsize": "x-small"}
            figure.legend(handles=handles, loc="outside lower center", **rows)
    return figure


def class_colours(count: int) -> list[Colour]:
    """Colours that stay what they are when classes are added behind."""
    tab = mpl.colormaps["tab20"]
    return [tab((place * 2 + place // 10) % 20)[:3] for place in range(count)]


def _most(content: Sequence[Scene], count: int) -> list[int]:
    """The classes that cover most pixels of all truths and findings, in their order."""
    pixels = np.zeros(count, dtype=np.int64)
    for scene in content:
        for marks in (scene.truth, scene.found):
            if marks.classes is not None:
                known = marks.classes[(marks.classes >= 0) & (marks.classes < count)]
                pixels += np.bincount(known, minlength=count)
    order = [int(i) for i in np.argsort(-pixels, kind="stable") if pixels[i]]
    return sorted(order[:SHOWN_CLASSES])


def _draw_marks(
    axes: Axes, scene: Scene, marks: Marks, colours: Sequence[Colour], title: str
) -> None:
    picture = scene.picture
    if marks.classes is not None:
        picture = coloured(picture, marks.classes, colours)
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(shortened(title), fontsize="x-small", pad=3)
    for (left, top, right, bottom), name in zip(marks.boxes, marks.names, strict=True):
        corner, size = (left - 0.5, top - 0.5), (right - left, bottom - top)
        for colour, width in ((PAPER, 2.2), (COLOURS[1], 1.1)):
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width))
        axes.text(
            left,
            top,
            shortened(name),
            color=PAPER,
            fontsize="xx-small",
            va="bottom",
            clip_on=True,
            bbox={"facecolor": COLOURS[1], "edgecolor": "none", "pad": 0.6},
        )


def coloured(picture: Array, classes: NDArray[np.int64], colours: Sequence[Colour]) -> Array:
    """The picture ``(H, W, 3)`` with each pixel tinted by its class; others stay as they are."""
    known = (classes >= 0) & (classes < len(colours))
    tints = np.asarray(colours)[np.where(known, classes, 0)]
    mixed = _STRENGTH * tints + (1 - _STRENGTH) * picture
    return np.where(known[..., None], mixed, picture)
