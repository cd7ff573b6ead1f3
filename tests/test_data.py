"""Splits, limits and records: what a data set is, whatever it came from."""

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from folder_data import make_folder, write_image
from foveate.errors import InvalidValueError
from foveate.experiments.data import reading
from foveate.experiments.data.load import Data, load_data
from foveate.experiments.data.splits import by_share, hold_out

UNPACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack"


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits")


def test_digits_are_split_into_every_image_once(digits: Data) -> None:
    native = load_data("digits", image_size=8)
    images = torch.cat([split.images for split in (native.train, native.val, native.test)])
    assert len(images) == 1797
    counts = torch.stack([s.labels.bincount() for s in (digits.train, digits.val, digits.test)])
    assert counts.sum(1).tolist() == [1294, 144, 359]
    assert (counts / counts.sum(1, keepdim=True) - 0.1).abs().max() < 0.02
    from sklearn.datasets import load_digits

    published = np.sort(load_digits().data.sum(1) * 255 / 16)
    assert np.abs(np.sort(images.flatten(1).sum(1).numpy()) - published).max() < 32  # rounding


def test_statistics_are_those_of_the_training_pixels(digits: Data) -> None:
    pixels = digits.train.images.double() / 255
    assert digits.mean == pytest.approx((pixels.mean().item(),), abs=1e-6)
    assert digits.std == pytest.approx((pixels.std(correction=0).item(),), abs=1e-6)


def test_digits_come_in_the_size_asked_for(digits: Data) -> None:
    assert digits.train.images.shape[1:] == (1, 16, 16)
    assert load_data("digits", image_size=32).train.images.shape[1:] == (1, 32, 32)


def test_a_split_depends_on_its_seed_alone(digits: Data) -> None:
    again, other = load_data("digits"), load_data("digits", split_seed=1)
    assert again.record == digits.record
    assert other.record["fingerprint"] != digits.record["fingerprint"]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load_data("digits")
    assert torch.equal(torch.get_rng_state(), state)


def test_held_out_shares_cover_every_class_once() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2] * 2)
    rest, held = hold_out(labels, 0.1, seed=3)
    assert sorted(torch.cat((rest, held)).tolist()) == list(range(101))
    assert len(held) == 10
    assert labels[held].unique().tolist() == labels[rest].unique().tolist() == [0, 1, 2]
    assert not torch.equal(held, hold_out(labels, 0.1, seed=4)[1])


def test_every_beginning_keeps_the_shares() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = by_share(labels, seed=0)
    assert sorted(order.tolist()) == list(range(100))
    for length in range(3, 101):
        counts = labels[order[:length]].bincount(minlength=3) / length
        assert (counts - torch.tensor([0.6, 0.3, 0.1])).abs().max() * length <= 1.5


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(InvalidValueError, match="1 of 2 classes have one image"):
        hold_out(torch.tensor([0, 0, 0, 1]), 0.25, seed=0)
    with pytest.raises(InvalidValueError, match="smaller fraction"):
        hold_out(torch.tensor([0, 0, 0, 1, 1]), 0.9, seed=0)


def test_a_limit_holds_for_each_split_and_keeps_the_shares() -> None:
    data = load_data("digits", limit=50)
    for split in (data.train, data.val, data.test):
        assert split.labels.bincount().tolist() == [5] * 10
    assert data.record["limit"] == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 3}, "limit=3"),
        ({"val_fraction": 0.0}, "val_fraction must be between 0 and 1, but got 0.0"),
        ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1, but got 1.0"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        load_data("digits", **options)


def test_an_unknown_name_gets_the_nearest_and_the_places(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="did you mean 'digits'") as error:
        load_data("digit", root=tmp_path)
    assert "cifar10" in str(error.value)
    assert str(tmp_path / "digit") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_published_set_that_is_not_there_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"cifar10 is not whole under root='.*set download"):
        load_data("CIFAR10", root=tmp_path)


def _write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_a_torchvision_set_in_memory_is_read_from_disk(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = np.broadcast_to(labels[:, None, None] * 20, (count, 28, 28))
        _write_idx(raw / f"{part}-images-idx3-ubyte", images)
        _write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    data = load_data("fashionmnist", root=tmp_path, val_fraction=0.25)
    assert data.classes[:2] == ("T-shirt/top", "Trouser")
    assert [len(split) for split in (data.train, data.val, data.test)] == [30, 10, 20]
    assert (data.in_channels, data.image_size, data.mirrors) == (1, 28, True)
    assert torch.equal(data.test.images[:, 0, 5, 5], data.test.labels.to(torch.uint8) * 20)
    assert data.record["splits"]["test"]["from"] == "given"


def test_a_torchvision_set_of_files_is_read_from_disk(tmp_path: Path) -> None:
    make_folder(tmp_path / "eurosat" / "2750", {"Forest": 10, "River": 10}, size=(64, 64))
    data = load_data("eurosat", root=tmp_path)
    assert data.classes == ("Forest", "River")
    assert [len(split) for split in (data.train, data.val, data.test)] == [14, 2, 4]
    assert data.train.images.shape == (14, 3, 64, 64)


def test_digits_and_letters_do_not_mirror(digits: Data, tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 5, "b": 5})
    assert (digits.mirrors, load_data(str(tmp_path)).mirrors) == (False, True)


def test_large_sets_stay_on_disk_with_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, {"a": 8, "b": 8}, size=(12, 12))
    held = load_data(str(tmp_path))
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    streamed = load_data(str(tmp_path))
    assert streamed.train.images is None
    assert streamed.train.paths == held.train.paths
    assert streamed.mean == held.mean
    assert streamed.std == held.std
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.raises(InvalidValueError, match=r"1 image\(s\) cannot be read: .*0.png \(empty\)"):
        load_data(str(tmp_path))


def test_pixels_are_those_of_the_usual_pipeline(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"a": 3, "b": 3}, size=(10, 10))
    make_folder(tmp_path / "test", {"a": 2, "b": 2}, size=(10, 10))
    test = load_data(str(tmp_path)).test
    usual = ImageFolder(str(tmp_path / "test"))
    for pixels, label, (image, target) in zip(test.images, test.labels, usual, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(image))
        assert label == target


def test_the_fingerprint_follows_pixels_and_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_folder(tmp_path / name, {"a": 5, "b": 5})
    one, two = (load_data(name, root=tmp_path).record for name in ("one", "two"))
    assert one["fingerprint"] == two["fingerprint"]
    write_image(tmp_path / "two" / "a" / "0.png", (8, 8), seed=99)
    assert load_data("two", root=tmp_path).record["fingerprint"] != one["fingerprint"]


@pytest.mark.data
@pytest.mark.skipif(not UNPACK.is_file(), reason="no real images beside the checkout")
def test_real_photographs(tmp_path: Path) -> None:
    subprocess.run([UNPACK, tmp_path, "flowers12"], check=True, stdout=subprocess.DEVNULL)
    data = load_data("flowers12", root=tmp_path)
    assert (len(data.classes), data.image_size, data.in_channels) == (12, 128, 3)
    assert [len(split) for split in (data.train, data.val, data.test)] == [648, 72, 240]
    assert not set(data.train.paths) & (set(data.val.paths) | set(data.test.paths))
    assert all(0.2 < value < 0.5 for value in data.mean + data.std)
