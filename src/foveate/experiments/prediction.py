"""What a network says of images that nobody has labelled."""

import csv
import glob
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.errors import InvalidValueError, check_positive, to_path
from foveate.experiments.data.folders import list_images
from foveate.experiments.data.images import EXTENSIONS, open_rgb
from foveate.experiments.subject import Subject
from foveate.experiments.tasks import get_task

Row = dict[str, Any]
"""One line of a table, by column."""


@dataclass(frozen=True)
class Wanted:
    """What is to be said of each image.

    Args:
        top: Of a classification, how many classes.
        threshold: Of a detection, the least score.
        masks: Of a segmentation, the folder that takes the masks.
    """

    top: int = 1
    threshold: float = 0.5
    masks: Path | None = None


def find_images(words: Sequence[str]) -> list[Path]:
    """The files that are meant by names of files, folders and shell patterns, each once.

    Raises:
        ValueError: If a word means no image.
    """
    found: dict[Path, Path] = {}
    for word in words:
        path = to_path(word)
        if path.is_dir():
            here = list_images(path)
        elif path.exists():
            here = [path]
        else:
            here = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            here = [one for one in here if one.suffix.lower() in EXTENSIONS]
        if not here:
            raise InvalidValueError(f"'{word}' is no image, no folder with images and no pattern")
        for one in here:
            found.setdefault(one.resolve(), one)
    return list(found.values())


def predict(
    subject: Subject,
    paths: Sequence[Path],
    wanted: Wanted,
    *,
    skip_bad: bool = False,
    batch_size: int = 32,
) -> Iterator[Row]:
    """What is on images, one row for each answer.

    A classification gives ``class`` and ``probability``, the likeliest first (and its ``rank``, if
    several are wanted); a detection ``class``, ``score`` and the corners of the box, in pixels of
    the image; a segmentation each class that occurs, with its ``share`` of the pixels.

    Args:
        subject: The network.
        paths: Files.
        wanted: What is to be said.
        skip_bad: Leave unreadable files out.
        batch_size: Images that are run together.

    Raises:
        ValueError: If a file cannot be read and is not to be left out, or what is wanted cannot be
            had of this network.
    """
    check_positive(batch_size=batch_size)
    check_wanted(subject, paths, wanted)
    batch: list[tuple[Path, tuple[int, int], Tensor]] = []
    for path in paths:
        try:
            picture = open_rgb(path)
        except Exception as error:  # whatever a decoder raises on broken bytes
            if skip_bad:
                continue
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InvalidValueError(f"'{path}' cannot be read as an image: {reason}") from error
        pixels = get_task(subject.task).fit(picture, subject.image_size)
        batch.append((path, picture.size, pixels))
        if len(batch) == batch_size:
            yield from _rows(subject, batch, wanted)
            batch.clear()
    if batch:
        yield from _rows(subject, batch, wanted)


def check_wanted(subject: Subject, paths: Sequence[Path], wanted: Wanted) -> None:
    """Refuse what cannot be said of these images by this network; see :func:`predict`."""
    classes = len(subject.classes)
    if not 1 <= wanted.top <= classes:
        raise InvalidValueError(f"there are {classes} classes, but got top={wanted.top}")
    if not 0 <= wanted.threshold <= 1:
        raise InvalidValueError(
            f"threshold must be from 0 to 1, but got threshold={wanted.threshold}"
        )
    if wanted.masks is None:
        return
    if subject.task != "segment":
        raise InvalidValueError(f"masks are of segmentations, but {subject.name} does not segment")
    by_name: dict[str, Path] = {}
    images = {path.resolve() for path in paths}
    for path in paths:
        if (wanted.masks / f"{path.stem}.png").resolve() in images:
            raise InvalidValueError(f"a mask would take the place of an image in {wanted.masks}")
        twin = by_name.setdefault(path.stem, path)
        if twin != path:
            raise InvalidValueError(f"the masks of '{twin}' and '{path}' would have one name")


@torch.no_grad()
def _rows(
    subject: Subject, batch: Sequence[tuple[Path, tuple[int, int], Tensor]], wanted: Wanted
) -> Iterator[Row]:
    images = subject.normalised(torch.stack([pixels for _, _, pixels in batch]))
    outputs = subject.module(*get_task(subject.task).inputs(images))
    say = _ANSWERS[subject.task]
    for (path, size, _), output in zip(batch, outputs, strict=True):
        for row in say(subject, path, size, output, wanted):
            yield {"image": str(path), **row}


def _classes(
    subject: Subject, path: Path, size: tuple[int, int], logits: Tensor, wanted: Wanted
) -> Iterator[Row]:
    found = logits.softmax(0).topk(wanted.top)
    for rank, (value, index) in enumerate(zip(*found, strict=True), start=1):
        row = {"class": subject.classes[int(index)], "probability": float(value)}
        yield {**row, "rank": rank} if wanted.top > 1 else row


def _boxes(
    subject: Subject, path: Path, size: tuple[int, int], found: dict[str, Tensor], wanted: Wanted
) -> Iterator[Row]:
    scale = max(size) / subject.image_size  # the picture lies at the upper left, in its own shape
    limit = torch.tensor([*size, *size])
    boxes = (found["boxes"] * scale).clamp(min=0).minimum(limit)
    labels = found["labels"] - 1  # detectors count the background
    for box, score, label in zip(boxes, found["scores"], labels, strict=True):
        if score >= wanted.threshold:
            corners = zip(("left", "top", "right", "bottom"), box.tolist(), strict=True)
            place = {name: round(value, 1) for name, value in corners}
            yield {"class": subject.classes[int(label)], "score": float(score), **place}


def _shares(
    subject: Subject, path: Path, size: tuple[int, int], logits: Tensor, wanted: Wanted
) -> Iterator[Row]:
    kind = np.uint8 if len(subject.classes) <= 256 else np.uint16
    mask = Image.fromarray(logits.argmax(0).numpy().astype(kind))
    mask = mask.resize(size, Image.Resampling.NEAREST)
    if wanted.masks is not None:
        mask.save(wanted.masks / f"{path.stem}.png")
    counts = np.bincount(np.asarray(mask).ravel(), minlength=len(subject.classes))
    for name, count in zip(subject.classes, counts.tolist(), strict=True):
        if count:
            yield {"class": name, "share": count / (size[0] * size[1])}


_ANSWERS: dict[str, Callable[[Subject, Path, tuple[int, int], Any, Wanted], Iterator[Row]]] = {
    "classify": _classes,
    "detect": _boxes,
    "segment": _shares,
}


COLUMNS = {
    "classify": ("image", "class", "probability"),
    "detect": ("image", "class", "score", "left", "top", "right", "bottom"),
    "segment": ("image", "class", "share"),
}
"""Of the table of each task, where no row has more."""


def to_csv(rows: Sequence[Row], task: str) -> str:
    """A table with a header."""
    text = io.StringIO()
    columns = list(rows[0]) if rows else COLUMNS[task]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
