"""What the input of a training step costs: uint8 in memory against the usual pipeline.

Three sources feed the same small CNN with batches of 64 images of 32 x 32, in turns, in one
process, once in each memory format of its weights and images:

- ``foveate``: ``batches(..., augment="full")``: uint8 images in memory, augmented as tensors;
- ``usual``: ``ImageFolder``, the same augmentation on Pillow images,
  ``DataLoader(num_workers=0)``;
- ``tensor``: float tensors without augmentation, the step with next to no input.

Usage: python benchmarks/input_pipeline.py FOLDER [--rounds 15] [--steps 40] [--threads 2]
FOLDER is a set of 32 x 32 images: ``train/<class>/*.jpg``.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from foveate.experiments.data.augment import AUGMENTS
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data, load_data
from foveate.experiments.training.environment import describe
from foveate.hosts.by_name import build_host

BATCH_SIZE = 64
LIMIT = 10_000
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Batches = Iterator[tuple[Tensor, Tensor]]


def usual(folder: Path, data: Data) -> DataLoader:
    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2, 0.1),
            transforms.RandomRotation(15),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    return DataLoader(ImageFolder(str(folder / "train"), change), BATCH_SIZE, shuffle=True)


def held(data: Data) -> list[tuple[Tensor, Tensor]]:
    return list(batches(data.train, data, batch_size=BATCH_SIZE, shuffle=True, drop_last=True))


def sources(folder: Path, data: Data) -> dict[str, Callable[[int], Batches]]:
    """Each source as a function of the round, which gives an iterator over an epoch."""
    loader, tensors = usual(folder, data), held(data)
    return {
        "foveate": lambda epoch: batches(
            data.train, data, batch_size=BATCH_SIZE, augment="full", shuffle=True, epoch=epoch
        ),
        "usual": lambda _: iter(loader),
        "tensor": lambda _: iter(tensors),
    }


def train(feed: Batches, step: Callable[[Tensor, Tensor], None], steps: int) -> tuple[float, float]:
    """Seconds of ``steps`` steps, and those of them spent waiting for the input."""
    begin, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        images, labels = next(feed)
        waited += time.perf_counter() - asked
        step(images, labels)
    return time.perf_counter() - begin, waited


def make_step(data: Data, layout: torch.memory_format) -> Callable[[Tensor, Tensor], None]:
    torch.manual_seed(0)
    sizes = {"num_classes": len(data.classes), "in_channels": 3, "image_size": data.image_size}
    host: nn.Module = build_host("small_cnn", **sizes).to(memory_format=layout)
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-3)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        images = images.contiguous(memory_format=layout)
        functional.cross_entropy(host(images), labels).backward()
        optimizer.step()

    return step


def spread(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(f"{median:.4g}"), "iqr": float(f"{high - low:.4g}")}


def alone(data: Data, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each augmentation without a step."""
    found = {}
    for name in AUGMENTS:
        feed = batches(data.train, data, batch_size=BATCH_SIZE, augment=name, shuffle=True)
        times = [train(feed, lambda *_: None, 1)[0] * 1e3 for _ in range(steps)]
        found[name] = spread(np.array(times[5:]))
    return found


def compare(
    feeds: dict[str, Callable[[int], Batches]],
    step: Callable[[Tensor, Tensor], None],
    rounds: int,
    steps: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """All sources in turns, another one first in each round."""
    for source in feeds.values():
        train(source(0), step, 10)  # caches and thread pools
    seconds: dict[str, list[float]] = {name: [] for name in feeds}
    waited: dict[str, list[float]] = {name: [] for name in feeds}
    for number in range(rounds):
        for name in np.roll(list(feeds), number):
            total, waiting = train(feeds[name](number + 1), step, steps)
            seconds[name].append(total)
            waited[name].append(waiting)
    totals = {name: np.array(values) for name, values in seconds.items()}
    return {
        "images_per_second": {n: spread(BATCH_SIZE * steps / t) for n, t in totals.items()},
        "input_share_of_step": {n: spread(np.array(waited[n]) / t) for n, t in totals.items()},
        "speed_against": {n: spread(totals[n] / totals["foveate"]) for n in ("usual", "tensor")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    data = load_data(str(args.folder), limit=LIMIT)
    feeds = sources(args.folder, data)
    result = {
        "question": "what the input costs a step of the small CNN, batch 64, 32 x 32, full",
        "settings": {"rounds": args.rounds, "steps": args.steps, "images": len(data.train)},
        "environment": {**describe(Fabric(accelerator="cpu")), "load_before": load_before},
        **{
            name: compare(feeds, make_step(data, layout), args.rounds, args.steps)
            for name, layout in LAYOUTS.items()
        },
        "milliseconds_alone": alone(data, 100),
    }
    text = json.dumps(result, indent=1)
    (args.out / "input_pipeline.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
