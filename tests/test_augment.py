"""Augmentation: each change is the one it says, for each image on its own."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import functional

from foveate.errors import InvalidValueError
from foveate.experiments.data.augment import AUGMENTS, Augment, augment, preset


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _draws(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 8, generator=_generator(seed)) * 2 - 1


@pytest.fixture
def images() -> Tensor:
    """Sixteen pictures with room to be brightened and darkened without clamping."""
    return torch.rand(16, 3, 16, 16, generator=_generator(9)) * 0.4 + 0.3


CHANGES = {
    "brightness": (0, functional.adjust_brightness),
    "contrast": (1, functional.adjust_contrast),
    "saturation": (2, functional.adjust_saturation),
}


@pytest.mark.parametrize("change", CHANGES)
def test_colours_change_as_in_torchvision(images: Tensor, change: str) -> None:
    column, reference = CHANGES[change]
    changed = augment(images, Augment(**{change: 0.5}), _generator())
    for image, result, draw in zip(images, changed, _draws(16)[:, column], strict=True):
        expected = reference(image, 1 + 0.5 * draw.item())
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-3)  # luma to 3 or 4 digits


def test_bright_pixels_are_clamped() -> None:
    changed = augment(torch.full((64, 3, 2, 2), 0.9), Augment(brightness=0.5), _generator())
    assert changed.max() == 1
    assert changed.min() < 0.9


def test_the_hue_turns_as_in_torchvision(images: Tensor) -> None:
    turned = augment(images, Augment(hue=0.1), _generator())
    expected = torch.stack(
        [
            functional.adjust_hue(image, 0.1 * draw.item())
            for image, draw in zip(images, _draws(16)[:, 3], strict=True)
        ]
    )
    colours = [batch - batch.mean(1, keepdim=True) for batch in (images, turned, expected)]
    moved, missed = (colours[2] - colours[0]).norm(), (colours[2] - colours[1]).norm()
    assert missed < 0.2 * moved  # HSV turns along a hexagon, not a circle
    torch.testing.assert_close(turned.mean(1), images.mean(1), rtol=0, atol=1e-5)


def test_a_whole_turn_of_the_hue_changes_nothing(images: Tensor) -> None:
    ones = torch.rand(1, 8, generator=_generator(3)) * 2 - 1
    turned = augment(images[:1], Augment(hue=1 / ones[0, 3].item()), _generator(3))
    torch.testing.assert_close(turned, images[:1], rtol=0, atol=1e-4)


def test_grey_stays_grey_under_hue_and_saturation() -> None:
    grey = torch.rand(8, 1, 4, 4, generator=_generator()).expand(-1, 3, -1, -1)
    changed = augment(grey, Augment(saturation=0.9, hue=0.5), _generator())
    torch.testing.assert_close(changed, grey, rtol=0, atol=1e-5)


def test_single_channel_images_change_brightness_and_contrast_alone() -> None:
    images = torch.rand(8, 1, 6, 6, generator=_generator(1)) * 0.4 + 0.3
    full = Augment(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)
    changed = augment(images, full, _generator())
    draws = _draws(8)
    for image, result, draw in zip(images, changed, draws.tolist(), strict=True):
        bright = functional.adjust_brightness(image, 1 + 0.2 * draw[0])
        expected = functional.adjust_contrast(bright.expand(3, -1, -1), 1 + 0.2 * draw[1])[:1]
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


def test_a_crop_is_a_shift_by_whole_pixels_onto_black() -> None:
    images = torch.rand(1, 2, 16, 16, generator=_generator()).expand(300, -1, -1, -1)
    cropped = augment(images, Augment(padding=1 / 8), _generator())
    padded = pad(images[0], (2, 2, 2, 2))
    windows = {(y, x): padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)}
    seen = set()
    for result in cropped:
        errors = {at: (window - result).abs().max() for at, window in windows.items()}
        nearest = min(errors, key=errors.__getitem__)
        assert errors[nearest] < 1e-4
        seen.add(nearest)
    assert seen == set(windows)


def test_a_flip_mirrors_half_of_the_images_left_to_right() -> None:
    images = torch.rand(400, 3, 5, 5, generator=_generator())
    flipped = augment(images, Augment(flip=True), _generator())
    mirrored = (flipped - images.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    same = (flipped - images).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored ^ same).all()
    assert 160 < mirrored.sum() < 240


def test_a_rotation_is_torchvisions_by_the_angle_drawn(images: Tensor) -> None:
    turned = augment(images, Augment(rotation=30), _generator())
    for image, result, draw in zip(images, turned, _draws(16)[:, 6], strict=True):
        bilinear = functional.InterpolationMode.BILINEAR
        expected = functional.rotate(image, 30 * draw.item(), interpolation=bilinear)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)


def test_crop_flip_and_rotation_combine_in_that_order(images: Tensor) -> None:
    all_three = augment(images, Augment(padding=1 / 8, flip=True, rotation=15), _generator())
    draws = _draws(16)[:, 4:].tolist()
    for image, result, (right, down, angle, flip) in zip(images, all_three, draws, strict=True):
        x, y = (math.floor((shift + 1) / 2 * 5) for shift in (right, down))
        shifted = pad(image, (2, 2, 2, 2))[:, y : y + 16, x : x + 16]
        mirrored = shifted.flip(2) if flip < 0 else shifted
        bilinear = functional.InterpolationMode.BILINEAR
        expected = functional.rotate(mirrored, 15 * angle, interpolation=bilinear)
        torch.testing.assert_close(
            result[:, 4:12, 4:12], expected[:, 4:12, 4:12], rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("name", AUGMENTS)
def test_bytes_and_fractions_agree_and_stay_as_they_are(name: str) -> None:
    whole = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8, generator=_generator())
    kept, fractions = whole.clone(), whole / 255
    results = [augment(batch, preset(name), _generator(1)) for batch in (whole, fractions)]
    assert torch.equal(*results)
    assert torch.equal(whole, kept)
    assert torch.equal(fractions, kept / 255)
    assert results[0].min() >= 0
    assert results[0].max() <= 1


def test_nothing_changes_nothing(images: Tensor) -> None:
    assert torch.equal(augment(images, preset("none"), _generator()), images)


def test_each_image_has_its_own_numbers_and_the_seed_decides_all_of_them(images: Tensor) -> None:
    same = images[:1].expand(16, -1, -1, -1)
    changed, again, other = (augment(same, preset("full"), _generator(s)) for s in (1, 1, 2))
    assert torch.equal(changed, again)
    distances = torch.cdist(changed.flatten(1), changed.flatten(1)) + torch.eye(16)
    assert distances.min() > 0.01
    assert not torch.equal(changed, other)


def test_every_preset_draws_the_same_amount(images: Tensor) -> None:
    after = []
    for name in AUGMENTS:
        generator = _generator()
        augment(images, preset(name), generator)
        after.append(generator.get_state())
    assert all(torch.equal(state, after[0]) for state in after)


def test_presets_by_name() -> None:
    assert preset("auto") == preset("flip_crop")
    assert preset("full").flip
    assert not preset("full", mirrors=False).flip
    assert preset("full", mirrors=False).rotation == 15
    with pytest.raises(
        InvalidValueError, match=r"unknown augment 'flip'.*Accepted: auto, flip_crop"
    ):
        preset("flip")
