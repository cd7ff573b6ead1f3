"""How well a network does on images that it does not learn from."""

from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.experiments.config import Recipe
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data, ImageSet
from foveate.experiments.training.processes import total


@dataclass(frozen=True)
class Evaluation:
    """Loss and correctness of each image, in the order of the split."""

    losses: Tensor  # (N,) float64
    correct: Tensor  # (N,) bool

    @property
    def loss(self) -> float:
        """Mean loss."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """Share of correct images, in percent."""
        return 100 * int(self.correct.sum()) / len(self.correct)


def evaluate(
    module: nn.Module, images: ImageSet, data: Data, recipe: Recipe, fabric: Fabric
) -> Evaluation:
    """Evaluate in eval mode; each process takes its share and all get the whole."""
    own = torch.arange(fabric.global_rank, len(images), fabric.world_size)
    result = torch.zeros(2, len(images), device=fabric.device)
    if len(own):
        share = _losses_and_hits(module, images.take(own), data, recipe, fabric)
        result[:, own.to(fabric.device)] = share
    losses, hits = total(fabric, result).cpu()
    return Evaluation(losses.double(), hits > 0)


@torch.no_grad()
def _losses_and_hits(
    module: nn.Module, images: ImageSet, data: Data, recipe: Recipe, fabric: Fabric
) -> Tensor:
    module.eval()
    parts = []
    for inputs, labels in batches(
        images,
        data,
        batch_size=recipe.batch_size,
        workers=recipe.workers,
        device=fabric.device,
        channels_last=recipe.channels_last,
    ):
        with fabric.autocast():
            logits = module(fabric.strategy.precision.convert_input(inputs)).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        parts.append(torch.stack([losses, logits.argmax(1) == labels]))
    return torch.cat(parts, dim=1)  # (2, N)
