"""Image files as tensors: what is read, how it is brought to one size, what is refused."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
)
USUAL_SIZE = 224
_CHUNK = 64


@dataclass(frozen=True)
class ImageSet:
    """The images and labels of one split, in memory or as files.

    Args:
        labels: ``(N,)`` of int64.
        images: ``(N, C, H, W)`` of uint8 when held in memory, else None.
        paths: The ``N`` files, when the images come from files.
    """

    labels: Tensor
    images: Tensor | None
    paths: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "ImageSet":
        """The images at ``index``, in its order."""
        images = None if self.images is None else self.images[index]
        paths = tuple(self.paths[i] for i in index.tolist()) if self.paths else ()
        return ImageSet(self.labels[index], images, paths)


def open_rgb(path: Path | IO[bytes], size: int | None = None) -> Image.Image:
    """The upright RGB picture in a file, on white where it is transparent.

    Args:
        path: A file, or what is in one, in any format that Pillow reads.
        size: Shorter side that will be needed: a large JPEG is then decoded at a fraction of its
            size, at least twice this.

    Raises:
        OSError: If the file cannot be read whole.
        ValueError: If the pixels are of a kind whose range is unknown.
    """
    with Image.open(path) as image:
        if size is not None:
            image.draft(None, (2 * size, 2 * size))
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        pixels = np.asarray(upright).clip(0, 65535) // 257
        upright = Image.fromarray(pixels.astype(np.uint8))
    if upright.mode == "F":
        raise ValueError("floating-point pixels")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return upright.convert("RGB")


def to_tensor(image: Image.Image, size: int) -> Tensor:
    """A picture as uint8 ``(C, size, size)``: shorter side resized, then the centre."""
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8, ndmin=3))
    return pixels.permute(2, 0, 1) if pixels.shape[-1] == 3 else pixels


def decode(path: Path, size: int) -> Tensor:
    """The picture in a file as uint8 ``(3, size, size)``; errors of :func:`open_rgb`."""
    return to_tensor(open_rgb(path, size), size)


def decode_all(paths: Sequence[Path], size: int) -> Iterator[Tensor | str]:
    """For each file in order, its pixels ``(3, size, size)`` or why there are none."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    # Pillow holds the interpreter's lock too long on thumbnails for threads to pay there.
    threads = min(8, os.cpu_count() or 1) if size > 96 else 1
    with ThreadPoolExecutor(threads) as pool:
        for chunk in pool.map(partial(_decode_chunk, size=size), chunks):
            yield from chunk


def common_size(paths: Sequence[Path]) -> int:
    """Shorter side of the images if all have one size of at most 224, else 224."""
    sizes: set[tuple[int, int]] = set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except (OSError, ValueError):
            continue  # decoding all will name it, with the reason
        if len(sizes) > 1:
            return USUAL_SIZE
    return min(USUAL_SIZE, *sizes.pop()) if sizes else USUAL_SIZE


def _decode_chunk(paths: Sequence[Path], size: int) -> list[Tensor | str]:
    return [_decode_or_reason(path, size) for path in paths]


def _decode_or_reason(path: Path, size: int) -> Tensor | str:
    try:
        return decode(path, size)
    except UnidentifiedImageError:
        return "not an image" if path.stat().st_size else "empty"
    except Exception as error:  # whatever a decoder raises on broken bytes
        return str(error).partition("\n")[0] or type(error).__name__
