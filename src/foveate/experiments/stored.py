"""The network that a run has written, with all that feeds it."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from foveate.errors import InvalidValueError
from foveate.experiments.build import build_bare, put_attention
from foveate.experiments.config import RunConfig
from foveate.experiments.configfile import parse
from foveate.experiments.training import checkpoint

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """A trained network, and what it is fed with."""

    config: RunConfig
    module: nn.Module
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int


def read_network(path: Path) -> Stored:
    """The network in the folder of a finished run, or in its ``model.safetensors``.

    Raises:
        ValueError: If the file is missing or none of ours.
    """
    path = path.expanduser()
    path = path / MODEL if path.is_dir() else path
    if not path.is_file():
        raise InvalidValueError(f"there is no '{path}'; a finished run has written one")
    tensors, about = checkpoint.load(path)
    try:
        config = parse(RunConfig, about["config"])
        classes, mean, std = (tuple(about[name]) for name in ("classes", "mean", "std"))
        size = int(about["image_size"])
    except KeyError as error:
        raise InvalidValueError(f"{path} was not written by a run: it lacks {error}") from error
    module = build_bare(config, len(classes), len(mean), size)
    put_attention(module, config, len(mean), size)
    module.load_state_dict(tensors)
    return Stored(config, module, classes, mean, std, size)
