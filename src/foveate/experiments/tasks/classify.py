"""A class for each image."""

from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.experiments.data.images import to_tensor
from foveate.experiments.data.load import Data, ImageSet, load_data
from foveate.experiments.tasks.base import Evaluation, Metric, Task, own_share
from foveate.experiments.training.freezing import find_classifier
from foveate.experiments.training.processes import total
from foveate.hosts.by_name import build_host

if TYPE_CHECKING:
    from foveate.experiments.config import DataConfig, Recipe, RunConfig


class Classify(Task):
    """Cross-entropy, and the share of images whose largest output is the label's."""

    name = "classify"
    metric = Metric("accuracy", "accuracy")
    train_metric = "accuracy"
    calibration_images = 256
    judged = "accuracy"
    other_images = (
        "the interval covers other test images of the same kind as well, and other seeds; it is"
        " cautious where images vary more than seeds."
    )

    def load(self, config: "DataConfig") -> Data:
        return load_data(**{key: value for key, value in config if key != "void"})

    def build(
        self,
        config: "RunConfig",
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        pretrained: str | None,
    ) -> nn.Module:
        return build_host(
            config.host,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            pretrained=pretrained,
        )

    def host(self, network: nn.Module) -> nn.Module:
        return network

    def fresh(
        self, network: nn.Module, num_classes: int, added: list[nn.Parameter]
    ) -> list[nn.Parameter]:
        return list(find_classifier(network, num_classes, besides=added).parameters())

    def loss(
        self, model: nn.Module, images: Tensor, known: Any, recipe: "Recipe"
    ) -> tuple[Tensor, Tensor]:
        logits = model(images)
        loss = F.cross_entropy(logits, known, label_smoothing=recipe.label_smoothing)
        return loss, (logits.detach().argmax(1) == known).sum()

    def evaluate(
        self, module: nn.Module, images: ImageSet, data: Data, recipe: "Recipe", fabric: Fabric
    ) -> Evaluation:
        own = own_share(images, fabric)
        result = torch.zeros(2, len(images), device=fabric.device)
        if len(own):
            parts = []
            for _, labels, output in self.outputs(module, images.take(own), data, recipe, fabric):
                logits = output.float()
                losses = F.cross_entropy(logits, labels, reduction="none")
                parts.append(torch.stack([losses, logits.argmax(1) == labels]))
            result[:, own.to(fabric.device)] = torch.cat(parts, dim=1)
        losses, hits = total(fabric, result).cpu()
        correct = hits > 0
        return Evaluation(
            loss=float(losses.double().mean()),
            score=100 * int(correct.sum()) / len(correct),
            correct=correct.tolist(),
        )

    def fit(self, image: Image.Image, size: int) -> Tensor:
        return to_tensor(image, size)
