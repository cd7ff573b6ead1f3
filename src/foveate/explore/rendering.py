"""What was seen, as HTML. The templates escape every name."""

import base64
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.explore.looking import Point, View
from foveate.explore.pictures import Picture
from foveate.figures import Meaning, Panel, apart, gradient, overlaid, strips

_ORDER = (Meaning.AFFINITY, Meaning.GATE, Meaning.FEATURES, Meaning.EVIDENCE)


@dataclass(frozen=True)
class Card:
    """A map over the picture, and the bar that says what its colours mean."""

    title: list[str]
    source: str
    low: str
    high: str
    bar: str
    mark: str
    """Where the cross stands, as CSS; empty for none."""
    here: str
    """The value at the point."""


def results(views: Sequence[View]) -> str:
    """All that the networks made of a picture."""
    return (
        _templates()
        .get_template("results.html.j2")
        .render(
            columns=[
                {
                    "view": view,
                    "verdict": _verdict(view),
                    "sections": list(_sections(view)),
                }
                for view in views
            ]
        )
    )


def stage(shown: Picture, pixels: NDArray[np.float64], point: Point | None) -> str:
    """The picture that is clicked.

    Args:
        shown: What it is.
        pixels: ``(H, W, 3)`` from 0 to 1, as the first network sees them.
        point: Where the cross stands.
    """
    return _render(
        "stage", picture=shown, source=_source(pixels), size=len(pixels), mark=_position(point)
    )


def nothing() -> str:
    """What stands in the place of results before there are any."""
    return _render("nothing")


def drop() -> str:
    """Where images are dropped."""
    return _render("drop")


def head(names: Sequence[str]) -> str:
    """The top of the page."""
    return _render("head", names=names)


def message(text: str) -> str:
    """One line that says what went wrong; nothing for an empty one."""
    return _render("message", text=" ".join(text.split()))


def _render(name: str, **values: Any) -> str:
    return _templates().get_template(f"{name}.html.j2").render(**values)


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("foveate.explore"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _verdict(view: View) -> str:
    if view.content.truth is None:
        return ""
    return "right" if view.content.probabilities[0][0] == view.content.truth else "wrong"


def _sections(view: View) -> Iterator[dict[str, Any]]:
    """The sections that have something to show, what was clicked for first."""
    for meaning in _ORDER:
        for section in view.content.sections:
            if section.panels and section.meaning is meaning:
                cards = [_card(panel, view, meaning) for panel in section.panels]
                yield _section(section.title, meaning, cards=cards)
        channels = view.content.channels
        if meaning is Meaning.GATE and channels:
            rows = zip(channels, strips(channels), strict=True)
            yield _section(
                "Gates of channels, each layer's sorted from high to low",
                meaning,
                strips=[{"name": name, "source": _source(row[None])} for name, row in rows],
                ends=_ends(list(channels.values())),
            )


def _section(
    title: str,
    meaning: Meaning,
    *,
    cards: Sequence[Card] = (),
    strips: Sequence[dict[str, str]] = (),
    ends: tuple[str, str] = ("", ""),
) -> dict[str, Any]:
    return {
        "title": title,
        "kind": meaning.name.lower(),
        "cards": cards,
        "strips": strips,
        "bar": _bar(meaning),
        "low": ends[0],
        "high": ends[1],
    }


def _card(panel: Panel, view: View, meaning: Meaning) -> Card:
    values = panel.values
    low, high = _ends([values])
    point = panel.mark or view.point
    here = ""
    if view.point is not None and panel.mark is None:
        rows, columns = values.shape
        found = values[int(view.point[0] * rows), int(view.point[1] * columns)]
        here = f"{found:.4g} at the point"
    source = _source(overlaid(panel, np.asarray(view.content.picture), meaning))
    title = panel.title.splitlines()
    return Card(title, source, low, high, _bar(meaning), _position(point), here)


def _ends(arrays: Sequence[NDArray[np.float64]]) -> tuple[str, str]:
    """The lowest and the highest of the numbers in words."""
    values = np.concatenate([array.ravel() for array in arrays]) if arrays else np.empty(0)
    values = values[np.isfinite(values)]
    if not values.size:
        return "", ""
    low, high = apart(float(values.min()), float(values.max()))
    return low, high


@functools.cache
def _bar(meaning: Meaning) -> str:
    return f"linear-gradient(90deg, {', '.join(gradient(meaning))})"


def _position(point: Point | None) -> str:
    return "" if point is None else f"top: {point[0]:.4%}; left: {point[1]:.4%}"


def _source(colours: Any) -> str:
    """An image inside the page: nothing is written to a disk, and nothing has an address."""
    pixels = (np.asarray(colours).clip(0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
