"""Augmentation of whole batches as tensor maths: crop, flip, rotation and colour jitter."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from foveate.errors import check_choice


@dataclass(frozen=True)
class Augment:
    """How far an image may be changed; each image of a batch is changed in its own way.

    Args:
        padding: Black border before a random crop to the old size, as a share of the side.
        flip: Mirror each image with probability 1/2.
        rotation: Largest angle, in degrees, either way.
        brightness: Largest change of the factor 1; likewise ``contrast`` (around the mean grey
            of the image) and ``saturation`` (around the grey of each pixel).
        contrast: See ``brightness``.
        saturation: See ``brightness``; only for three channels.
        hue: Largest turn of the colour circle, as a share of it, either way; likewise.
    """

    padding: float = 0.0
    flip: bool = False
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


_FLIP_CROP = Augment(padding=1 / 8, flip=True)
PRESETS = {
    "auto": _FLIP_CROP,
    "none": Augment(),
    "flip_crop": _FLIP_CROP,
    "full": dataclasses.replace(
        _FLIP_CROP, rotation=15.0, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1
    ),
}
AUGMENTS = tuple(PRESETS)

_LUMA = torch.tensor([[0.299, 0.587, 0.114]]).expand(3, 3)
_MEAN = torch.full((3, 3), 1 / 3)
_QUARTER_TURN = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # around grey


def preset(name: str, *, mirrors: bool = True) -> Augment:
    """The augmentation called ``name``, without flips where they would change the class.

    Args:
        name: One of :data:`AUGMENTS`.
        mirrors: Whether an image keeps its class in a mirror.

    Raises:
        ValueError: If the name is unknown.
    """
    chosen = PRESETS[check_choice("augment", name, AUGMENTS)]
    return chosen if mirrors else dataclasses.replace(chosen, flip=False)


def augment(images: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """Change each image in its own random way.

    Colours change by one affine map a batch, and crop, flip and rotation by one bilinear
    resampling; what comes from outside the image is black.

    Args:
        images: ``(B, C, S, S)``, uint8, or floating in [0, 1]; not changed.
        how: What may change; nothing is computed for what may not.
        generator: Source of every random number, on the CPU; the same amount is drawn whatever
            ``how`` is.

    Returns:
        Floating ``(B, C, S, S)`` in [0, 1].

    Note:
        The hue turns around the grey axis of RGB, which keeps the mean of the channels, and
        values are clamped once, at the end. torchvision turns the hue in HSV, which keeps their
        maximum, clamps after each change, and takes the four in random order.
    """
    draws = torch.rand(len(images), 8, generator=generator)  # (B, 8)
    draws = draws.mul_(2).sub_(1).to(images.device)  # in [-1, 1)
    pixels = images / 255 if images.dtype == torch.uint8 else images
    if how.brightness or how.contrast or how.saturation or how.hue:
        pixels = _jitter(pixels, how, draws[:, :4])
    if how.padding or how.flip or how.rotation:
        pixels = _move(pixels, how, draws[:, 4:])
    return pixels


def _jitter(pixels: Tensor, how: Augment, draws: Tensor) -> Tensor:
    most = draws.new_tensor([how.brightness, how.contrast, how.saturation, math.tau * how.hue])
    change = (draws * most).unsqueeze(-1)  # (B, 4, 1)
    brightness, contrast, saturation = (1 + change[:, :3]).unbind(1)  # (B, 1) each
    gain, hue = (brightness * contrast).unsqueeze(-1), change[:, 3:]  # (B, 1, 1) each
    flat = pixels.flatten(2)  # (B, C, HW)
    if flat.shape[1] == 3:
        luma, mean, turn = (matrix.to(flat) for matrix in (_LUMA, _MEAN, _QUARTER_TURN))
        eye = torch.eye(3).to(flat)
        hue_matrix = mean + hue.cos() * (eye - mean) + hue.sin() * turn  # (B, 3, 3)
        colour = luma + saturation.unsqueeze(-1) * (eye - luma)  # (B, 3, 3)
        changed = (gain * colour @ hue_matrix) @ flat
        grey = luma[:1] @ flat.mean(2, keepdim=True)  # (B, 1, 1)
    else:
        changed = gain * flat
        grey = flat.mean((1, 2), keepdim=True)  # (B, 1, 1)
    shift = (brightness * (1 - contrast)).unsqueeze(-1) * grey
    return changed.add_(shift).clamp_(0, 1).view_as(pixels)


def _move(pixels: Tensor, how: Augment, draws: Tensor) -> Tensor:
    side = pixels.shape[-1]
    steps = round(how.padding * side)
    offset = ((draws[:, :2] + 1) / 2 * (2 * steps + 1)).floor() - steps  # (B, 2), whole pixels
    angle = math.radians(how.rotation) * draws[:, 2]
    mirror = torch.where(draws[:, 3] < 0, -1.0, 1.0) if how.flip else torch.ones_like(angle)
    theta = torch.stack(
        (
            *(mirror * angle.cos(), -mirror * angle.sin(), offset[:, 0] * 2 / side),
            *(angle.sin(), angle.cos(), offset[:, 1] * 2 / side),
        ),
        dim=1,
    ).view(-1, 2, 3)
    grid = functional.affine_grid(theta.to(pixels), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)
