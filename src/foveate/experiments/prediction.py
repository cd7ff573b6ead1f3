"""What a network says of images that nobody has labelled."""

import csv
import glob
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from foveate.errors import InvalidValueError
from foveate.experiments.data.folders import list_images
from foveate.experiments.data.images import EXTENSIONS, decode_all
from foveate.experiments.subject import Subject

Row = dict[str, Any]
"""One line of a table, by column."""


def find_images(words: Sequence[str]) -> list[Path]:
    """The files that are meant by names of files, folders and shell patterns, each once.

    Raises:
        ValueError: If a word means no image.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            here = list_images(path)
        elif path.exists():
            here = [path]
        else:
            here = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            here = [one for one in here if one.suffix.lower() in EXTENSIONS]
        if not here:
            raise InvalidValueError(f"'{word}' is no image, no folder with images and no pattern")
        found.update(dict.fromkeys(here))
    return list(found)


def classify(
    subject: Subject,
    paths: Sequence[Path],
    *,
    top: int = 1,
    skip_bad: bool = False,
    batch_size: int = 32,
) -> Iterator[Row]:
    """The most likely classes of each image, the likeliest first.

    Args:
        subject: A classifier.
        paths: Files.
        top: Classes for each image.
        skip_bad: Leave unreadable files out.
        batch_size: Images that are run together.

    Yields:
        ``image``, ``class`` and ``probability``, and for more than one class also ``rank``.

    Raises:
        ValueError: If a file cannot be read and is not to be left out, or there are fewer classes.
    """
    if top > len(subject.classes):
        raise InvalidValueError(f"there are {len(subject.classes)} classes, but got top={top}")
    good: list[Path] = []
    pixels: list[torch.Tensor] = []
    for path, read in zip(paths, decode_all(paths, subject.image_size), strict=True):
        if isinstance(read, torch.Tensor):
            good.append(path)
            pixels.append(read)
        elif not skip_bad:
            raise InvalidValueError(f"'{path}' cannot be read as an image: {read}")
        if len(good) == batch_size:
            yield from _rows(subject, good, torch.stack(pixels), top)
            good, pixels = [], []
    if good:
        yield from _rows(subject, good, torch.stack(pixels), top)


@torch.no_grad()
def _rows(subject: Subject, paths: list[Path], pixels: torch.Tensor, top: int) -> Iterator[Row]:
    found = subject.module(subject.normalised(pixels)).softmax(1).topk(top)
    for path, values, classes in zip(paths, found.values, found.indices, strict=True):
        for rank, (value, index) in enumerate(zip(values, classes, strict=True), start=1):
            name = subject.classes[int(index)]
            row = {"image": str(path), "class": name, "probability": float(value)}
            yield {**row, "rank": rank} if top > 1 else row


def to_csv(rows: Sequence[Row]) -> str:
    """A table with a header; the columns of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
