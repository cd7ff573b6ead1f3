"""What the attention of a trained network does: its diagnosis, and pictures of its gates."""

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate import __version__
from foveate.experiments.data.load import Data
from foveate.experiments.reporting.illustration import Illustration
from foveate.experiments.reporting.results import RunResult
from foveate.experiments.saved import MODEL
from foveate.experiments.subject import Batches, Subject, trained
from foveate.experiments.training.checkpoint import write_text
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.recorder import METRICS
from foveate.explain import diagnose, evolution, over_data, sheet
from foveate.explain.acting import mechanisms

DIAGNOSIS = "diagnosis.json"
CAMS = ("gradcam", "gradcam++", "layercam")
"""Score-CAM runs the network once for each channel: ``foveate explain`` draws it."""

_CAPTIONS = {
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


@dataclass(frozen=True)
class Explained:
    """What the page shows of one mechanism, from its best run by validation accuracy."""

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


def explain_run(folder: Path, result: RunResult, data: Data, *, images: int) -> Explained:
    """Diagnose the network of a finished run, and draw it.

    The diagnosis is kept in the run's folder and made once. What fails is told in the page: no
    finished training is lost for want of a picture.

    Args:
        folder: Of the run.
        result: Its result.
        data: What it was trained on.
        images: Test images that are looked at.
    """
    try:
        subject = trained(folder / MODEL, trust_code=True)  # its own host ran just now
        if next(mechanisms(subject.module), None) is None:
            return Explained(result.mechanism, result.seed, problem="It has no attention.")
        subject.module.eval()
        batches = subject.batches(data, limit=images)
        found = _diagnosis(folder, subject, batches)
        drawn = list(_draw(folder, result, subject, data, batches))
    except Exception as error:  # of any kind, by code that is not needed for the numbers
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Explained(result.mechanism, result.seed, problem=f"It could not be drawn: {reason}")
    return Explained(result.mechanism, result.seed, found, drawn)


def _diagnosis(folder: Path, subject: Subject, batches: Batches) -> Mapping[str, Any]:
    path, images = folder / DIAGNOSIS, sum(len(labels) for _, labels in batches)
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (kept["images"], kept["foveate"]) == (images, __version__):
            return kept
    found = {"foveate": __version__, **diagnose(subject.module, batches).to_dict()}
    write_text(path, json.dumps(found, indent=2))
    return found


def _draw(
    folder: Path, result: RunResult, subject: Subject, data: Data, batches: Batches
) -> Iterator[Illustration]:
    name = re.sub(r"[^\w.-]", "_", result.mechanism)
    cams = CAMS if importlib.util.find_spec("pytorch_grad_cam") else ()
    for kind, index in _examples(result).items():
        (image, label), *_ = subject.batches(data, chosen=[index])
        figure = sheet(subject.module, image, feed=subject.feed, label=int(label), cams=cams)
        missing = "" if cams else " Class evidence needs: pip install 'foveate[explain]'."
        yield Illustration(
            f"{name}-{kind}",
            f"An image that it gets {kind}",
            f"Test image {index}, the first of its kind.{missing}",
            figure,
        )
    for key, figure in over_data(subject.module, batches, subject.classes).items():
        title, caption = _CAPTIONS[key]
        yield Illustration(f"{name}-{key}", title, caption, figure)
    rows = [row for row in read_journal(folder / METRICS) if "gates" in row]
    if rows and rows[0]["gates"]:
        yield Illustration(
            f"{name}-gate-evolution",
            "Gates while it learned",
            "The same validation images at each point. Line: median; bands: half of the values, "
            "and 90 %.",
            evolution([row["step"] for row in rows], [row["gates"] for row in rows]),
        )


def _examples(result: RunResult) -> dict[str, int]:
    """The first test image that is classified right, and the first that is not."""
    correct = result.test_correct or []
    return {
        kind: correct.index(wanted)
        for kind, wanted in (("right", True), ("wrong", False))
        if wanted in correct
    }
