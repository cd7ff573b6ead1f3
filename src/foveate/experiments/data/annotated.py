"""Folders of annotated images: which files belong together, and what is wrong with them.

A split is ``images/*`` with ``masks/*.png`` of the same names, or with ``annotations.json`` in the
form of COCO.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from foveate.errors import InvalidValueError
from foveate.experiments.data.folders import SPLIT_FOLDERS
from foveate.experiments.data.images import EXTENSIONS, open_rgb
from foveate.experiments.data.scenes import (
    VOID,
    Boxed,
    Boxes,
    Masked,
    check_same_size,
    read_mask,
    upright_size,
)

CLASSES, ANNOTATIONS = "classes.txt", "annotations.json"
ROUNDING = 1.0
"""Pixels by which a box may stick out of its image: it is cut there; one farther out is wrong."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Reasons = dict[Path, str]


def split_folders(root: Path, *, layout: str) -> dict[str, Path]:
    """The folders of the splits that are there.

    Raises:
        ValueError: If there is no ``train`` with images.
    """
    found = {
        split: next((root / name for name in names if (root / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    there = {split: at for split, at in found.items() if at is not None}
    if "train" not in there or not (there["train"] / "images").is_dir():
        raise InvalidValueError(f"'{root}' has no train/images; expected is {layout}")
    return there


def class_names(root: Path) -> tuple[str, ...] | None:
    """The lines of ``classes.txt``, if there is one.

    Raises:
        ValueError: If it cannot be read, is empty, or names a class twice.
    """
    path = root / CLASSES
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"'{path}' cannot be read: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        said = f"names '{twice}' twice" if twice is not None else "names no class"
        raise InvalidValueError(f"'{path}' {said}")
    return names


def pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Each image of a split and its mask.

    Raises:
        ValueError: If there is no image, or two of one name.
    """
    images: dict[str, Path] = {}
    for path in sorted((folder / "images").iterdir() if (folder / "images").is_dir() else ()):
        if path.name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
            continue
        if path.stem in images:
            raise InvalidValueError(f"'{path}' and '{images[path.stem]}' would share a mask")
        images[path.stem] = path
    if not images:
        accepted = " ".join(sorted(EXTENSIONS))
        raise InvalidValueError(f"'{folder / 'images'}' holds no image; accepted: {accepted}")
    return [(image, folder / "masks" / f"{stem}.png") for stem, image in images.items()]


def masked(folder: Path, void: int) -> tuple[list[Masked], list[int], Reasons]:
    """The images of a split with their masks, the highest class of each, and what is wrong.

    Raises:
        ValueError: As :func:`pairs`.
    """
    sources = [Masked(image, mask, void) for image, mask in pairs(folder)]

    def highest(source: Masked) -> int:
        numbers = source.numbers()
        return int(numbers[numbers != VOID].max())

    return _checked(sources, highest, lambda source: source.image)


def outlined(folder: Path, void: int) -> tuple[list[Boxed], Reasons]:
    """The images of a split with a box around each instance of their masks; what is wrong."""

    def boxed(pair: tuple[Path, Path]) -> Boxed:
        image, mask = pair
        values = read_mask(mask)
        check_same_size(image, values.shape)
        numbers = [int(n) for n in np.unique(values) if n not in (0, void)]
        if not numbers:
            raise InvalidValueError("its mask is empty: there is no instance in it")
        boxes = torch.tensor([_around(values == number) for number in numbers])
        return Boxed(image, Boxes(boxes, torch.zeros(len(boxes), dtype=torch.int64)))

    _, found, reasons = _checked(pairs(folder), boxed, lambda pair: pair[0])
    return found, reasons


def _around(mask: "np.ndarray[Any, np.dtype[np.bool_]]") -> list[float]:
    """The box whose edges lie around all pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


class Listed(NamedTuple):
    """What an ``annotations.json`` says of one image."""

    size: tuple[int, int] | None
    """Width and height, if it says them."""
    boxes: list[tuple[list[float], int]]
    """``(x, y, width, height)`` with category; crowds are left out."""


def read_coco(path: Path) -> tuple[dict[int, str], dict[str, Listed]]:
    """The categories, and what is said of each file of an image.

    Raises:
        ValueError: If the file cannot be read or lacks a part.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = {int(one["id"]): str(one["name"]) for one in content["categories"]}
        images = content["images"]
        files = {one["id"]: str(one["file_name"]) for one in images}
        for kind, names in {
            "category": categories.values(),
            "file": [one["file_name"] for one in images],
            "image id": [one["id"] for one in images],
        }.items():
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise InvalidValueError(f"it has the {kind} '{twice[0]}' more than once")
        listed = {str(one["file_name"]): Listed(_said_size(one), []) for one in images}
        for one in content["annotations"]:
            if not one.get("iscrowd"):
                box = [float(value) for value in one["bbox"]]
                listed[files[one["image_id"]]].boxes.append((box, int(one["category_id"])))
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidValueError(f"'{path}' cannot be read: {reason}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidValueError(
            f"'{path}' is not of COCO's form: {type(error).__name__} {error}"
        ) from error
    return categories, listed


def _said_size(image: dict[str, Any]) -> tuple[int, int] | None:
    return (
        (int(image["width"]), int(image["height"])) if {"width", "height"} <= set(image) else None
    )


def annotated(folder: Path, classes: Sequence[str]) -> tuple[list[Boxed], Reasons]:
    """The images of a split with the boxes of its ``annotations.json``, and what is wrong.

    Raises:
        ValueError: If the file cannot be read, or an image is missing.
    """
    path = folder / ANNOTATIONS
    categories, listed = read_coco(path)
    if not listed:
        raise InvalidValueError(f"'{path}' lists no image")

    def boxed(item: tuple[str, Listed]) -> Boxed:
        name, (said, annotations) = item
        image = folder / "images" / name
        size = upright_size(image)
        if said not in (None, size):
            raise InvalidValueError(
                f"{ANNOTATIONS} has it as {said[0]} x {said[1]} pixels, but it is "
                f"{size[0]} x {size[1]}"
            )
        boxes = [_inside(box, size) for box, _ in annotations]
        labels = [_label(number, categories, classes) for _, number in annotations]
        tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        return Boxed(image, Boxes(tensor, torch.tensor(labels, dtype=torch.int64)))

    _, found, reasons = _checked(
        sorted(listed.items()), boxed, lambda item: folder / "images" / item[0]
    )
    return found, reasons


def _inside(box: list[float], size: tuple[int, int]) -> list[float]:
    """Edges instead of sides; what sticks out by rounding is cut."""
    if len(box) != 4 or not all(map(np.isfinite, box)) or min(box[2:]) <= 0:
        raise InvalidValueError(f"the box {box} must be x, y, and a width and height above 0")
    x, y, width, height = box
    edges = [x, y, x + width, y + height]
    limits = [*size, *size]
    if min(edges) < -ROUNDING or any(
        edge > most + ROUNDING for edge, most in zip(edges, limits, strict=True)
    ):
        raise InvalidValueError(
            f"the box {box} lies outside the image of {size[0]} x {size[1]} pixels"
        )
    cut = [min(max(edge, 0.0), float(most)) for edge, most in zip(edges, limits, strict=True)]
    left, top, right, bottom = map(np.float32, cut)
    if right <= left or bottom <= top:
        raise InvalidValueError(f"of the box {box} nothing lies inside the image")
    return cut


def _label(number: int, categories: dict[int, str], classes: Sequence[str]) -> int:
    name = categories.get(number)
    if name not in classes:
        said = f"number {number}, which is no category" if name is None else f"'{name}'"
        raise InvalidValueError(f"a box has the class {said}; training knows: {', '.join(classes)}")
    return classes.index(name)


def _checked(
    items: Sequence[Item], work: Callable[[Item], Result], path: Callable[[Item], Path]
) -> tuple[list[Item], list[Result], Reasons]:
    """The items that can be read, what came of them, and why the others cannot."""

    def attempt(item: Item) -> Result | str:
        try:
            found = work(item)
            open_rgb(path(item))  # whole, as it will be read
            return found
        except Exception as error:  # whatever a decoder raises on broken bytes
            return str(error).partition("\n")[0] or type(error).__name__

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, items))
    good: list[Item] = []
    found: list[Result] = []
    bad: Reasons = {}
    for item, result in zip(items, results, strict=True):
        if isinstance(result, str):
            bad[path(item)] = result
        else:
            good.append(item)
            found.append(result)
    return good, found, bad


def any_box(sources: Iterable[Boxed]) -> bool:
    """Whether there is anything to find."""
    return any(len(source.found.boxes) for source in sources)
