"""Data by one name: splits that never overlap, in memory or as files, with a record of both."""

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InvalidValueError, check_positive
from foveate.experiments import catalogue, folders
from foveate.experiments.images import ImageSet, common_size
from foveate.experiments.reading import Moments, read_images, resize
from foveate.experiments.splits import by_share, hold_out

__all__ = ["Data", "ImageSet", "load_data"]

HELD_BYTES = 2 * 1024**3
"""Sets whose pixels take more than this are read from their files batch by batch."""


@dataclass(frozen=True)
class Data:
    """A classification data set, split for training, choosing and judging.

    Args:
        name: What it was asked for by.
        classes: Names of the classes, in the order of the labels.
        train: What the weights learn from.
        val: What checkpoints and early stops are chosen on.
        test: What chose nothing.
        mean: Of the training pixels in [0, 1], for each channel.
        std: Likewise.
        in_channels: 1 for grey sets that come as such, else 3.
        image_size: Side of the square images.
        record: Where it came from and how each split was made, ready for JSON.
        mirrors: Whether an image keeps its class in a mirror.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_channels: int
    image_size: int
    record: dict[str, Any]
    mirrors: bool = True


def load_data(
    name: str,
    *,
    root: Path | None = None,
    image_size: int | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    limit: int | None = None,
    skip_bad: bool = False,
    download: bool = False,
) -> Data:
    """Find, split, check and read a data set.

    Args:
        name: ``digits``, a torchvision set such as ``cifar10``, or a folder:
            ``train/<class>/...`` with optional ``val`` and ``test``, or ``<class>/...`` alone.
        root: Where torchvision sets lie (``data`` if None) and named folders are looked for.
        image_size: Side of the square images: shorter side resized, then the centre. By default
            the shorter side that all images share, at most 224; else 224; 16 for ``digits``.
        val_fraction: Share of the training images set aside for choosing, where there is no such
            split.
        test_fraction: Share of the training images set aside for judging, likewise, and first.
        split_seed: Seed of both.
        limit: Most images in each split, each class in proportion.
        skip_bad: Leave unreadable files out, and say so in the record.
        download: Fetch a torchvision set that is missing.

    Raises:
        ValueError: If the name is unknown, the folder has no usable layout, a split cannot be
            made, or files cannot be read; the message names them.
    """
    _check(image_size, val_fraction, test_fraction, limit)
    classes, found, source, mirrors = _find(name, root, download)
    fractions = {"test": test_fraction, "val": val_fraction}
    splits, origins = _complete(found, fractions, split_seed)
    if limit is not None:
        splits = {key: _limited(images, limit, split_seed) for key, images in splits.items()}
    size = image_size or _natural_size(name, splits)
    moments = Moments()
    splits, skipped = _read(splits, size, skip_bad, moments)
    _check_classes(classes, splits)
    mean, std = moments.mean_and_std()
    record = {
        **{"name": name, "image_size": size, "classes": list(classes), "limit": limit, **source},
        "splits": {
            key: {"images": len(images), "from": origins[key]} for key, images in splits.items()
        },
        "skipped": skipped,
        "fingerprint": _fingerprint(classes, splits, size),
    }
    return Data(
        **{"name": name, "classes": classes, **splits, "mean": mean, "std": std},
        in_channels=len(mean),
        image_size=size,
        record=record,
        mirrors=mirrors,
    )
