"""Images with what is in them: a class for each pixel, or boxes with a class each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.errors import InvalidValueError
from foveate.experiments.data.images import ImageSet, open_rgb

VOID = 255
"""Pixels of a mask that belong to no class, whatever number the files give them."""
BORDER = (124, 116, 104)
"""Around a letterboxed image: ImageNet's mean, which is zero once it is normalised."""


class Boxes(NamedTuple):
    """The things in one image."""

    boxes: Tensor
    """``(M, 4)`` of float32: left, top, right and bottom, in pixels from the upper left corner."""
    labels: Tensor
    """``(M,)`` of int64, from 0."""


# What Pillow multiplies the numbers of grey pictures by that have fewer bits.
_STRETCHED = {"L;2": 85, "L;4": 17}

Target = Tensor | Boxes
"""What is in one image: a mask ``(S, S)`` of uint8, or boxes."""


@dataclass(frozen=True)
class Masked:
    """An image file and the mask beside it.

    Args:
        image: Any picture.
        mask: One number a pixel.
        void: The number in the mask of pixels that belong to no class; higher ones move down.
    """

    image: Path
    mask: Path
    void: int

    def read(self, size: int) -> tuple[Tensor, Target]:
        """The picture ``(3, size, size)`` and its mask, both stretched; errors of Pillow."""
        numbers = Image.fromarray(self.numbers())
        mask = numbers.resize((size, size), Image.Resampling.NEAREST)
        return stretched(open_rgb(self.image, size), size), torch.from_numpy(np.array(mask))

    def numbers(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The classes of all pixels of the file, :data:`VOID` where there is none.

        Raises:
            ValueError: If it is no mask, is of another size than its image, or is only void.
        """
        values = read_mask(self.mask)
        check_same_size(self.image, values.shape)
        known = values - (values > self.void)
        known[values == self.void] = VOID
        if bool((values != self.void).any()) and int(known[values != self.void].max()) >= VOID:
            raise InvalidValueError(f"its mask has the number {int(values.max())}, above {VOID}")
        if bool((known == VOID).all()):
            raise InvalidValueError("its mask is empty: every pixel of it is void")
        return known.astype(np.uint8)


@dataclass(frozen=True)
class Boxed:
    """An image file and the boxes in it, in its own pixels."""

    image: Path
    found: Boxes

    def read(self, size: int) -> tuple[Tensor, Target]:
        """The picture ``(3, size, size)``, letterboxed, and the boxes in it; errors of Pillow."""
        width, height = upright_size(self.image)
        boxes = self.found.boxes * (size / max(width, height))
        return letterboxed(open_rgb(self.image, size), size), Boxes(boxes, self.found.labels)


Source = Masked | Boxed


@dataclass(frozen=True)
class SceneSet(ImageSet):
    """Images of one split with what is in them, in memory or as files.

    Args:
        sources: The files of each image.
        targets: What is in each image, when they are held in memory, else None.
    """

    sources: tuple[Source, ...] = ()
    targets: tuple[Target, ...] | None = None

    def take(self, index: Tensor) -> "SceneSet":
        """The images at ``index``, in its order."""
        images = super().take(index)
        chosen = index.tolist()
        return SceneSet(
            images.labels,
            images.images,
            images.paths,
            tuple(self.sources[i] for i in chosen),
            None if self.targets is None else tuple(self.targets[i] for i in chosen),
        )

    def scene(self, index: int, size: int) -> tuple[Tensor, Target]:
        """One image ``(3, size, size)`` of uint8 and what is in it."""
        if self.images is None or self.targets is None:
            return self.sources[index].read(size)
        return self.images[index], self.targets[index]


def as_files(sources: Sequence[Source]) -> SceneSet:
    """A split of which nothing is in memory; its labels are all one class, so splits are plain."""
    paths = tuple(source.image for source in sources)
    return SceneSet(torch.zeros(len(paths), dtype=torch.int64), None, paths, tuple(sources))


def stretched(image: Image.Image, size: int) -> Tensor:
    """A picture as uint8 ``(3, size, size)``, each side resized on its own.

    Right for masks: no pixel is lost or wasted on a border, and a ratio of areas stays what it is.
    """
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return _tensor(image)


def letterboxed(image: Image.Image, size: int) -> Tensor:
    """A picture as uint8 ``(3, size, size)``, in its own shape at the upper left, then a border.

    Right for boxes: anchors are made for the shapes that things have.
    """
    longest = max(image.size)
    inner = [max(1, round(side * size / longest)) for side in image.size]
    canvas = Image.new("RGB", (size, size), BORDER)
    canvas.paste(image.resize((inner[0], inner[1]), Image.Resampling.BILINEAR), (0, 0))
    return _tensor(canvas)


def read_mask(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The numbers ``(H, W)`` in a mask.

    Raises:
        OSError: If the file cannot be read whole.
        ValueError: If it is missing, or holds colours.
    """
    if not path.is_file():
        raise InvalidValueError(f"its mask '{path}' is missing")
    with Image.open(path) as mask:
        stretch = _STRETCHED.get(str(mask.tile[0].args), 1) if mask.tile else 1
        if mask.mode not in ("1", "L", "P", "I") and not mask.mode.startswith("I;"):
            raise InvalidValueError(
                f"its mask must have one number a pixel, but it is a {mask.mode} picture"
            )
        return np.array(mask).astype(np.int64) // stretch


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of the picture in a file, as it is shown."""
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # the orientation; from 5 on it lies on a side
    return (height, width) if turned else (width, height)


def check_same_size(image: Path, shape: Sequence[int]) -> None:
    """Refuse a mask ``(H, W)`` of another size than its image.

    Raises:
        ValueError: With both sizes.
    """
    width, height = upright_size(image)
    if tuple(shape) != (height, width):
        raise InvalidValueError(
            f"its mask is {shape[1]} x {shape[0]} pixels, but the image {width} x {height}"
        )


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
