"""Every image of a data set decoded once: held in memory if that is small, checked either way."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from foveate.errors import InvalidValueError
from foveate.experiments.data.images import ImageSet, decode, decode_all
from foveate.experiments.data.splits import by_share

HELD_BYTES = 2 * 1024**3
"""A set whose pixels take more than this is read from its files batch by batch."""

_NAMED = 20
_SAMPLE = 1024
_CHUNK = 512

Splits = dict[str, ImageSet]


def read(splits: Splits, size: int, *, skip_bad: bool) -> tuple[Splits, dict[Path, str]]:
    """The splits with square images of one size, and the files left out, with reasons.

    Args:
        splits: Images in memory, or files.
        size: Side of the images.
        skip_bad: Leave out files that cannot be read.

    Raises:
        ValueError: If a file cannot be read and ``skip_bad`` is not set.
    """
    total = sum(map(len, splits.values())) * 3 * size**2
    bad: dict[Path, str] = {}
    done = {key: _read(images, size, total <= HELD_BYTES, bad) for key, images in splits.items()}
    refuse(bad, skip_bad=skip_bad)
    return done, bad


def refuse(bad: Mapping[Path, str], *, skip_bad: bool, verb: str = "read") -> None:
    """Name the files that cannot be used, unless they are to be left out.

    Raises:
        ValueError: With the first of them, and the reasons.
    """
    if bad and not skip_bad:
        named = [f"{path} ({reason})" for path, reason in list(bad.items())[:_NAMED]]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise InvalidValueError(
            f"{len(bad)} image(s) cannot be {verb}: {', '.join(named)}{more}; "
            "remove them, or set skip_bad"
        )


def channel_statistics(train: ImageSet, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in [0, 1].

    They are exact for images in memory, and an estimate from 1,024 of them otherwise.
    """
    if train.images is None:
        chosen = by_share(train.labels, seed=0)[:_SAMPLE].tolist()
        pixels = torch.stack([decode(train.paths[i], size) for i in chosen])
    else:
        pixels = train.images
    total, squares = torch.zeros(2, pixels.shape[1], dtype=torch.int64)
    for chunk in pixels.split(_CHUNK):
        values = chunk.to(torch.int32)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = pixels.numel() / pixels.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).sqrt().clamp_min(1)  # one flat colour: no division by 0
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _read(images: ImageSet, size: int, hold: bool, bad: dict[Path, str]) -> ImageSet:
    if images.images is not None:
        return ImageSet(images.labels, _resized(images.images, size), images.paths)
    pixels = torch.empty((len(images), 3, size, size) if hold else 0, dtype=torch.uint8)
    good = torch.ones(len(images), dtype=torch.bool)
    for i, result in enumerate(decode_all(images.paths, size)):
        if isinstance(result, str):
            bad[images.paths[i]] = result
            good[i] = False
        elif hold:
            pixels[i] = result
    whole = ImageSet(images.labels, pixels if hold else None, images.paths)
    return whole if good.all() else whole.take(good.nonzero()[:, 0])


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return functional.resize(images, [size, size], antialias=True)
