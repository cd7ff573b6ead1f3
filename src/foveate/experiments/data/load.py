"""Data by one name: splits that never overlap, in memory or as files, with a record of both."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import InvalidValueError, check_positive, to_path, unknown
from foveate.experiments.data import catalogue, folders
from foveate.experiments.data.images import ImageSet, common_size
from foveate.experiments.data.reading import channel_statistics, read
from foveate.experiments.data.splits import by_share, hold_out

__all__ = ["Data", "ImageSet", "describe_data", "load_data"]

Splits = dict[str, ImageSet]


@dataclass(frozen=True)
class Data:
    """A data set, split for training, choosing and judging.

    Args:
        name: What it is called.
        classes: Names of the classes, in the order of the labels.
        train: What the weights learn from.
        val: What checkpoints and early stops are chosen on.
        test: What chooses nothing.
        mean: Of the training pixels in [0, 1], for each channel.
        std: Likewise.
        in_channels: 1 for sets that are published in grey, else 3.
        image_size: Side of the square images.
        record: Where it came from and how each split was made, ready for JSON.
        mirrors: Whether an image keeps its class in a mirror.
        task: What is learned from it; see :mod:`foveate.experiments.tasks`.
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
    task: str = "classify"


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
        root: Where torchvision sets lie (``data`` if None) and folders are looked for too.
        image_size: Side of the square images: shorter side resized, then the centre. By default
            the shorter side that all images share, at most 224; else 224; 16 for ``digits``.
        val_fraction: Share of the training images that is held out for choosing, where the set
            brings no such split.
        test_fraction: Share of the training images that is held out for judging, likewise; it is
            taken first.
        split_seed: Seed of both.
        limit: Most images in each split, each class in proportion.
        skip_bad: Leave unreadable files out, and say so in the record.
        download: Fetch a torchvision set that is missing.

    Raises:
        ValueError: If the name is unknown, the folder has no usable layout, a split cannot be
            made, or files cannot be read; the message names them.

    Example:
        >>> data = load_data("digits")
        >>> len(data.train), len(data.val), len(data.test)
        (1294, 144, 359)
    """
    if image_size is not None:
        check_positive(image_size=image_size)
    classes, found, source = _find(name, root, download)
    splits, origins = complete(found, test_fraction, val_fraction, split_seed)
    if limit is not None:
        splits = limited(splits, limit, len(classes), split_seed)
    size = image_size or _usual_size(name, splits)
    splits, bad = read(splits, size, skip_bad=skip_bad)
    _check_classes(classes, splits["train"])
    mean, std = channel_statistics(splits["train"], size)
    record = {
        **{"name": name, **source, "classes": list(classes), "image_size": size, "limit": limit},
        "splits": {
            split: {"images": len(images), "from": origins[split]}
            for split, images in splits.items()
        },
        "skipped": {str(path): reason for path, reason in bad.items()},
        "fingerprint": _fingerprint(splits),
    }
    return Data(
        name=Path(name).name,
        classes=classes,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        mean=mean,
        std=std,
        in_channels=len(mean),
        image_size=size,
        record=record,
        mirrors=name.lower() not in catalogue.UNMIRRORED,
    )


def describe_data(data: Data) -> dict[str, Any]:
    """What a report says of the data, ready for JSON."""
    return {
        "name": data.name,
        "classes": list(data.classes),
        "sizes": {split: len(getattr(data, split)) for split in ("train", "val", "test")},
        "image_size": data.image_size,
        "record": data.record,
    }


def _find(
    name: str, root: Path | None, download: bool
) -> tuple[tuple[str, ...], Splits, dict[str, str]]:
    """The classes, the splits that the set brings, and where it is from."""
    if name == "digits":
        return *catalogue.digits(), {"source": "scikit-learn"}
    if (key := name.lower()) in catalogue.TORCHVISION:
        at = to_path(root or "data")
        found = catalogue.from_torchvision(key, at, download=download)
        return *found, {"source": "torchvision", "root": str(at.absolute())}
    places = [to_path(name), *([to_path(root / name)] if root else [])]
    for at in places:
        if at.is_dir():
            return *folders.scan(at), {"source": "folder", "root": str(at.absolute())}
    raise InvalidValueError(
        f"{unknown('data set', name, catalogue.NAMES)}, or a folder; no folder is at: "
        f"{', '.join(map(str, places))}"
    )


def complete(
    found: Splits, test_fraction: float, val_fraction: float, seed: int
) -> tuple[Splits, dict[str, str]]:
    """Training, validation and test, held out of training where missing, and their origins."""
    splits, origins = dict(found), dict.fromkeys(found, "given")
    for split, fraction in (("test", test_fraction), ("val", val_fraction)):
        if split in splits:
            continue
        if not 0 < fraction < 1:
            raise InvalidValueError(f"{split}_fraction must be between 0 and 1, but got {fraction}")
        train = splits["train"]
        rest, held = hold_out(train.labels, fraction, seed)
        splits[split], splits["train"] = train.take(held), train.take(rest)
        origins[split] = f"{fraction:.3g} of train, each class in proportion, {seed=}"
        origins["train"] = "given, less what is held out"
    return splits, origins


def limited(splits: Splits, limit: int, num_classes: int, seed: int) -> Splits:
    """At most so many images of each split, each class in proportion."""
    if limit < num_classes:
        raise InvalidValueError(f"limit must be at least 1 image a class, but got {limit=}")
    return {
        split: images.take(by_share(images.labels, seed)[:limit].sort().values)
        for split, images in splits.items()
    }


def _usual_size(name: str, splits: Splits) -> int:
    if name == "digits":
        return catalogue.DIGITS_SIZE
    if (pixels := splits["train"].images) is not None:
        return min(pixels.shape[-2:])
    return common_size([path for images in splits.values() for path in images.paths])


def _check_classes(classes: tuple[str, ...], train: ImageSet) -> None:
    counts = train.labels.bincount(minlength=len(classes)).tolist()
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise InvalidValueError(f"no training image of class '{empty[0]}' is left")


def _fingerprint(splits: Splits) -> str:
    """Of the labels and pixels, or of the labels, names and sizes of the files."""
    digest = hashlib.sha256()
    for split, images in sorted(splits.items()):
        digest.update(f"{split} {len(images)}".encode())
        digest.update(images.labels.numpy().tobytes())
        if images.images is not None:
            digest.update(images.images.numpy().data)
            continue
        base = os.path.commonpath(images.paths)
        for path in images.paths:
            digest.update(f"{os.path.relpath(path, base)} {path.stat().st_size}".encode())
    return digest.hexdigest()
