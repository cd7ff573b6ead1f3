"""What the pages of all tasks say of the attention in a network."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from foveate import __version__
from foveate.experiments.reporting.illustration import Illustration
from foveate.experiments.training.checkpoint import write_text
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.recorder import METRICS
from foveate.explain import Diagnosis, evolution

DIAGNOSIS = "diagnosis.json"
NO_ATTENTION = "It has no attention."

CAPTIONS = {
    "gate-histograms": ("Gates", "How often each value occurs over the test images."),
    "gates-by-depth": (
        "Gates by depth",
        "Line: median; dark band: half of the values; light band: 90 % of them.",
    ),
    "class-profiles": (
        "Gates by class",
        "Mean gate of each channel for each class, less that of all classes.",
    ),
    "gradients-by-depth": (
        "Gradients by depth",
        "Of the loss of one batch, for each layer of the host and each mechanism.",
    ),
}


def kept_diagnosis(folder: Path, images: int, make: Callable[[], Diagnosis]) -> Mapping[str, Any]:
    """The diagnosis in a run's folder, made if it is not there yet for so many images."""
    path = folder / DIAGNOSIS
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (kept["images"], kept["foveate"]) == (images, __version__):
            return kept
    found = {"foveate": __version__, **make().to_dict()}
    write_text(path, json.dumps(found, indent=2))
    return found


def gate_evolution(folder: Path, name: str) -> Iterator[Illustration]:
    """The gates at the snapshots of a run, if it took any."""
    rows = [row for row in read_journal(folder / METRICS) if "gates" in row]
    if rows and rows[0]["gates"]:
        yield Illustration(
            f"{name}-gate-evolution",
            "Gates while it learned",
            "The same validation images at each point. Line: median; bands: half of the values, "
            "and 90 %.",
            evolution([row["step"] for row in rows], [row["gates"] for row in rows]),
        )
