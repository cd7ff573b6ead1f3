"""What an experiment has to know of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from foveate.errors import InvalidValueError
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data, ImageSet
from foveate.mechanisms.base import Attention
from foveate.models.backbones import Backbone

if TYPE_CHECKING:
    from foveate.experiments.config import DataConfig, Recipe, RunConfig


@dataclass(frozen=True)
class Metric:
    """The one number in percent by which networks are compared."""

    key: str
    """In files."""
    name: str
    """In words."""


@dataclass(frozen=True)
class Evaluation:
    """How a network does on one split; scores in percent."""

    loss: float
    score: float
    """The headline metric."""
    correct: list[bool] | None = None
    """Whether each image is right, where that is all there is to say of an image."""
    values: list[float] | None = None
    """One number an image whose mean is the score, as a share, where there is such a number."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Other metrics."""
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    """The headline metric of each class; None for a class that the split lacks."""


class Task(ABC):
    """One thing to learn from images."""

    name: ClassVar[str]
    metric: ClassVar[Metric]
    train_metric: ClassVar[str | None]
    """Of what the training steps count the hits, if of anything."""
    other_images: ClassVar[str]
    """What a report says of the interval over other images."""
    judged: ClassVar[str]
    """In words, what a diagnosis judges images by; empty where there is none."""
    calibration_images: ClassVar[int] = 32
    """How many images give norms without statistics their first ones."""

    @abstractmethod
    def load(self, config: "DataConfig") -> Data:
        """The data set.

        Raises:
            ValueError: If it cannot be found, split or read.
        """

    @abstractmethod
    def build(
        self,
        config: "RunConfig",
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        pretrained: str | None,
    ) -> nn.Module:
        """The network without attention.

        Raises:
            ValueError: If the host or its weights cannot be had.
        """

    @abstractmethod
    def host(self, network: nn.Module) -> nn.Module:
        """The part of a network that its name stands for, and pretrained weights are for."""

    @abstractmethod
    def fresh(
        self, network: nn.Module, num_classes: int, added: list[nn.Parameter]
    ) -> list[nn.Parameter]:
        """What learns beside the attention that was added while the host is frozen.

        Raises:
            ValueError: If it cannot be told from the host.
        """

    @abstractmethod
    def loss(
        self, model: nn.Module, images: Tensor, known: Any, recipe: "Recipe"
    ) -> tuple[Tensor, Tensor]:
        """Mean loss of a batch in training mode, and the sum of the hits of its images."""

    @abstractmethod
    def evaluate(
        self, module: nn.Module, images: ImageSet, data: Data, recipe: "Recipe", fabric: Fabric
    ) -> Evaluation:
        """Evaluate in eval mode; each process takes its share and all get the whole."""

    @abstractmethod
    def fit(self, image: Image.Image, size: int) -> Tensor:
        """A picture as uint8 ``(3, size, size)``, as the network is fed."""

    def inputs(self, images: Tensor) -> tuple[Any, ...]:
        """The arguments of a forward pass in evaluation mode, for a batch ``(B, C, S, S)``."""
        return (images,)

    def training_inputs(self, images: Tensor) -> tuple[Any, ...]:
        """Those in training mode, for measurements."""
        return (images,)

    @torch.no_grad()
    def outputs(
        self, module: nn.Module, images: ImageSet, data: Data, recipe: "Recipe", fabric: Fabric
    ) -> Iterator[tuple[Tensor, Any, Any]]:
        """Images, what is known of them, and what a network makes of them, batch by batch."""
        module.eval()
        for inputs, known in batches(
            images,
            data,
            batch_size=recipe.batch_size,
            workers=recipe.workers,
            device=fabric.device,
            channels_last=recipe.channels_last,
        ):
            converted = fabric.strategy.precision.convert_input(inputs)
            with fabric.autocast():
                output = module(*self.inputs(converted))
            yield inputs, known, output


class SceneTask(Task):
    """A task that looks into images: a head on the features of a host."""

    def host(self, network: nn.Module) -> nn.Module:
        return next(part.host for part in network.modules() if isinstance(part, Backbone))

    def fresh(
        self, network: nn.Module, num_classes: int, added: list[nn.Parameter]
    ) -> list[nn.Parameter]:
        host = self.host(network)
        attention = [module for module in host.modules() if isinstance(module, Attention)]
        learning = {id(p) for module in attention for p in module.parameters()}
        frozen = {id(p) for p in host.parameters()} - learning
        return [p for p in network.parameters() if id(p) not in frozen]


def own_share(images: ImageSet, fabric: Fabric) -> Tensor:
    """The indices of the images that this process evaluates."""
    return torch.arange(fabric.global_rank, len(images), fabric.world_size)


def head_arguments(
    config: "RunConfig", num_classes: int, image_size: int, pretrained: str | None
) -> dict[str, Any]:
    """What heads are built with, beside their kind and host.

    Raises:
        ValueError: If the recipe asks for what only a classification has.
    """
    if smoothing := config.recipe.label_smoothing:
        raise InvalidValueError(
            f"recipe.label_smoothing is for task=classify, but got {smoothing} "
            f"with task={config.task}"
        )
    return {
        "num_classes": num_classes,
        "image_size": image_size,
        "pretrained_host": pretrained == "DEFAULT" or pretrained or False,
    }


def given(config: "DataConfig") -> dict[str, Any]:
    """What is set of the data; a size that is not set is the task's own."""
    values = {key: value for key, value in config if key != "download"}
    return {key: value for key, value in values.items() if (key, value) != ("image_size", None)}
