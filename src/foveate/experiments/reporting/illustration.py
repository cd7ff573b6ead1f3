"""A figure in a page."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from foveate import figures
from foveate.experiments.training.checkpoint import write_bytes


@dataclass(frozen=True)
class Illustration:
    """A figure and what stands around it in the page."""

    name: str
    title: str
    caption: str
    figure: figures.Figure

    @property
    def inline(self) -> Markup:
        # Safe as it is: matplotlib escapes the text that it draws.
        return Markup(figures.inline_svg(self.figure, label=f"{self.title}. {self.caption}"))


def write_figures(illustrations: Iterable[Illustration], folder: Path) -> None:
    """Write each as PNG and as SVG under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawn in illustrations:
        for ending in ("png", "svg"):
            path = folder / f"{drawn.name}.{ending}"
            write_bytes(path, figures.encoded(drawn.figure, ending))
