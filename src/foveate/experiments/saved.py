"""Trained networks as one file: weights, and what gives the network again and feeds it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor, nn

from foveate.errors import InvalidValueError, UserError, require, to_path

require("huggingface_hub", extra="train")

from huggingface_hub import ModelHubMixin, hf_hub_download  # noqa: E402

from foveate.experiments.build import build_bare, put_attention  # noqa: E402
from foveate.experiments.config import RunConfig  # noqa: E402
from foveate.experiments.configfile import parse  # noqa: E402
from foveate.experiments.training import checkpoint  # noqa: E402
from foveate.hosts.by_name import names_code  # noqa: E402

MODEL = "model.safetensors"
"""Name of the file in the folder of a run, and in a repository."""
CARD = "config.json"

# Options of hosts that read files or fetch them.
_REACHING = (
    *("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("weights", "weights_backbone"),
)


_REPEAT = re.compile(r"\)?(?:[*+{]|(?<!\()\?)")
_REPEATS = 4


class Fed(BaseModel):
    """What a network is fed with, as files hold it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    classes: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    mean: Annotated[tuple[FiniteFloat, ...], Field(min_length=1, strict=False)]
    std: Annotated[tuple[Annotated[FiniteFloat, Field(gt=0)], ...], Field(strict=False)]
    image_size: Annotated[int, Field(ge=1, le=1 << 14)]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("the names of the classes must differ")
        if len(self.mean) != len(self.std):
            raise ValueError(f"there are {len(self.mean)} means and {len(self.std)} deviations")
        return self


class About(Fed):
    """What gives a network again, and feeds it."""

    config: dict[str, Any]
    in_channels: int

    @model_validator(mode="after")
    def _one_mean_a_channel(self) -> Self:
        if len(self.mean) != self.in_channels:
            raise ValueError(f"there are {len(self.mean)} means for {self.in_channels} channels")
        return self


class Trained(ModelHubMixin, nn.Module, library_name="foveate", tags=["attention"]):
    """A trained network, and what it is fed with.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are those of huggingface_hub.

    Args:
        network: Takes normalised images ``(B, C, H, W)``.
        config: Of the run: host, attention, recipe.
        classes: Names of the classes, in the order of the outputs.
        mean: Of the pixels in [0, 1], for each channel.
        std: Likewise.
        image_size: Side of the images, in pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        config: RunConfig,
        classes: tuple[str, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
    ) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.classes, self.mean, self.std, self.image_size = classes, mean, std, image_size

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def about(self) -> dict[str, Any]:
        """Everything but the weights, as JSON holds it; not where files lie on this machine."""
        config = self.config.model_dump(mode="json", exclude={"teacher": True, "data": {"root"}})
        config["recipe"]["distill"] = None  # which needs a teacher
        if self.config.pretrained not in (None, "DEFAULT"):
            config["pretrained"] = Path(str(self.config.pretrained)).name
        config["data"]["name"] = Path(self.config.data.name).name
        return {
            "config": config,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "in_channels": len(self.mean),
            "image_size": self.image_size,
        }

    def save(self, path: Path) -> None:
        """Write the network as one file that :func:`load` reads."""
        checkpoint.save(path, self.network.state_dict(), self.about())

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / MODEL)
        checkpoint.write_text(save_directory / CARD, json.dumps(self.about(), indent=2))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> "Trained":
        trust_code = bool(options.get("trust_code"))  # beside it the card, which the file has too
        if Path(model_id).is_dir():
            return load(model_id, trust_code=trust_code)
        path = hf_hub_download(
            model_id,
            MODEL,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return load(path, trust_code=trust_code)


def load(path: str | Path, *, trust_code: bool = False) -> Trained:
    """The network that a run has written, in evaluation mode.

    Nothing in a file is executed: weights are safetensors, and the rest names hosts and mechanisms
    that are installed here.

    Args:
        path: The folder of a run, or its ``model.safetensors``.
        trust_code: Let the file also name a host as ``module:function``, which is imported and
            called. Only for files of your own.

    Raises:
        ValueError: If the file is missing, none of ours, of another architecture than it says, or
            names code.
    """
    path = to_path(path)
    at = path / MODEL if path.is_dir() else path
    if not at.is_file():
        raise InvalidValueError(f"there is no '{at}'; a finished run has written one")
    tensors, content = checkpoint.load(at)
    try:
        about = parse(About, content)
        config = parse(RunConfig, about.config)
        trained = _empty(config, about, trust_code)
    except UserError as error:
        raise InvalidValueError(f"{at} was not written by a run: {error}") from error
    except Exception as error:  # of hosts that are built with options that a stranger chose
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidValueError(f"{at} names a network that cannot be built: {reason}") from error
    _fill(trained.network, tensors, at)
    return trained.eval()


def _empty(config: RunConfig, about: About, trust_code: bool) -> Trained:
    if not trust_code:
        _check_host(config.host)
        _check_pattern(config.mechanism.at if config.mechanism else None)
    network = build_bare(config, len(about.classes), about.in_channels, about.image_size)
    put_attention(network, config, about.in_channels, about.image_size)
    return Trained(network, config, about.classes, about.mean, about.std, about.image_size)


def _check_host(host: str) -> None:
    """Refuse hosts that are code or reach for files, which a stranger may have named."""
    name, _, query = host.partition("?")
    if names_code(host):
        raise InvalidValueError(
            f"the file names code of its own as its host, '{name}', which is run only if you trust "
            "it (trust_code=True, --trust-code)"
        )
    for option, _ in parse_qsl(query, keep_blank_values=True):
        if option in _REACHING:
            raise InvalidValueError(
                f"the file gives its host the option '{option}', which reads other files; it is "
                "used only if you trust it (trust_code=True, --trust-code)"
            )


def _check_pattern(at: str | None) -> None:
    """Refuse regular expressions that could take for ever: those that repeat groups, or much."""
    repeats = _REPEAT.findall(at or "")
    if len(repeats) > _REPEATS or any(repeat.startswith(")") for repeat in repeats):
        raise InvalidValueError(
            f"the file places attention by an expression that repeats a group, or more than "
            f"{_REPEATS} times, '{str(at)[:80]}', which can take for ever; it is used only if you "
            "trust it (trust_code=True, --trust-code)"
        )


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network its weights, all of them or none."""
    own = network.state_dict()
    for name in [*own, *tensors]:
        if name not in tensors:
            raise InvalidValueError(f"{path} is of another architecture: it lacks '{name}'")
        if name not in own:
            raise InvalidValueError(f"{path} is of another architecture: it has '{name}'")
        if own[name].shape != tensors[name].shape:
            raise InvalidValueError(
                f"{path} is of another architecture: '{name}' is {tuple(tensors[name].shape)} "
                f"there and {tuple(own[name].shape)} here"
            )
    network.load_state_dict(tensors)
