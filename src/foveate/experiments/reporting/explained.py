"""What the attention of a trained network does: its diagnosis, and pictures of its gates."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from foveate.experiments.data.load import Data
from foveate.experiments.reporting.diagnoses import (
    CAPTIONS,
    NO_ATTENTION,
    gate_evolution,
    kept_diagnosis,
)
from foveate.experiments.reporting.illustration import Explained, Illustration
from foveate.experiments.reporting.results import RunResult
from foveate.experiments.reporting.scenes import SCENES, explain_scenes
from foveate.experiments.saved import MODEL
from foveate.experiments.subject import Batches, Subject, trained
from foveate.explain import diagnose, over_data, sheet
from foveate.explain.acting import mechanisms

CAMS = ("gradcam", "gradcam++", "layercam")
"""Score-CAM runs the network once for each channel: ``foveate explain`` draws it."""


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
    way = explain_scenes if data.task in SCENES else _explain_classes
    try:
        return way(folder, result, data, images)
    except Exception as error:  # of any kind, by code that is not needed for the numbers
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Explained(result.mechanism, result.seed, problem=f"It could not be drawn: {reason}")


def _explain_classes(folder: Path, result: RunResult, data: Data, images: int) -> Explained:
    subject = trained(folder / MODEL, trust_code=True)  # what it names ran just now
    if next(mechanisms(subject.module), None) is None:
        return Explained(result.mechanism, result.seed, problem=NO_ATTENTION)
    subject.module.eval()
    batches = subject.batches(data, limit=images)
    count = sum(len(labels) for _, labels in batches)
    found = kept_diagnosis(folder, count, lambda: diagnose(subject.module, batches))
    drawn = list(_draw(folder, result, subject, data, batches))
    return Explained(result.mechanism, result.seed, found, drawn)


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
        title, caption = CAPTIONS[key]
        yield Illustration(f"{name}-{key}", title, caption, figure)
    yield from gate_evolution(folder, name)


def _examples(result: RunResult) -> dict[str, int]:
    """The first test image that is classified right, and the first that is not."""
    correct = result.test_correct or []
    return {
        kind: correct.index(wanted)
        for kind, wanted in (("right", True), ("wrong", False))
        if wanted in correct
    }
