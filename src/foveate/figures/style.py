"""One look for all figures: colours, type, and the ways out (PNG, SVG, SVG inside a page)."""

import base64
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from foveate.figures.fonts import installed, warn_of_missing

# At least 3:1 against white and near-black alike, and apart in deuteranopia and protanopia.
COLOURS = ("#2f6fde", "#e8590c", "#12a182", "#c2338f", "#2b9fd0")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
GREY = "#7f7f7f"
INK = "#010101"
"""Text and axes; no data has this colour, so a page can replace it by its own."""
PAPER = "#ffffff"
FONT_SIZE = 9.0
_PIXELS = 144
"""Of an inch, for what is made of pixels inside a drawing."""
_EMBEDDED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
_FEW_COLOURS = 4096

_RC = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": FONT_SIZE,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    "font.size": FONT_SIZE,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "foveate",
    "pdf.fonttype": 42,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Look:
    """How one mechanism is drawn, the same in every figure."""

    colour: str
    marker: str


def looks(names: Iterable[str], *, controls: Sequence[str] = ()) -> dict[str, Look]:
    """A look for each name: grey for the controls, else a colour and a marker by its place.

    Example:
        >>> given = looks(["none", "se", "cbam"], controls=["none"])
        >>> given["none"].colour == GREY, given["se"].marker == given["cbam"].marker
        (True, False)
    """
    ordered = list(dict.fromkeys(names))
    given = {
        name: Look(GREY, ("d", "8")[place % 2])
        for place, name in enumerate(name for name in controls if name in ordered)
    }
    others = (name for name in ordered if name not in given)
    for place, name in enumerate(others):
        given[name] = Look(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
    return given


@contextmanager
def style() -> Iterator[None]:
    """The settings under which every figure is made and written."""
    settings: Any = _RC | {"font.family": installed()}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # told once, elsewhere
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; call it, and draw, under :func:`style`."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> None:
    """Light grid and no tick marks."""
    axes.grid(True)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def png(figure: Figure) -> bytes:
    """The figure on white, at 160 dots an inch."""
    return _save(figure, format="png", dpi=160)


def svg(figure: Figure) -> str:
    """The figure on white, its text as text; the same figure gives the same characters."""
    return _save(figure, format="svg", dpi=_PIXELS, metadata={"Date": None}).decode()


def pdf(figure: Figure) -> bytes:
    """The figure on white, its text as text."""
    return _save(figure, format="pdf", dpi=_PIXELS, metadata={"CreationDate": None})


def encoded(figure: Figure, ending: str) -> bytes:
    """The figure as the content of a file, by its ending: ``png``, ``svg`` or ``pdf``."""
    ways = {"png": png, "svg": lambda drawn: svg(drawn).encode(), "pdf": pdf}
    return ways[ending](figure)


def inline_svg(drawn: str, *, label: str) -> str:
    """A figure for the inside of a page: no background, ink and font of the page.

    Args:
        drawn: The figure as :func:`svg` draws it.
        label: What it shows, for those who cannot see it.
    """
    text = drawn[drawn.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # repeated in every figure, and of no use
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace(f"fill: {PAPER}", "fill: none").replace(INK, "currentColor")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = _EMBEDDED.sub(_smaller, text)
    return text.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1)


def _smaller(embedded: re.Match[str]) -> str:
    """An embedded picture at a tenth of its length; few colours stay exactly what they are."""
    picture = Image.open(io.BytesIO(base64.b64decode(embedded[1])))
    few = picture.convert("RGBA").getcolors(_FEW_COLOURS) is not None
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=few, quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _save(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with style():
        if engine := figure.get_layout_engine():
            warn_of_missing(figure)
            # Left in place, it would solve the layout again, and draw once more, for each format.
            engine.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(buffer, **options)
    return buffer.getvalue()
