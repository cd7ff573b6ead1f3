"""Batches as a pure function of seed, epoch and step: any step can be computed on its own."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foveate.errors import InvalidValueError, check_positive
from foveate.experiments.data.augment import augment as change
from foveate.experiments.data.augment import preset
from foveate.experiments.data.images import ImageSet, decode
from foveate.experiments.data.load import Data


def batches(
    images: ImageSet,
    data: Data,
    *,
    batch_size: int,
    augment: str = "none",
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    drop_last: bool = False,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised batches of one epoch and their labels.

    The order depends on ``(seed, epoch)`` and the augmentation of a batch on
    ``(seed, epoch, step, rank)``; no global random state is read or changed.

    Args:
        images: One split of ``data``.
        data: Gives the mean and standard deviation, and says whether flips keep the class.
        batch_size: Images in a batch, on each rank.
        augment: One of :data:`~foveate.experiments.data.augment.AUGMENTS`.
        seed: Seed of order and augmentation.
        epoch: Which epoch it is.
        shuffle: Draw a random order.
        start: Steps to leave out, as they were done before.
        rank: Which of the processes this is.
        world: How many there are. All get equally many batches: where the images do not divide
            evenly, the first ones are repeated; so measure accuracy with ``world=1``.
        workers: Processes that decode images which are not in memory.
        drop_last: Leave out a last batch that is not full.
        device: Where the batches go and are augmented.
        channels_last: Memory format of the batches.

    Yields:
        ``(B, C, S, S)`` float32, and ``(B,)`` int64.

    Raises:
        ValueError: If an argument is out of range, or ``augment`` is unknown.
    """
    check_positive(batch_size=batch_size, world=world)
    if not 0 <= rank < world:
        raise InvalidValueError(f"rank must be from 0 to {world - 1}, but got {rank=}")
    if min(seed, epoch, start, workers) < 0:
        raise InvalidValueError(
            f"none may be negative, but got {seed=}, {epoch=}, {start=}, {workers=}"
        )
    how = preset(augment, mirrors=data.mirrors)
    order = _order(len(images), seed, epoch, shuffle)
    steps = _steps(order, batch_size, rank, world, drop_last)[start:]
    mean, std = (
        torch.tensor(values, device=device).view(-1, 1, 1) for values in (data.mean, data.std)
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def generate() -> Iterator[tuple[Tensor, Tensor]]:
        for step, (pixels, labels) in enumerate(
            _pixels(images, steps, data.image_size, workers), start
        ):
            moved = change(pixels.to(device), how, _generator(seed, epoch, step, rank))
            normal = moved.sub_(mean).div_(std)
            yield normal.contiguous(memory_format=layout), labels.to(device)

    return generate()


def _generator(*key: int) -> torch.Generator:
    """A stream of random numbers of its own for each key."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _order(count: int, seed: int, epoch: int, shuffle: bool) -> Tensor:
    return (
        torch.randperm(count, generator=_generator(seed, epoch)) if shuffle else torch.arange(count)
    )


def _steps(order: Tensor, batch_size: int, rank: int, world: int, drop_last: bool) -> list[Tensor]:
    """The indices of each batch of one rank."""
    missing = -len(order) % world
    mine = torch.cat((order, order.repeat(world)[:missing]))[rank::world]
    steps = list(mine.split(batch_size))
    return steps[:-1] if drop_last and len(steps[-1]) < batch_size else steps


def _pixels(
    images: ImageSet, steps: list[Tensor], size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The uint8 pixels ``(B, C, S, S)`` and labels of each batch."""
    if images.images is not None:
        for index in steps:
            yield images.images.index_select(0, index), images.labels[index]
        return
    yield from DataLoader(
        _Files(images, size),
        batch_sampler=[index.tolist() for index in steps],
        num_workers=workers,
        generator=torch.Generator(),  # it would draw from the global one
    )


class _Files(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: ImageSet, size: int) -> None:
        self.paths, self.labels, self.size = images.paths, images.labels.tolist(), size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return decode(self.paths[index], self.size), self.labels[index]
