"""Folders of small annotated pictures for the tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COUNTS = {"train": 8, "val": 3, "test": 4}
SIZE = (40, 32)  # width and height
CLASSES = ("ground", "sky", "thing")
_COLOURS = np.array([[90, 60, 20], [120, 170, 250], [230, 30, 60]])


def save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def _classes(rng: np.random.Generator) -> Any:
    """Sky above ground, and one square thing somewhere."""
    width, height = SIZE
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height // 3] = 1
    x, y = rng.integers(0, width - 12), rng.integers(height // 3, height - 10)
    mask[y : y + 10, x : x + 12] = 2
    return mask


def _picture(mask: Any, rng: np.random.Generator) -> Any:
    return (_COLOURS[np.minimum(mask, 2)] + rng.integers(-8, 9, (*mask.shape, 3))).clip(0, 255)


def make_masks(root: Path, counts: Mapping[str, int] = COUNTS, *, void: int = 255) -> Path:
    """Images with masks of three classes and a void column at the right."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            mask = _classes(rng)
            save(root / split / "images" / f"{number:02}.png", _picture(mask, rng))
            mask[:, -2:] = void
            save(root / split / "masks" / f"{number:02}.png", mask)
    return root


def make_instances(root: Path, counts: Mapping[str, int] = COUNTS) -> Path:
    """Images with one or two things, numbered from 1."""
    rng = np.random.default_rng(1)
    for split, count in counts.items():
        for number in range(count):
            mask = np.where(_classes(rng) == 2, 1, 0)
            if number % 2:
                mask[1:7, 1:9] = 2
            save(root / split / "images" / f"{number:02}.png", _picture(2 * (mask > 0), rng))
            save(root / split / "masks" / f"{number:02}.png", mask)
    return root


def make_coco(root: Path, counts: Mapping[str, int] = COUNTS) -> Path:
    """The same images as :func:`make_instances`, with boxes of two classes in JSON."""
    make_instances(root, counts)
    for split in counts:
        images, boxes = [], []
        for number, path in enumerate(sorted((root / split / "masks").iterdir())):
            mask = np.array(Image.open(path))
            images.append({"id": number, "file_name": path.name, "width": SIZE[0]})
            for thing in range(1, mask.max() + 1):
                ys, xs = np.nonzero(mask == thing)
                box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                boxes.append(
                    {"image_id": number, "category_id": 5 * thing, "bbox": list(map(int, box))}
                )
            path.unlink()
        categories = [{"id": 10, "name": "other"}, {"id": 5, "name": "thing"}]
        write_json(root / split, {"images": images, "annotations": boxes, "categories": categories})
    return root


def write_json(folder: Path, content: Any) -> None:
    (folder / "annotations.json").write_text(json.dumps(content))


def read_json(folder: Path) -> Any:
    return json.loads((folder / "annotations.json").read_text())
