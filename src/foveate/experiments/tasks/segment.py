"""A class for each pixel.

The mean intersection over union is that of the whole split: for each class the pixels that are its
own both in truth and prediction, over those that are in either, summed over all images before they
are divided; then the mean over the classes that occur in truth or prediction. Void counts nowhere.
"""

from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import models
from foveate.errors import require
from foveate.experiments.data.load import Data, ImageSet
from foveate.experiments.data.load_scenes import load_masks
from foveate.experiments.data.scenes import VOID, stretched
from foveate.experiments.tasks.base import (
    Evaluation,
    Metric,
    SceneTask,
    given,
    head_arguments,
    own_share,
)
from foveate.experiments.training.processes import total

if TYPE_CHECKING:
    from foveate.experiments.config import DataConfig, Recipe, RunConfig


class Segment(SceneTask):
    """The loss of :func:`foveate.models.segmentation_loss`, and mean intersection over union."""

    name = "segment"
    metric = Metric("miou", "mIoU")
    train_metric = "pixel_accuracy"
    judged = "pixel accuracy"
    other_images = (
        "the interval covers other test images of the same kind as well, and other seeds; it is"
        " cautious where images vary more than seeds. mIoU is no mean over images: each image"
        " counts by what the mIoU of the split would be without it (jackknife pseudo-values,"
        " Quenouille 1956)."
    )

    def load(self, config: "DataConfig") -> Data:
        return load_masks(**given(config))

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
        return models.segmenter(str(config.head), config.host, **arguments)

    def loss(
        self, model: nn.Module, images: Tensor, known: Any, recipe: "Recipe"
    ) -> tuple[Tensor, Tensor]:
        found = model(images)
        loss = models.segmentation_loss(found, known, void=VOID)
        right = found["out"].detach().argmax(1) == known  # (B, S, S)
        counted = (known != VOID).sum((1, 2)).clamp_min(1)
        return loss, (right.sum((1, 2)) / counted).sum()

    def evaluate(
        self, module: nn.Module, images: ImageSet, data: Data, recipe: "Recipe", fabric: Fabric
    ) -> Evaluation:
        own, classes = own_share(images, fabric), len(data.classes)
        losses = torch.zeros(len(images), dtype=torch.float64, device=fabric.device)
        counts = torch.zeros(len(images), classes, classes, dtype=torch.int64, device=fabric.device)
        if len(own):
            parts = [
                (_losses(logits.float(), known), confusions(logits.argmax(1), known, classes))
                for _, known, logits in self.outputs(module, images.take(own), data, recipe, fabric)
            ]
            losses[own.to(fabric.device)] = torch.cat([loss for loss, _ in parts]).double()
            counts[own.to(fabric.device)] = torch.cat([count for _, count in parts])
        losses, counts = total(fabric, losses).cpu(), total(fabric, counts).cpu()
        ious = intersection_over_union(counts.sum(0))
        right = counts.diagonal(dim1=1, dim2=2).sum()
        return Evaluation(
            loss=float(losses.mean()),
            score=100 * float(ious.nanmean()),
            values=pseudo_values(counts),
            scores={"pixel accuracy": 100 * int(right) / max(1, int(counts.sum()))},
            per_class={
                name: None if iou.isnan() else 100 * float(iou)
                for name, iou in zip(data.classes, ious, strict=True)
            },
        )

    def fit(self, image: Image.Image, size: int) -> Tensor:
        return stretched(image, size)


def _losses(logits: Tensor, known: Tensor) -> Tensor:
    """The mean cross-entropy of the pixels of each image ``(B,)``, void left out."""
    pixels = F.cross_entropy(logits, known, ignore_index=VOID, reduction="none")  # (B, S, S)
    return pixels.sum((1, 2)) / (known != VOID).sum((1, 2)).clamp_min(1)


def confusions(predicted: Tensor, known: Tensor, classes: int) -> Tensor:
    """How often each class was taken for each other one, in each image.

    Args:
        predicted: ``(B, H, W)`` of classes.
        known: The same, with :data:`VOID`.
        classes: How many there are.

    Returns:
        ``(B, classes, classes)``: the true class, then the predicted one.
    """
    count = require("torchmetrics.functional", extra="train").classification
    return torch.stack(
        [
            count.multiclass_confusion_matrix(
                mine, true, num_classes=classes, ignore_index=VOID, validate_args=False
            )
            for mine, true in zip(predicted, known, strict=True)
        ]
    )


def intersection_over_union(counts: Tensor) -> Tensor:
    """Of each class; NaN where it occurs neither in truth nor in prediction.

    Args:
        counts: ``(..., classes, classes)``, the true class, then the predicted one.

    Returns:
        ``(..., classes)`` of float64.
    """
    both = counts.diagonal(dim1=-2, dim2=-1).double()
    either = counts.sum(-1) + counts.sum(-2) - both
    return both / either  # 0 / 0 is NaN


def pseudo_values(counts: Tensor) -> list[float] | None:
    """One number an image, whose mean is the mean intersection over union of all.

    The jackknife: how much the metric of the split changes without the image, times the number of
    images, moved so that the mean of the numbers is the metric itself.

    Args:
        counts: ``(images, classes, classes)``.

    Returns:
        None for fewer than two images, or if one of them holds all there is.

    Source:
        Quenouille, Notes on bias in estimation, Biometrika 1956; as pseudo-values of readers and
        cases: Hillis, Statistics in Medicine 2007.
    """
    images = len(counts)
    whole = counts.sum(0)
    score = intersection_over_union(whole).nanmean()
    without = intersection_over_union(whole - counts).nanmean(-1)  # (images,)
    if images < 2 or bool(without.isnan().any()):
        return None
    values = images * score - (images - 1) * without
    return (values - values.mean() + score).tolist()
