"""A network, data and runs that take a second, for tests of the loop around them."""

import functools
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from foveate.experiments.config import RunConfig
from foveate.experiments.configfile import parse
from foveate.experiments.data.load import Data, load_data
from foveate.experiments.reporting.results import RunResult
from foveate.experiments.run import run
from foveate.experiments.training.processes import launch
from foveate.experiments.training.progress import Watcher

RECIPE = {"epochs": 2, "batch_size": 16, "tracker": "none", "accelerator": "cpu"}


def net(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, num_classes),
    )


@functools.cache
def digits() -> Data:
    return load_data("digits", limit=100)


def config(
    mechanism: Any = "se", seed: int = 0, host: str = "tiny:net", **recipe: Any
) -> RunConfig:
    values = {
        "data": {"name": "digits", "limit": 100},
        "host": host,
        "mechanism": mechanism,
        "seed": seed,
        "trust_code": True,  # that of this module, which a teacher may name
        "recipe": {**RECIPE, **recipe},
    }
    return parse(RunConfig, values)


def train(chosen: RunConfig, folder: Path, **options: Any) -> RunResult:
    return run(chosen, digits(), folder, launch(chosen.recipe), Watcher(), **options)


def plain(num_classes: int, in_channels: int) -> nn.Module:
    """Without anything that depends on the other images of a batch, or on chance."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def deep(num_classes: int, in_channels: int) -> nn.Module:
    """Features at every stride from 2 to 32, as heads want them."""
    widths = (in_channels, 8, 8, 8, 16, 16)
    units = [
        nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in pairwise(widths)
    ]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes)]
    return nn.Sequential(*units, *pool)
