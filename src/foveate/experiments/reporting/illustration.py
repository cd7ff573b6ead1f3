"""A figure in a page."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

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

    @cached_property
    def svg(self) -> str:
        """Drawn once, for the page and for its file."""
        return figures.svg(self.figure)

    @property
    def inline(self) -> Markup:
        # Safe as it is: matplotlib escapes the text that it draws.
        return Markup(figures.inline_svg(self.svg, label=f"{self.title}. {self.caption}"))


@dataclass(frozen=True)
class Explained:
    """What the page shows of one mechanism, from its best run on the validation images."""

    mechanism: str
    seed: int
    diagnosis: Mapping[str, Any] | None = None
    illustrations: list[Illustration] = field(default_factory=list)
    problem: str = ""
    """Why there is nothing, if there is nothing."""

    @property
    def summary(self) -> str:
        """How many of its layers are healthy."""
        sites = self.diagnosis["sites"] if self.diagnosis else []
        healthy = sum(site["verdict"] == "healthy" for site in sites)
        return f"{healthy} of {len(sites)} layers healthy"


def write_figures(illustrations: Iterable[Illustration], folder: Path) -> None:
    """Write each as PNG and as SVG under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawn in illustrations:
        write_bytes(folder / f"{drawn.name}.svg", drawn.svg.encode())
        write_bytes(folder / f"{drawn.name}.png", figures.png(drawn.figure))
