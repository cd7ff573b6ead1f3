"""Batches: a pure function of seed, epoch and step, whoever computes it, wherever it starts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from folder_data import make_folder
from foveate.errors import InvalidValueError
from foveate.experiments.data import reading
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data, load_data

Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits", limit=103)


def _all(data: Data, **options: object) -> Batches:
    return list(batches(data.train, data, **{"batch_size": 16, **options}))


def _equal(one: Batches, two: Batches) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(one, two, strict=True)
    )


def test_an_epoch_in_order_is_the_split_normalised(data: Data) -> None:
    pixels, labels = (torch.cat(parts) for parts in zip(*_all(data), strict=True))
    assert torch.equal(labels, data.train.labels)
    restored = (pixels * data.std[0] + data.mean[0]) * 255
    torch.testing.assert_close(restored, data.train.images.float(), rtol=0, atol=1e-3)
    assert pixels.mean().abs() < 1e-5
    assert pixels.std() == pytest.approx(1, abs=1e-3)


def test_a_shuffled_epoch_holds_every_image_once_with_its_label(data: Data) -> None:
    ordered = {x.numpy().tobytes(): y.item() for b in _all(data) for x, y in zip(*b, strict=True)}
    shuffled = [
        (x.numpy().tobytes(), y.item())
        for b in _all(data, shuffle=True)
        for x, y in zip(*b, strict=True)
    ]
    assert dict(shuffled) == ordered
    assert len(shuffled) == 103
    assert list(dict(shuffled)) != list(ordered)


@pytest.mark.parametrize("augment", ["none", "full"])
def test_a_later_start_continues_exactly(data: Data, augment: str) -> None:
    options = {"augment": augment, "shuffle": True, "seed": 3, "epoch": 2}
    assert _equal(_all(data, **options)[4:], _all(data, **options, start=4))
    assert _all(data, **options, start=7) == []


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 1}])
def test_seed_and_epoch_change_order_and_augmentation(data: Data, other: dict[str, int]) -> None:
    first = {"seed": 1, "epoch": 0}
    assert _equal(_all(data, shuffle=True, **first), _all(data, shuffle=True, **first))
    assert not _equal(_all(data, shuffle=True, **first), _all(data, shuffle=True, **first | other))
    flips = [_all(data, augment="flip_crop", **first | change) for change in ({}, other)]
    assert not _equal(*flips)


def test_seed_and_epoch_are_not_interchangeable(data: Data) -> None:
    swapped = _all(data, shuffle=True, seed=1, epoch=2), _all(data, shuffle=True, seed=2, epoch=1)
    assert not _equal(*swapped)


def test_no_two_steps_share_their_augmentation(data: Data) -> None:
    twice = data.train.take(torch.zeros(32, dtype=torch.int64))
    one, two = (x for x, _ in batches(twice, data, batch_size=16, augment="full"))
    assert not torch.isclose(one, two).all()


def test_global_random_state_is_neither_read_nor_changed(data: Data) -> None:
    first = _all(data, augment="full", shuffle=True)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    assert _equal(first, _all(data, augment="full", shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_an_epoch_in_equal_steps(data: Data, world: int) -> None:
    parts = [_all(data, shuffle=True, rank=rank, world=world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    for step in zip(*parts, strict=True):
        assert len({len(labels) for _, labels in step}) == 1
    whole = {x.numpy().tobytes() for b, _ in _all(data) for x in b}
    split = [x.numpy().tobytes() for part in parts for b, _ in part for x in b]
    assert set(split) == whole
    assert len(split) - len(whole) < world


def test_ranks_augment_differently(data: Data) -> None:
    same = data.train.take(torch.zeros(8, dtype=torch.int64))
    one, two = (
        next(batches(same, data, batch_size=4, augment="full", rank=rank, world=2))[0]
        for rank in range(2)
    )
    assert not torch.isclose(one, two).all()


def test_a_short_last_batch_is_kept_or_dropped(data: Data) -> None:
    assert [len(y) for _, y in _all(data)] == [16] * 6 + [7]
    assert [len(y) for _, y in _all(data, drop_last=True)] == [16] * 6
    assert len(_all(data, drop_last=True, batch_size=103)) == 1


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_memory_format_and_dtype(tmp_path: Path, layout: torch.memory_format) -> None:
    data = load_data(str(make_folder(tmp_path, {"a": 5, "b": 5})))
    images, labels = _all(data, channels_last=layout is torch.channels_last)[0]
    assert images.is_contiguous(memory_format=layout)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")  # on one core
@pytest.mark.parametrize("workers", [0, 2])
def test_files_give_the_batches_that_memory_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    make_folder(tmp_path, {"a": 20, "b": 20}, size=(12, 12))
    held = load_data(str(tmp_path))
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    streamed = load_data(str(tmp_path))
    options = {"batch_size": 8, "shuffle": True, "augment": "full", "seed": 5, "start": 1}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert _equal(_all(held, **options), _all(streamed, workers=workers, **options))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world": 2}, "rank must be from 0 to 1, but got rank=2"),
        ({"seed": -1}, "none may be negative, but got seed=-1"),
        ({"augment": "mixup"}, "unknown augment 'mixup'"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    data: Data, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        batches(data.train, data, **{"batch_size": 16, **options})
