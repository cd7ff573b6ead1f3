"""A network that is looked at: one that a run trained, or one by name, and how it is fed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from foveate import models
from foveate.errors import InvalidValueError, UserError, check_choice, check_positive, to_path
from foveate.experiments.configfile import parse
from foveate.experiments.data.images import ImageSet, decode, open_rgb
from foveate.experiments.data.load import Data, load_data
from foveate.experiments.saved import MODEL, Fed, load
from foveate.experiments.tasks import get_task
from foveate.explain import Input
from foveate.export.to_onnx import on_session, read_about
from foveate.hosts.by_name import build_host
from foveate.weights import load_weights

Batches = list[tuple[Tensor, Tensor]]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, and what it is fed with."""

    name: str
    module: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    task: str = "classify"

    @property
    def feed(self) -> Input:
        """The normalisation and the names of the classes."""
        return Input(self.mean, self.std, self.classes)

    def about(self) -> dict[str, Any]:
        """What a file of another format keeps beside the network."""
        names = ("name", "classes", "mean", "std", "image_size", "task")
        return {name: getattr(self, name) for name in names}

    def image(self, path: Path) -> Tensor:
        """The picture in a file as ``(1, C, S, S)``, normalised.

        Raises:
            ValueError: If it cannot be read.
        """
        if not path.is_file():
            raise InvalidValueError(f"there is no image '{path}'")
        try:
            picture = open_rgb(path, self.image_size)
            pixels = get_task(self.task).fit(picture, self.image_size)
        except Exception as error:  # whatever a decoder raises on broken bytes
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InvalidValueError(f"'{path}' cannot be read as an image: {reason}") from error
        return self.normalised(pixels.unsqueeze(0))

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 1 or 3, S, S)`` of uint8 as the network expects them."""
        values = pixels.float() / 255
        if len(self.mean) == 1 and values.shape[1] == 3:
            values = (values * _per_channel(_LUMINANCE)).sum(1, keepdim=True)
        values = values.expand(-1, len(self.mean), -1, -1)
        return (values - _per_channel(self.mean)) / _per_channel(self.std)

    def label(self, path: Path) -> int | None:
        """The class that the folder of an image names; None if it names none."""
        name = path.absolute().parent.name
        return self.classes.index(name) if name in self.classes else None

    def batches(
        self,
        data: Data,
        *,
        split: str = "test",
        limit: int | None = None,
        chosen: Sequence[int] | None = None,
        batch_size: int = 32,
    ) -> Batches:
        """Batches of a split, with the labels that the network gives.

        Args:
            data: Images of any normalisation.
            split: ``train``, ``val`` or ``test``.
            limit: Most images.
            chosen: Which images, in this order; by default all in one order of chance.
            batch_size: Images in a batch.

        Raises:
            ValueError: If the data has a class that the network lacks.
        """
        own = self._labels(data)
        images: ImageSet = getattr(data, split)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:limit]
        if chosen is not None:
            order = torch.tensor(chosen)
        return [
            (self.normalised(_pixels(some, self.image_size)), own[some.labels])
            for some in map(images.take, order.split(batch_size))
        ]

    def load_data(self, name: str, **how: Any) -> Data:
        """A data set at the size of this network's images; the arguments of ``load_data``."""
        return load_data(name, image_size=self.image_size, **how)

    def _labels(self, data: Data) -> Tensor:
        """For each class of the data its place among those of the network."""
        strangers = [name for name in data.classes if name not in self.classes]
        if strangers:
            raise InvalidValueError(
                f"{data.name} has the class '{strangers[0]}', which {self.name} lacks"
            )
        return torch.tensor([self.classes.index(name) for name in data.classes])


def open_subject(
    model: str,
    *,
    weights: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Path | None = None,
    trust_code: bool = False,
) -> Subject:
    """Open the network that a person names.

    Args:
        model: The folder of a run, its ``model.safetensors``, a named model such as
            ``cbam_resnet50``, or a host as for :func:`~foveate.hosts.build_host`.
        weights: For networks by name: ``"DEFAULT"`` for the publisher's, or a file.
        image_size: Side of the images; by default that of the run, and 224.
        mean: Of the pixels in [0, 1], for each channel; by default that of the run, and ImageNet's.
        std: Likewise.
        classes: A file with a name on each line, for networks by name; by default the 1,000 classes
            of ImageNet.
        trust_code: As for :func:`~foveate.load`.

    Raises:
        ValueError: If anything is unknown or unreadable.
    """
    if image_size is not None:
        check_positive(image_size=image_size)
    if is_run(model):
        at = to_path(model)
        for option, value in {"weights": weights, "classes": classes}.items():
            if value is not None:
                raise InvalidValueError(f"{option} are those of the run, but got {option}={value}")
        subject = trained(at / MODEL if at.is_dir() else at, trust_code=trust_code)
    else:
        subject = _by_name(model, weights, 224 if image_size is None else image_size, classes)
    opened = Subject(
        subject.name,
        subject.module.eval(),
        subject.classes,
        _stretched(mean, subject.mean),
        _stretched(std, subject.std),
        subject.image_size if image_size is None else image_size,
        subject.task,
    )
    _check_runs(opened)
    return opened


