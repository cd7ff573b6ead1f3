"""Time of each gate in copies of its map, one mark a rival."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from foveate.figures.style import COLOURS, GREY, INK, new_figure, plain, style
from gatebench import rivals
from gatebench.gates import MODES

SHOWN = {
    rivals.FOVEATE: (COLOURS[0], "o"),
    rivals.EAGER: (GREY, "o"),
    rivals.TIMM_EAGER: (COLOURS[1], "s"),
    rivals.TIMM_COMPILED: (COLOURS[1], "x"),
    rivals.TEXTBOOK: (COLOURS[2], "^"),
}


def copies(result: dict[str, Any], shape: str, layout: str) -> Figure:
    """Two panels, inference and training; the gates in the order of foveate's training time."""
    found = {
        (entry["mechanism"], entry["mode"]): entry["copies"]
        for entry in result["gates"]
        if entry["shape"] == shape and entry["format"] == layout
    }
    keys = sorted({key for key, _ in found}, key=lambda key: found[key, MODES[1]][rivals.FOVEATE])
    with style():
        figure = new_figure(8.6, 1.3 + 0.24 * len(keys))
        panels = figure.subplots(1, 2, sharey=True)
        for panel, mode in zip(panels, MODES, strict=True):
            _panel(panel, mode, keys, found)
        panels[0].set_yticks(range(len(keys)), keys)
        panels[0].set_ylim(len(keys) - 0.5, -0.5)
        handles = [_mark(colour, marker, name) for name, (colour, marker) in SHOWN.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(SHOWN), frameon=False)
    return figure


def _panel(panel: Axes, mode: str, keys: list[str], found: dict[tuple[str, str], Any]) -> None:
    plain(panel)
    panel.tick_params(which="minor", length=0)
    panel.set_xscale("log")
    panel.set_xlabel(f"{mode}: time, in copies of the map")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.axvline(1, color=INK, linewidth=0.8)
    for row, key in enumerate(keys):
        times = {name: found[key, mode][name] for name in SHOWN if name in found[key, mode]}
        middles = [middle for _, middle, _ in times.values()]
        panel.plot([min(middles), max(middles)], [row, row], color=GREY, linewidth=0.6, alpha=0.6)
        for name in reversed(times):  # foveate on top
            colour, marker = SHOWN[name]
            low, middle, high = times[name]
            panel.plot([low, high], [row, row], color=colour, linewidth=2.5, alpha=0.35)
            panel.plot(middle, row, color=colour, marker=marker, markersize=5.5, linestyle="none")


def _mark(colour: str, marker: str, name: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, markersize=5.5, linestyle="none", label=name)
