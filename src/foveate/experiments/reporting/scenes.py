"""What networks that look into images find there, drawn beside what their attention looks at."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import figures
from foveate.errors import InvalidValueError
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data
from foveate.experiments.data.scenes import VOID
from foveate.experiments.reporting.diagnoses import (
    CAPTIONS,
    NO_ATTENTION,
    gate_evolution,
    kept_diagnosis,
)
from foveate.experiments.reporting.illustration import Explained, Illustration
from foveate.experiments.reporting.results import RunResult
from foveate.experiments.saved import Trained, load
from foveate.experiments.tasks import get_task
from foveate.explain import Input, diagnose, record
from foveate.explain.acting import mechanisms
from foveate.explain.diagnosis import Diagnosis
from foveate.explain.sheets import position_maps
from foveate.explain.surveys import gradient_norms, survey
from foveate.modes import in_mode

PICTURED = 4
"""Test images that are drawn, at equal distances, so that they are the same for all runs."""
PANELS = 3
DIAGNOSED = 24
"""Most images of a diagnosis, whose outputs are kept: a map of all classes for each."""
LEAST_SCORE = 0.3
MOST_BOXES = 12
"""Boxes with a lower score, and more of an image, are not drawn; the metric counts them."""


def picture_run(folder: Path, result: RunResult, data: Data) -> Explained | None:
    """Draw what the network of a finished run finds in some test images.

    What fails is told in the page: no finished training is lost for want of a picture.

    Returns:
        None for a task whose networks do not look into images.
    """
    if data.task not in SCENES:
        return None
    try:
        trained = load(folder, trust_code=True)  # what it names ran just now
        figure = figures.scenes(list(_scenes(trained, data)), data.classes)
    except Exception as error:  # of any kind, by code that is not needed for the numbers
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Explained(result.mechanism, result.seed, problem=f"It could not be drawn: {reason}")
    name = re.sub(r"[^\w.-]", "_", result.mechanism)
    drawn = Illustration(
        f"{name}-predictions",
        f"{result.mechanism}, seed {result.seed}",
        f"Test images at equal distances.{_CAPTIONS[data.task]} At the right, gates of positions, "
        "where the attention has such gates.",
        figure,
    )
    return Explained(result.mechanism, result.seed, illustrations=[drawn])


def explain_scenes(folder: Path, result: RunResult, data: Data, images: int) -> Explained:
    """Diagnose the attention by the share of right pixels, where there are pixels; draw gates."""
    module = load(folder, trust_code=True).network
    if next(mechanisms(module), None) is None:
        return Explained(result.mechanism, result.seed, problem=NO_ATTENTION)
    name = re.sub(r"[^\w.-]", "_", result.mechanism)
    some = _batches(data, min(images, DIAGNOSED))
    by_pixel = data.task == "segment"
    found = None
    if by_pixel:
        count = sum(len(batch) for batch, _ in some)
        found = kept_diagnosis(folder, count, lambda: _diagnose(module, some))
    drawn = [
        Illustration(f"{name}-{key}", *CAPTIONS[key], figure)
        for key, figure in _gates(module, some, by_pixel)
    ]
    drawn += gate_evolution(folder, name)
    return Explained(result.mechanism, result.seed, found, drawn)


def _diagnose(module: nn.Module, some: Sequence[tuple[Tensor, Any]]) -> Diagnosis:
    return diagnose(module, some, metric=pixel_accuracy, loss=_void_left_out)


def _gates(
    module: nn.Module, some: Sequence[tuple[Tensor, Any]], by_pixel: bool
) -> Iterator[tuple[str, figures.Figure]]:
    """The figures of the gates over images, and of the gradients, by the names of their files."""
    with contextlib.suppress(InvalidValueError):  # without gates there is nothing to draw of them
        found = survey(module, [(batch, torch.zeros(len(batch))) for batch, _ in some])
        yield "gate-histograms", found.histograms()
        yield "gates-by-depth", found.by_depth()
    if by_pixel:
        yield "gradients-by-depth", gradient_norms(module, *some[0], loss=_void_left_out)


def pixel_accuracy(logits: Tensor, known: Tensor) -> Tensor:
    """The share of pixels of each image ``(B,)`` that are right; void counts nowhere."""
    counted = (known != VOID).sum((1, 2)).clamp_min(1)
    return (logits.argmax(1) == known).sum((1, 2)).double() / counted


def _void_left_out(logits: Tensor, known: Tensor) -> Tensor:
    return F.cross_entropy(logits, known, ignore_index=VOID)


def _batches(data: Data, count: int, size: int = 4) -> list[tuple[Tensor, Any]]:
    return list(batches(data.test.take(_chosen(data, count)), data, batch_size=size))


def _chosen(data: Data, count: int) -> Tensor:
    """Test images at equal distances."""
    return torch.linspace(0, len(data.test) - 1, min(count, len(data.test))).round().long()


def _scenes(trained: Trained, data: Data) -> Iterator[figures.Scene]:
    task, feed = get_task(data.task), Input(trained.mean, trained.std)
    marks = _MARKS[data.task]
    attended = next(mechanisms(trained.network), None) is not None
    for index, (image, known) in zip(
        _chosen(data, PICTURED).tolist(), _batches(data, PICTURED, 1), strict=True
    ):
        panels: Sequence[figures.Panel] = ()
        with in_mode(trained.network, training=False), torch.no_grad():
            if attended:
                with record(trained.network) as recorded:
                    output = trained.network(*task.inputs(image))
                panels = figures.even(list(position_maps(recorded, gates=True)), PANELS)
            else:
                output = trained.network(*task.inputs(image))
        yield figures.Scene(
            data.test.paths[index].stem,
            feed.picture(image[0]).double().numpy(),
            *marks(output, known, data.classes),
            panels,
        )


def _masks(
    output: Tensor, known: Tensor, classes: Sequence[str]
) -> tuple[figures.Marks, figures.Marks]:
    truth, found = known[0].numpy(), output[0].argmax(0).numpy()
    return figures.Marks(truth), figures.Marks(np.where(truth == VOID, VOID, found))


def _boxes(output: Any, known: Any, classes: Sequence[str]) -> tuple[figures.Marks, figures.Marks]:
    true, found = known[0], output[0]
    best = found["scores"].argsort(descending=True)[:MOST_BOXES]
    seen = best[found["scores"][best] >= LEAST_SCORE]
    labels = (found["labels"][seen] - 1).tolist()  # those of detectors count from 1
    scores = found["scores"][seen].tolist()
    return (
        figures.Marks(
            boxes=true["boxes"].tolist(), names=[classes[i] for i in true["labels"].tolist()]
        ),
        figures.Marks(
            boxes=found["boxes"][seen].tolist(),
            names=[f"{classes[i]} {s:.2f}" for i, s in zip(labels, scores, strict=True)],
        ),
    )


_MARKS: dict[str, Callable[..., tuple[figures.Marks, figures.Marks]]] = {
    "detect": _boxes,
    "segment": _masks,
}
SCENES = tuple(_MARKS)
"""The tasks whose networks look into images."""
_CAPTIONS = {
    "detect": f" Drawn are the {MOST_BOXES} boxes of the highest scores, from {LEAST_SCORE} on.",
    "segment": " What is void in the truth is left out of what was found.",
}