def _check_runs(subject: Subject) -> None:
    """Refuse a normalisation that is none, and images that are too small for the network."""
    _ = subject.feed  # which checks itself
    channels, size = len(subject.mean), subject.image_size
    try:
        with torch.no_grad():
            subject.module(*get_task(subject.task).inputs(torch.zeros(2, channels, size, size)))
    except Exception as error:  # hosts check in many ways
        reason = str(error).partition("\n")[0]
        raise InvalidValueError(
            f"{subject.name} does not take images of {size} x {size} pixels: {reason}"
        ) from error


def is_run(model: str) -> bool:
    """Whether a person names what a run has written, not a network by its name."""
    at = to_path(model)
    return at.is_dir() or at.suffix == ".safetensors"


def trained(path: Path, *, trust_code: bool = False) -> Subject:
    """The network that a run has written; the errors of :func:`~foveate.load`."""
    found = load(path, trust_code=trust_code)
    return Subject(
        path.absolute().parent.name,
        found.network,
        found.classes,
        found.mean,
        found.std,
        found.image_size,
        found.config.task,
    )


def exported(path: Path) -> Subject:
    """The network that ``foveate export`` has written as ONNX; it can be run, and only that.

    Raises:
        ValueError: If the file is missing, not whole, or from elsewhere.
    """
    if not path.is_file():
        raise InvalidValueError(f"there is no '{path}'")
    about = read_about(path)
    if about is None:
        raise InvalidValueError(
            f"{path} names no classes: only files that 'foveate export' has written can be used"
        )
    try:
        fed = parse(Fed, about)
        task = check_choice("task", str(about.get("task")), ("classify", "segment"))
    except UserError as error:
        raise InvalidValueError(f"{path} was not written by 'foveate export': {error}") from error
    return Subject(
        path.stem, _Elsewhere(path), fed.classes, fed.mean, fed.std, fed.image_size, task
    )


class _Elsewhere(nn.Module):
    """Runs in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.run = on_session(path)

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


def _by_name(name: str, weights: str | None, size: int, names: Path | None) -> Subject:
    classes = _imagenet() if names is None else _lines(names)
    if name in models.list_models():
        default = weights == "DEFAULT"
        module = models.create(
            name, num_classes=len(classes), image_size=size, pretrained_host=default
        )
        if weights is not None and not default:
            load_weights(module, weights)
    else:
        module = build_host(
            name, num_classes=len(classes), in_channels=3, image_size=size, pretrained=weights
        )
    told = getattr(module, "pretrained_cfg", {})
    mean, std = tuple(told.get("mean", _MEAN)), tuple(told.get("std", _STD))
    return Subject(name, module, classes, mean, std, size)


def _imagenet() -> tuple[str, ...]:
    """ImageNet's, of which two names stand twice: the later ones with their number."""
    names: list[str] = torchvision_models.ResNet18_Weights.DEFAULT.meta["categories"]
    return tuple(f"{name} {i}" if name in names[:i] else name for i, name in enumerate(names))


def _lines(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"the names in '{path}' cannot be read: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if len(found) < 2:
        raise InvalidValueError(f"'{path}' has {len(found)} names, but at least 2 are needed")
    return found


def _stretched(given: Sequence[float] | None, usual: tuple[float, ...]) -> tuple[float, ...]:
    """One number for all channels, or one for each; the usual ones if none are given."""
    if given is None:
        return usual
    if len(given) not in (1, len(usual)):
        raise InvalidValueError(
            f"the network has {len(usual)} channels, but got {len(given)} numbers: {list(given)}"
        )
    return tuple(given) if len(given) == len(usual) else tuple(given) * len(usual)


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def _pixels(images: ImageSet, size: int) -> Tensor:
    if images.images is not None:
        return images.images
    return torch.stack([decode(path, size) for path in images.paths])
