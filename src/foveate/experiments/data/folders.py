"""Folders of images: ``train/<class>/...`` with ``val`` and ``test``, or ``<class>/...`` alone."""

import os
import unicodedata
from pathlib import Path

import torch

from foveate.errors import InvalidValueError
from foveate.experiments.data.images import EXTENSIONS, ImageSet

SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def scan(root: Path) -> tuple[tuple[str, ...], dict[str, ImageSet]]:
    """The classes under a folder, and its splits as lists of files; nothing is decoded.

    Args:
        root: Either ``train/<class>/...`` with optional ``val`` and ``test``, or ``<class>/...``
            alone, which counts as ``train``. Images may lie deeper; other files are ignored.

    Raises:
        ValueError: If there are fewer than two classes, a class without images, a class that
            training lacks, or two folders that are the same.
    """
    folders = _split_folders(root)
    classes = _classes(folders["train"])
    if len(classes) < 2:
        raise InvalidValueError(
            f"'{folders['train']}' has {len(classes)} class folder(s), but at least 2 are needed: "
            "<class>/<image> or train/<class>/<image>"
        )
    return tuple(classes), {split: _files(at, list(classes)) for split, at in folders.items()}


def _split_folders(root: Path) -> dict[str, Path]:
    if not (root / "train").is_dir() or not _subfolders(root / "train"):
        return {"train": root}
    found: dict[str, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        here = [root / name for name in names if (root / name).is_dir()]
        if len(here) > 1:
            raise InvalidValueError(f"'{root}' has two {split} folders: {here[0]} and {here[1]}")
        if here:
            found[split] = here[0]
    seen: dict[Path, str] = {}
    for split, folder in found.items():
        twin = seen.setdefault(folder.resolve(), split)
        if twin != split:
            raise InvalidValueError(f"'{folder}' and the {twin} folder are one and the same")
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(at for at in folder.iterdir() if at.is_dir() and not at.name.startswith("."))


def _classes(folder: Path) -> dict[str, Path]:
    """Class folders by name; composed and decomposed accents are one name."""
    classes: dict[str, Path] = {}
    for at in _subfolders(folder):
        name = unicodedata.normalize("NFC", at.name)
        if name in classes:
            raise InvalidValueError(f"'{folder}' has two folders that read '{name}'")
        classes[name] = at
    return dict(sorted(classes.items()))


def _files(folder: Path, classes: list[str]) -> ImageSet:
    here = _classes(folder)
    if strangers := [name for name in here if name not in classes]:
        raise InvalidValueError(
            f"'{folder}' has the class '{strangers[0]}', which training lacks; it knows: "
            f"{', '.join(classes)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for name, at in here.items():
        images = list_images(at)
        if not images:
            accepted = " ".join(sorted(EXTENSIONS))
            raise InvalidValueError(f"'{at}' holds no image; accepted: {accepted}")
        paths += images
        labels += [classes.index(name)] * len(images)
    if not paths:
        raise InvalidValueError(f"'{folder}' holds no class folder")
    return ImageSet(torch.tensor(labels), None, tuple(paths))


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, however deep, in order; what is hidden is left out."""
    found = []
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(base, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return sorted(found)
