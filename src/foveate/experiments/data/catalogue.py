"""Data sets known by name: scikit-learn's digits, and those of torchvision."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.errors import InvalidValueError, require
from foveate.experiments.data.images import ImageSet, to_tensor

Splits = dict[str, ImageSet]
Classes = tuple[str, ...]

_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL = {**_SPLIT, "val": {"split": "val"}}
_WITH_VALID = {**_SPLIT, "val": {"split": "valid"}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}

# The class in torchvision.datasets, and the arguments that open each published split.
_SETS: tuple[tuple[str, dict[str, dict[str, Any]]], ...] = (
    *((name, _FLAG) for name in ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST")),
    *((name, _FLAG) for name in ("QMNIST", "USPS")),
    ("EMNIST", {split: {"split": "balanced", **flag} for split, flag in _FLAG.items()}),
    *((name, _SPLIT) for name in ("Food101", "GTSRB", "StanfordCars", "STL10", "SVHN")),
    *((name, _WITH_VAL) for name in ("DTD", "FGVCAircraft", "Flowers102", "RenderedSST2")),
    ("Country211", _WITH_VALID),
    ("OxfordIIITPet", {**_SPLIT, "train": {"split": "trainval"}}),
    *((name, {**_WHOLE, "val": {"split": "val"}}) for name in ("ImageNet", "Imagenette")),
    *((name, _WHOLE) for name in ("EuroSAT", "SEMEION", "SUN397")),
)
TORCHVISION = {name.lower(): (name, splits) for name, splits in _SETS}
DIGITS_SIZE = 16
NAMES = ("digits", *sorted(TORCHVISION))
UNMIRRORED = frozenset(
    (
        *("digits", "emnist", "gtsrb", "kmnist", "mnist", "qmnist"),
        *("renderedsst2", "semeion", "svhn", "usps"),
    )
)
"""Sets whose images change their meaning in a mirror: letters, digits, road signs."""


def digits() -> tuple[Classes, Splits]:
    """The 1,797 handwritten digits that scikit-learn carries, 8 x 8 grey, as ``train``."""
    bundle = require("sklearn.datasets", extra="train").load_digits()
    images = torch.from_numpy(bundle.images).mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(bundle.target).long()
    classes = tuple(str(name) for name in bundle.target_names)
    return classes, {"train": ImageSet(labels, images.unsqueeze(1))}


def from_torchvision(name: str, root: Path, *, download: bool) -> tuple[Classes, Splits]:
    """The classes and the published splits of a torchvision data set.

    Args:
        name: A key of :data:`TORCHVISION`.
        root: Folder that holds the set the way torchvision lays it out.
        download: Fetch it there if it is missing.

    Raises:
        ValueError: If the set is not whole under ``root`` and cannot be fetched.
    """
    class_name, published = TORCHVISION[name]
    cls = getattr(require("torchvision.datasets", extra="train"), class_name)
    fetch = {} if name == "imagenet" else {"download": download}  # it must be fetched by hand
    try:
        opened = {split: cls(root=root, **how, **fetch) for split, how in published.items()}
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidValueError(
            f"{name} is not whole under root='{root}' ({reason}); put it there, or set download"
        ) from error
    return _named({split: _image_set(dataset) for split, dataset in opened.items()}, opened)


def _image_set(dataset: Any) -> ImageSet:
    """Its files where it has files, else its pixels."""
    for pairs in ("samples", "_samples"):
        if (listed := getattr(dataset, pairs, None)) and isinstance(listed[0][0], (str, Path)):
            paths, labels = zip(*listed, strict=True)
            return _from_files(paths, labels)
    for files in ("_image_files", "_images"):
        if hasattr(dataset, files):
            return _from_files(getattr(dataset, files), dataset._labels)
    items = [dataset[i] for i in range(len(dataset))]
    pixels = [to_tensor(image, min(image.size)) for image, _ in items]
    return ImageSet(torch.tensor([int(label) for _, label in items]), torch.stack(pixels))


def _from_files(paths: Any, labels: Any) -> ImageSet:
    return ImageSet(torch.tensor(np.asarray(labels)), None, tuple(Path(path) for path in paths))


def _named(splits: Splits, opened: dict[str, Any]) -> tuple[Classes, Splits]:
    """Class names, and labels counted from zero where the set has no names of its own."""
    names = getattr(opened["train"], "classes", None)
    if names is not None:
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in names), splits
    values = splits["train"].labels.unique()
    renumbered = {
        split: ImageSet(torch.searchsorted(values, images.labels), images.images, images.paths)
        for split, images in splits.items()
    }
    return tuple(str(int(value)) for value in values), renumbered
