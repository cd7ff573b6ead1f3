"""Batches as a pure function of seed, epoch and step: any step can be computed on its own."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from foveate.errors import InvalidValueError, check_positive
from foveate.experiments.data.augment import Augment, preset
from foveate.experiments.data.augment import augment as change
from foveate.experiments.data.images import ImageSet, decode
from foveate.experiments.data.load import Data
from foveate.experiments.data.moving import augment_scenes
from foveate.experiments.data.scenes import Boxes, SceneSet, Target


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
) -> Iterator[tuple[Tensor, Any]]:
    """Normalised batches of one epoch, and their labels or what is in them.

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
        ``(B, C, S, S)`` float32, and ``(B,)`` int64; of scenes, ``(B, S, S)`` int64 or a list of
        dicts with ``boxes`` and ``labels``, as torchvision's detectors take them.

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

    def generate() -> Iterator[tuple[Tensor, Any]]:
        for step, (pixels, known) in enumerate(
            _pixels(images, steps, data.image_size, workers), start
        ):
            generator = _generator(seed, epoch, step, rank)
            moved, known = _changed(pixels.to(device), known, how, generator)
            normal = moved.sub_(mean).div_(std)
            yield normal.contiguous(memory_format=layout), _collated(known, device)

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


def _changed(
    pixels: Tensor, known: Tensor | Sequence[Target], how: Augment, generator: torch.Generator
) -> tuple[Tensor, Tensor | Sequence[Target]]:
    if isinstance(known, Tensor):  # labels, which no change of the image changes
        return change(pixels, how, generator), known
    return augment_scenes(pixels, known, how, generator)


def _collated(known: Tensor | Sequence[Target], device: torch.device | str) -> Any:
    if isinstance(known, Tensor):
        return known.to(device)
    masks = [target for target in known if isinstance(target, Tensor)]
    if masks:
        return torch.stack(masks).to(device, torch.int64)
    return [
        {name: part.to(device) for name, part in target._asdict().items()}
        for target in known
        if isinstance(target, Boxes)
    ]


def _pixels(
    images: ImageSet, steps: list[Tensor], size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor | Sequence[Target]]]:
    """The uint8 pixels ``(B, C, S, S)`` of each batch, and its labels or targets."""
    if isinstance(images, SceneSet) and images.images is None:
        yield from DataLoader(
            _Scenes(images, size),
            batch_sampler=[index.tolist() for index in steps],
            num_workers=workers,
            collate_fn=_as_they_are,
            generator=torch.Generator(),  # it would draw from the global one
        )
        return
    if images.images is not None:
        for index in steps:
            yield images.images.index_select(0, index), _known(images, index)
        return
    yield from DataLoader(
        _Files(images, size),
        batch_sampler=[index.tolist() for index in steps],
        num_workers=workers,
        generator=torch.Generator(),  # it would draw from the global one
    )


def _known(images: ImageSet, index: Tensor) -> Tensor | Sequence[Target]:
    if isinstance(images, SceneSet) and images.targets is not None:
        return [images.targets[i] for i in index.tolist()]
    return images.labels[index]


class _Files(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: ImageSet, size: int) -> None:
        self.paths, self.labels, self.size = images.paths, images.labels.tolist(), size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return decode(self.paths[index], self.size), self.labels[index]


class _Scenes(Dataset[tuple[Tensor, Target]]):
    def __init__(self, images: SceneSet, size: int) -> None:
        self.images, self.size = images, size

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.images.scene(index, self.size)


def _as_they_are(scenes: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    return torch.stack([image for image, _ in scenes]), [target for _, target in scenes]
