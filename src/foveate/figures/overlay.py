"""Maps over the picture that they belong to, each with the bar that says what its colours mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from numpy.typing import NDArray

from foveate.figures.style import GREY, PAPER

Array = NDArray[np.float64]

_STRENGTH = 0.6
"""How much of an overlay is the map; the rest is the picture in grey."""
_TITLE_WIDTH = 27


class Meaning(Enum):
    """What a map says, and the perceptually even colours of all maps that say it."""

    GATE = "viridis"
    AFFINITY = "magma"
    EVIDENCE = "inferno"
    FEATURES = "gray"


@dataclass(frozen=True)
class Panel:
    """A map ``(h, w)`` over the whole picture, whatever its resolution."""

    title: str
    values: Array
    mark: tuple[float, float] | None = None
    """Row and column of a point, as shares of the height and width."""


def draw_panel(axes: Axes, panel: Panel, picture: Array, meaning: Meaning) -> None:
    """Draw a panel; its cells are shown as they are, not smoothed.

    Args:
        axes: Where to draw.
        panel: What to draw.
        picture: The picture ``(H, W, 3)`` from 0 to 1.
        meaning: Decides the colours; features are shown alone, all others over the picture.
    """
    axes.imshow(overlaid(panel, picture, meaning), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, linewidth=0.4, color=GREY)
    axes.set_title(shortened(panel.title), fontsize="x-small", pad=3)
    if panel.mark is not None:
        y, x = (share * size - 0.5 for share, size in zip(panel.mark, picture.shape, strict=False))
        axes.plot(x, y, "+", color="black", markersize=9, markeredgewidth=3)
        axes.plot(x, y, "+", color=PAPER, markersize=8, markeredgewidth=1.2)
    _bar(axes, scale_of(panel.values, meaning), panel.values)


def overlaid(panel: Panel, picture: Array, meaning: Meaning) -> Array:
    """The colours ``(H, W, 3)`` from 0 to 1 of a map over its picture."""
    scale = scale_of(panel.values, meaning)
    colours = scale.to_rgba(_enlarged(panel.values, picture.shape[:2]), norm=True)[..., :3]
    if meaning is Meaning.FEATURES:
        return np.asarray(colours)
    grey = picture @ (0.299, 0.587, 0.114)
    return _STRENGTH * colours + (1 - _STRENGTH) * grey[..., None]


def gradient(meaning: Meaning, stops: int = 9) -> list[str]:
    """The colours of a meaning from low to high, for a page that draws its own bar.

    Example:
        >>> gradient(Meaning.FEATURES, 2)
        ['#000000', '#ffffff']
    """
    colours = mpl.colormaps[meaning.value](np.linspace(0, 1, stops))
    return [to_hex(colour) for colour in colours]


def shortened(title: str, width: int = _TITLE_WIDTH) -> str:
    """The title with the middle of each line left out where it is too wide for a panel."""
    half = width // 2
    lines = title.splitlines()
    return "\n".join(
        f"{line[:half]}…{line[-half:]}" if len(line) > width else line for line in lines
    )


def apart(low: float, high: float) -> list[str]:
    """Two numbers as short as they can be told apart.

    Example:
        >>> apart(0.0, 1.0), apart(0.99912, 0.99987)
        (['0', '1'], ['0.99912', '0.99987'])
    """
    size, span = max(abs(low), abs(high)), high - low
    digits = 2 + math.ceil(math.log10(size / span)) if size > span > 0 else 2
    return [f"{end:.{max(2, digits)}g}" for end in (low, high)]


def scale_of(values: Array, meaning: Meaning) -> ScalarMappable:
    """From the lowest to the highest of the values, in the colours of what they mean."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5  # one value: its colour is that of the middle
    colours = mpl.colormaps[meaning.value].with_extremes(bad="#c04040")
    return ScalarMappable(Normalize(low, high), colours)


def _enlarged(values: Array, size: Sequence[int]) -> Array:
    """Each pixel of ``size`` with the value of the cell in which it lies."""
    rows, columns = (
        np.arange(large) * small // large for small, large in zip(values.shape, size, strict=True)
    )
    return values[rows[:, None], columns[None, :]]


def _bar(axes: Axes, scale: ScalarMappable, values: Array) -> None:
    figure = axes.get_figure()
    assert figure is not None
    bar = axes.inset_axes((0.0, -0.1, 1.0, 0.06))
    low, high = scale.get_clim()
    assert low is not None
    assert high is not None
    finite = values[np.isfinite(values)]
    ends = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
    figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=[low, high])
    bar.tick_params(length=0, pad=1.5)
    if ends[0] > low:
        bar.set_xticks([(low + high) / 2], [f"{ends[0]:.3g} everywhere"], fontsize="xx-small")
        return
    bar.set_xticklabels(apart(*ends), fontsize="xx-small")
    left, right = bar.get_xticklabels()
    left.set_horizontalalignment("left")
    right.set_horizontalalignment("right")
