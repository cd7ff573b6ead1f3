"""The gates of channels: as curves and as strips, layer by layer, from the first to the last."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from foveate.figures.overlay import Meaning, scale_of, shortened

Array = NDArray[np.float64]

POINTS = 200
_NAMED = 12
"""More layers than this are told by their depth alone."""


def draw_profiles(axes: Axes, channels: Mapping[str, Array]) -> None:
    """A curve a layer: its gates from the highest to the lowest, the deeper the bluer."""
    colours = mpl.colormaps["cividis_r"](np.linspace(0.25, 0.8, len(channels)))
    for colour, (name, gates) in zip(colours, channels.items(), strict=True):
        share = np.linspace(0, 100, len(gates)) if len(gates) > 1 else np.array([0.0])
        axes.plot(share, _sorted(gates), color=colour, linewidth=1.3, label=shortened(name))
    axes.set_xlabel("channels, %")
    axes.set_ylabel("gate")
    if len(channels) <= 6:
        axes.legend(fontsize="xx-small", frameon=False, labelspacing=0.2)


def draw_strips(axes: Axes, channels: Mapping[str, Array]) -> None:
    """A row a layer: its gates from the highest to the lowest in colour, the first layer on top."""
    rows, names = _rows(channels), list(channels)
    image = axes.imshow(
        rows,
        aspect="auto",
        cmap=Meaning.GATE.value,
        extent=(0, 100, len(names), 0),
        interpolation="nearest",
    )
    axes.spines[:].set_visible(False)
    if len(names) <= _NAMED:
        axes.set_yticks(np.arange(len(names)) + 0.5, [shortened(name) for name in names])
        axes.tick_params(axis="y", labelsize="xx-small", length=0)
    else:
        axes.set_yticks([0.5, len(names) - 0.5], ["first layer", "last layer"])
    axes.set_xlabel("channels, %")
    figure: Any = axes.get_figure()
    figure.colorbar(image, ax=axes, label="gate", pad=0.02)


def strips(channels: Mapping[str, Array]) -> Array:
    """The colours ``(layers, points, 3)`` from 0 to 1 of those rows, on one scale."""
    rows = _rows(channels)
    return np.asarray(scale_of(rows, Meaning.GATE).to_rgba(rows, norm=True))[..., :3]


def _rows(channels: Mapping[str, Array]) -> Array:
    return np.stack([_resampled(_sorted(gates)) for gates in channels.values()])


def _sorted(gates: Array) -> Array:
    return np.sort(gates)[::-1]


def _resampled(gates: Array) -> Array:
    """As many points whatever the number of channels, each with the value of its nearest."""
    return gates[np.arange(POINTS) * len(gates) // POINTS]
