"""Boxes around things, with a class each.

The mean average precision is COCO's: over classes, and over the thresholds of intersection over
union from 0.50 to 0.95 in steps of 0.05.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from foveate import models
from foveate.errors import require
from foveate.experiments.data.load import Data, ImageSet
from foveate.experiments.data.load_scenes import load_boxes
from foveate.experiments.data.scenes import letterboxed
from foveate.experiments.tasks.base import (
    Evaluation,
    Metric,
    SceneTask,
    given,
    head_arguments,
    own_share,
)
from foveate.experiments.training.processes import gathered, total
from foveate.models.backbones import Backbone
from foveate.modes import in_mode

if TYPE_CHECKING:
    from foveate.experiments.config import DataConfig, Recipe, RunConfig

Things = dict[str, Tensor]
"""``boxes``, ``labels`` and, where they are found, ``scores`` of one image."""


class Detect(SceneTask):
    """The sum of the detector's own losses, and COCO's mean average precision."""

    name = "detect"
    metric = Metric("map", "mAP")
    train_metric = None
    judged = ""
    other_images = (
        "there is no interval: mAP ranks the boxes of all images together, so no image has a share"
        " of it."
    )

    def load(self, config: "DataConfig") -> Data:
        return load_boxes(**given(config))

    def build(
        self,
        config: "RunConfig",
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        pretrained: str | None,
    ) -> nn.Module:
        arguments = head_arguments(config, num_classes, image_size, pretrained)
        return models.detector(str(config.head), config.host, **arguments)

    def loss(
        self, model: nn.Module, images: Tensor, known: Any, recipe: "Recipe"
    ) -> tuple[Tensor, Tensor]:
        loss = sum_of(model(list(images), from_one(known)))
        return loss, torch.zeros_like(loss)

    def evaluate(
        self, module: nn.Module, images: ImageSet, data: Data, recipe: "Recipe", fabric: Fabric
    ) -> Evaluation:
        own = own_share(images, fabric)
        losses = torch.zeros((), dtype=torch.float64, device=fabric.device)
        pairs: list[tuple[Things, Things]] = []
        if len(own):
            mine = images.take(own)
            for inputs, known, found in self.outputs(module, mine, data, recipe, fabric):
                losses += len(known) * _loss(module, inputs, known, fabric)
                pairs += zip(from_zero(found), map(_on_cpu, known), strict=True)
        everyone = [pair for share in gathered(fabric, pairs) for pair in share]
        scores, per_class = average_precision(everyone, data.classes)
        return Evaluation(
            loss=float(total(fabric, losses)) / len(images),
            score=scores.pop("AP"),
            scores=scores,
            per_class=per_class,
        )

    def fit(self, image: Image.Image, size: int) -> Tensor:
        return letterboxed(image, size)

    def inputs(self, images: Tensor) -> tuple[Any, ...]:
        return (list(images),)

    def training_inputs(self, images: Tensor) -> tuple[Any, ...]:
        side = float(images.shape[-1])
        middle = images.new_tensor([[side / 4, side / 4, 3 * side / 4, 3 * side / 4]])
        label = torch.ones(1, dtype=torch.int64, device=images.device)
        return list(images), [{"boxes": middle, "labels": label} for _ in images]


def sum_of(losses: dict[str, Tensor]) -> Tensor:
    """What a detector in training mode is to make small."""
    return torch.stack(list(losses.values())).sum()


@torch.no_grad()
def _loss(module: nn.Module, inputs: Tensor, known: Sequence[Things], fabric: Fabric) -> float:
    """The loss of a batch as in training, but with the statistics and weights of evaluation."""
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    with _losses_wanted(module), torch.random.fork_rng(devices), fabric.autocast():
        torch.manual_seed(0)  # detectors draw the boxes that they count
        converted = fabric.strategy.precision.convert_input(inputs)
        return float(sum_of(module(list(converted), from_one(known))))


@contextmanager
def _losses_wanted(module: nn.Module) -> Iterator[None]:
    """Training mode for all but the layers that it changes, whatever kinds the host has."""
    with in_mode(module, training=True):
        for part in module.modules():
            if isinstance(part, Backbone | _BatchNorm | _DropoutNd):
                for layer in part.modules():
                    layer.training = False
        yield


def from_one(known: Sequence[Things]) -> list[Things]:
    """What is there, with labels as detectors count them: 0 is their background."""
    return [{**things, "labels": things["labels"] + 1} for things in known]


def from_zero(found: Sequence[Things]) -> list[Things]:
    """What a detector found, on the CPU, with labels as the data counts them."""
    return [_on_cpu({**things, "labels": things["labels"] - 1}) for things in found]


def _on_cpu(things: Things) -> Things:
    return {name: part.detach().cpu() for name, part in things.items()}


def average_precision(
    pairs: Sequence[tuple[Things, Things]], classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, float | None]]:
    """COCO's average precisions in percent, and that of each class.

    Args:
        pairs: What was found in an image, and what is there.
        classes: Names of the labels.

    Returns:
        ``AP``, ``AP50`` and ``AP75``; and AP by class, None for one that no image has.
    """
    metric = require("torchmetrics.detection", extra="train").MeanAveragePrecision(
        class_metrics=True,
        # Those of COCO: the defaults are the same in float32, which moves boxes across a threshold.
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    metric.warn_on_many_detections = False
    metric.update(
        [{**found, "boxes": found["boxes"].float()} for found, _ in pairs],
        [true for _, true in pairs],
    )
    result = metric.compute()
    scores = {name: _percent(result[key]) or 0.0 for name, key in _SCORES.items()}
    known = result["classes"].reshape(-1).tolist()
    by_label = dict(zip(known, result["map_per_class"].reshape(-1).tolist(), strict=True))
    return scores, {name: _percent(by_label.get(i, -1.0)) for i, name in enumerate(classes)}


_SCORES = {"AP": "map", "AP50": "map_50", "AP75": "map_75"}


def _percent(share: Any) -> float | None:
    """COCO writes -1 for what is not there."""
    return None if float(share) < 0 else 100 * float(share)
