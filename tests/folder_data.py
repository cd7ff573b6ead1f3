"""Folders of small pictures for the tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, size: tuple[int, int] = (8, 8), *, seed: int = 0) -> None:
    """A picture of noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_folder(root: Path, counts: dict[str, int], *, size: tuple[int, int] = (8, 8)) -> Path:
    """``root/<class>/<number>.png``, as many as ``counts`` says, all different."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            write_image(root / name / f"{number}.png", size, seed=1000 * label + number)
    return root
