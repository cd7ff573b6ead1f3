"""Augmentation of images together with what is in them: flips, crops, colours."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, functional

from foveate.experiments.data.augment import Augment, augment
from foveate.experiments.data.scenes import Boxes, Target

LEAST_SIDE = 0.5
"""The smallest side of a crop, as a share of the image's."""
LEAST_SEEN = 0.25
"""A box of which the crop shows less than this share is left out."""


def augment_scenes(
    images: Tensor, targets: Sequence[Target], how: Augment, generator: torch.Generator
) -> tuple[Tensor, list[Target]]:
    """Change each image in its own random way, and its mask or boxes with it.

    Crops are squares inside the image of half its side and more, resized to the old size; images
    are interpolated and masks are not. Rotations are left out: the box around a turned box is not
    the box of a turned thing.

    Args:
        images: ``(B, 3, S, S)`` of uint8.
        targets: What is in each.
        how: What may change; crops come with its ``padding``.
        generator: Source of every random number, on the CPU; the same amount is drawn whatever
            ``how`` is.

    Returns:
        Floating ``(B, 3, S, S)`` in [0, 1], and the new targets.
    """
    draws = torch.rand(len(images), 4, generator=generator).tolist()
    moved = [
        _move(image, target, how, own)
        for image, target, own in zip(images, targets, draws, strict=True)
    ]
    pixels = torch.stack([image for image, _ in moved])
    colours = dataclasses.replace(how, padding=0.0, flip=False, rotation=0.0)
    return augment(pixels, colours, generator), [target for _, target in moved]


def _move(
    image: Tensor, target: Target, how: Augment, draws: Sequence[float]
) -> tuple[Tensor, Target]:
    mirror, zoom, down, right = draws
    side = image.shape[-1]
    if how.flip and mirror < 0.5:
        image, target = functional.horizontal_flip(image), _flipped(target, side)
    if how.padding:
        crop = round(side * (1 - (1 - LEAST_SIDE) * zoom))
        top, left = (int(share * (side - crop + 1)) for share in (down, right))
        window = (top, left, crop, crop, [side, side])
        image, target = functional.resized_crop(image, *window), _cropped(target, window)
    return image, target


def _flipped(target: Target, side: int) -> Target:
    if isinstance(target, Tensor):
        return functional.horizontal_flip(target)
    return _moved(functional.horizontal_flip(_typed(target.boxes, side)), target.labels)


def _cropped(target: Target, window: tuple[int, int, int, int, list[int]]) -> Target:
    crop, (side, _) = window[3], window[4]
    if isinstance(target, Tensor):
        # As an image: masks are resized by torch's "nearest", which shifts them by half a pixel.
        exact = {"interpolation": InterpolationMode.NEAREST_EXACT, "antialias": False}
        return functional.resized_crop(target.unsqueeze(0), *window, **exact)[0]
    moved = functional.resized_crop(_typed(target.boxes, side), *window)
    kept = _area(moved) >= LEAST_SEEN * (side / crop) ** 2 * _area(target.boxes)
    return _moved(moved[kept], target.labels[kept])


def _typed(boxes: Tensor, side: int) -> Any:
    """Boxes as what torchvision moves together with images."""
    corners = tv_tensors.BoundingBoxFormat.XYXY
    return tv_tensors.BoundingBoxes(boxes, format=corners, canvas_size=(side, side))


def _moved(boxes: Tensor, labels: Tensor) -> Boxes:
    return Boxes(boxes.as_subclass(Tensor), labels)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).as_subclass(Tensor).prod(1)
