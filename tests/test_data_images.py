"""Image files of every kind, read as a person sees them, and broken ones named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from folder_data import make_folder, write_image
from foveate.errors import InvalidValueError
from foveate.experiments.data.images import USUAL_SIZE, common_size, decode, decode_all
from foveate.experiments.data.load import load_data

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
COLOUR = np.stack((RAMP, RAMP.T, 255 - RAMP), -1)


def _grey_alpha() -> Image.Image:
    return Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (8, 8), 255)))


def _palette() -> Image.Image:
    image = Image.fromarray(RAMP // 64, mode=None).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    return image


PICTURES: dict[str, tuple[Callable[[], Image.Image], str, np.ndarray, int]] = {
    "rgb": (lambda: Image.fromarray(COLOUR), "png", COLOUR, 0),
    "bmp": (lambda: Image.fromarray(COLOUR), "bmp", COLOUR, 0),
    "webp": (lambda: Image.fromarray(COLOUR), "webp", COLOUR, 40),
    "grey": (lambda: Image.fromarray(RAMP), "png", np.stack([RAMP] * 3, -1), 0),
    "grey-jpeg": (lambda: Image.fromarray(RAMP), "jpg", np.stack([RAMP] * 3, -1), 12),
    "grey-alpha": (_grey_alpha, "png", np.stack([RAMP] * 3, -1), 0),
    "sixteen-bit": (
        lambda: Image.fromarray(RAMP.astype(np.uint16) * 257),
        "png",
        np.stack([RAMP] * 3, -1),
        0,
    ),
    "palette": (_palette, "png", np.eye(4)[RAMP // 64][..., 1:] * 255, 0),
    "cmyk": (lambda: Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "jpg", [0, 255, 255], 12),
    "clear": (lambda: Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "png", [255, 255, 255], 0),
    "half-clear": (lambda: Image.new("RGBA", (8, 8), (0, 0, 0, 51)), "png", [204, 204, 204], 1),
    "bilevel": (lambda: Image.new("1", (8, 8), 1), "png", [255, 255, 255], 0),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_picture_reads_as_it_looks(tmp_path: Path, kind: str) -> None:
    make, suffix, expected, tolerance = PICTURES[kind]
    make().save(tmp_path / f"x.{suffix}")
    pixels = decode(tmp_path / f"x.{suffix}", 8).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(pixels - np.broadcast_to(expected, (8, 8, 3))).max() <= tolerance


def test_a_palette_with_transparent_entries_lies_on_white(tmp_path: Path) -> None:
    image = _palette()
    image.save(tmp_path / "x.png", transparency=b"\x00\xff\xff\xff")
    pixels = decode(tmp_path / "x.png", 8)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 7, 7].tolist() == [0, 0, 255]


def test_an_image_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(COLOUR).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "x.png", 8).permute(1, 2, 0), np.rot90(COLOUR, -1))


def test_mixed_shapes_keep_their_centre(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", 10) == 200).all()
    assert (decode(tmp_path / "x.png", 5)[:, 1:4, 1:4] == 200).all()


def test_a_large_photograph_keeps_its_look_when_decoded_small(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 640).round().astype(np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (640, 1))] * 3, -1))
    image.save(tmp_path / "x.jpg", quality=95)
    image.save(tmp_path / "x.png")
    small, exact = (decode(tmp_path / name, 32).int() for name in ("x.jpg", "x.png"))
    assert (small - exact).abs().max() <= 3


def test_the_size_is_the_common_one_or_the_usual_one(tmp_path: Path) -> None:
    same, mixed, large = (tmp_path / name for name in ("same", "mixed", "large"))
    make_folder(same, {"a": 2, "b": 2}, size=(20, 14))
    make_folder(mixed, {"a": 2, "b": 2}, size=(20, 14))
    write_image(mixed / "b" / "9.png", (21, 14))
    make_folder(large, {"a": 2, "b": 2}, size=(300, 250))
    sizes = [common_size(sorted(root.rglob("*.png"))) for root in (same, mixed, large)]
    assert sizes == [14, USUAL_SIZE, USUAL_SIZE]


def _break(folder: Path) -> dict[str, str]:
    """Four broken files and what is said of each."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        folder / "cut.jpg"
    )
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.gif").write_text("this is no image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tif")
    return {
        "cut.jpg": "truncated",
        "empty.png": "empty",
        "text.gif": "not an image",
        "float.tif": "floating-point pixels",
    }


def test_broken_files_stop_everything_and_are_named(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 10, "b": 10})
    reasons = _break(tmp_path / "a")
    with pytest.raises(InvalidValueError, match=r"^4 image\(s\) cannot be read") as error:
        load_data(str(tmp_path))
    for name, reason in reasons.items():
        assert str(tmp_path / "a" / name) in str(error.value)
        assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_files_are_left_out_when_asked_and_recorded(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 10, "b": 10})
    reasons = _break(tmp_path / "a")
    data = load_data(str(tmp_path), image_size=8, skip_bad=True)
    assert {Path(path).name for path in data.record["skipped"]} == set(reasons)
    assert sum(map(len, (data.train, data.val, data.test))) == 20
    for split in (data.train, data.val, data.test):
        for path, pixels in zip(split.paths, split.images, strict=True):
            assert torch.equal(pixels, decode(path, 8))


def test_a_class_that_loses_every_image_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 10, "b": 10})
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InvalidValueError, match="no training image of class 'a' is left"):
        load_data(str(tmp_path), skip_bad=True)


def test_many_broken_files_fit_in_one_message(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 30, "b": 3})
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"")
    message = r"^30 image\(s\) cannot be read: (\S+ \(empty\),? ){20}and 10 more; remove them"
    with pytest.raises(InvalidValueError, match=message):
        load_data(str(tmp_path))


@pytest.mark.parametrize("size", [8, 128])
def test_files_are_decoded_in_their_order(tmp_path: Path, size: int) -> None:
    make_folder(tmp_path, {"a": 150}, size=(size, size))
    paths = sorted((tmp_path / "a").iterdir())
    for path, pixels in zip(paths, decode_all(paths, size), strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(Image.open(path)))
