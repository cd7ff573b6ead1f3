"""What a run or a comparison is, as values that are checked, saved and read back."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from foveate.errors import InvalidValueError, unknown

_Model = TypeVar("_Model", bound=BaseModel)
_Count = Annotated[int, Field(ge=1, strict=True)]
_Whole = Annotated[int, Field(ge=0, strict=True)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(gt=0, lt=1)]

CONTROLS = ("none", "static")


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Settings):
    """Images and how they are split; see :func:`foveate.experiments.data.load_data`."""

    name: str = "digits"
    root: Path | None = None
    image_size: _Count | None = None
    val_fraction: _Fraction = 0.1
    test_fraction: _Fraction = 0.2
    split_seed: _Whole = 0
    limit: _Count | None = None
    skip_bad: bool = False
    download: bool = False


class Recipe(_Settings):
    """How a network is trained; the same for every mechanism of a comparison."""

    epochs: _Count = 30
    batch_size: _Count = 64
    augment: str = "auto"
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: _Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: _NotNegative = 0.05
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_epochs: _NotNegative = 1.0
    plateau_patience: _Count = 3
    plateau_factor: _Fraction = 0.5
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: _Positive | None = None
    patience: _Count | None = None
    freeze_epochs: _Whole = 0
    checkpointing: bool = False
    channels_last: bool = False
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    deterministic: bool = False
    workers: _Whole = 0
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        for name in ("warmup_epochs", "freeze_epochs"):
            if getattr(self, name) > self.epochs:
                raise ValueError(f"{name} must not exceed epochs ({self.epochs})")
        return self


class MechanismConfig(_Settings):
    """A mechanism, where it goes and how; ``name`` tells two settings of one key apart."""

    key: str
    name: str = ""
    where: str | None = None
    at: str | None = None
    init: str | None = None
    options: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """What reports call it."""
        return self.name or self.key


def _mechanism(value: Any) -> Any:
    return {"key": value} if isinstance(value, str) else value


def _mechanisms(value: Any) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return [_mechanism(item) for item in value] if isinstance(value, list) else value


def _seeds(value: Any) -> Any:
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


_Mechanism = Annotated[MechanismConfig, BeforeValidator(_mechanism)]
_Mechanisms = Annotated[tuple[MechanismConfig, ...], BeforeValidator(_mechanisms)]
_Seeds = Annotated[tuple[_Whole, ...], BeforeValidator(_seeds), Field(min_length=1)]

# Chosen so that the host alone trains well; a value that is given replaces its own entry only.
_DIGITS = {"epochs": 8, "lr": 2e-3, "weight_decay": 0.01}
_CIFAR = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "batch_size": 128}
_RECIPES: dict[str, dict[str, Any]] = {"digits": _DIGITS, "cifar10": _CIFAR, "cifar100": _CIFAR}


class _Experiment(_Settings):
    data: DataConfig = DataConfig()
    host: str = "small_cnn"
    pretrained: str | None = None
    recipe: Recipe = Recipe()

    @model_validator(mode="before")
    @classmethod
    def _fill_recipe(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        data, recipe = values.get("data") or {}, values.get("recipe") or {}
        if isinstance(data, str):
            data = {"name": data}
        if isinstance(data, dict) and isinstance(recipe, dict):
            defaults = _RECIPES.get(str(data.get("name", "digits")), {})
            values = {**values, "data": data, "recipe": {**defaults, **recipe}}
        return values


class RunConfig(_Experiment):
    """One training: the same value always gives the same numbers on the same machine."""

    mechanism: Annotated[MechanismConfig | None, BeforeValidator(_mechanism)] = None
    seed: _Whole = 0

    @property
    def label(self) -> str:
        """The mechanism as reports call it, ``none`` without one."""
        return self.mechanism.label if self.mechanism else "none"

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers depend on."""
        settings = self.model_dump(mode="json")
        for name in ("root", "download", "skip_bad"):
            del settings["data"][name]
        for name in ("workers", "tracker"):
            del settings["recipe"][name]
        return settings

    def fingerprint(self, data: str) -> str:
        """Hash of :meth:`identity` and of the fingerprint of the data."""
        text = json.dumps([self.identity(), data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class CompareConfig(_Experiment):
    """A grid of runs: mechanisms and controls by seeds, all else equal."""

    mechanisms: _Mechanisms = tuple(MechanismConfig(key=key) for key in ("se", "cbam"))
    controls: tuple[Literal["none", "static"], ...] = CONTROLS
    where: str | None = None
    at: str | None = None
    init: str = "identity"
    seeds: _Seeds = (0, 1, 2)
    out: Path = Path("foveate-compare")

    @field_validator("controls")
    @classmethod
    def _with_baseline(cls, controls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(["none", *controls]))

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        labels = [mechanism.label for mechanism in self.mechanisms]
        for label, count in Counter([*labels, *self.controls]).items():
            if count > 1:
                raise ValueError(f"'{label}' stands {count} times; give each its own name")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"each seed counts once, but got seeds={list(self.seeds)}")
        return self

    def variants(self) -> list[MechanismConfig | None]:
        """What is compared, the controls first; None is the host alone."""
        static = [MechanismConfig(key=key) for key in self.controls if key != "none"]
        shared = {"where": self.where, "at": self.at, "init": self.init}
        mechanisms = [
            mechanism.model_copy(
                update={k: v for k, v in shared.items() if getattr(mechanism, k) is None}
            )
            for mechanism in (*static, *self.mechanisms)
        ]
        return [None, *mechanisms]

    def run(self, mechanism: MechanismConfig | None, seed: int) -> RunConfig:
        """One cell of the grid."""
        return RunConfig(
            data=self.data,
            host=self.host,
            pretrained=self.pretrained,
            recipe=self.recipe,
            mechanism=mechanism,
            seed=seed,
        )


def parse(model: type[_Model], values: Any) -> _Model:
    """Check plain values.

    Raises:
        ValueError: In one line: the key, what is accepted, and what was given.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _one_line(model, error) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ValueError: If the file cannot be read, is no YAML, or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidValueError(f"cannot read the configuration {path}: {reason}") from error
    except yaml.YAMLError as error:
        raise InvalidValueError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise InvalidValueError(f"{path} must hold keys with values, but it holds a {kind}")
    return values


def to_yaml(config: BaseModel) -> str:
    """The whole configuration, defaults included, as :func:`read_yaml` reads it."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over it, mappings key by key."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        if key == "data" and isinstance(old, str):  # the short form of {"name": old}
            old = {"name": old}
        both = isinstance(old, dict) and isinstance(change, dict)
        result[key] = merged(old, change) if both else change
    return result


def _one_line(model: type[BaseModel], error: ValidationError) -> InvalidValueError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown("key", key, _keys(model, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and not first["loc"]:
        return InvalidValueError(message)
    message = message[0].lower() + message[1:]
    return InvalidValueError(f"{key or 'the configuration'}: {message}, but got {first['input']!r}")


def _keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys accepted beside the last one of ``loc``, with the same path in front."""
    fields: Mapping[str, Any] = model.model_fields
    for part in loc[:-1]:
        if isinstance(part, str) and part in fields:
            nested = _settings_in(fields[part].annotation)
            fields = nested.model_fields if nested else {}
    path = ".".join(str(part) for part in loc[:-1])
    return [f"{path}.{name}" if path else name for name in fields]


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class in an annotation such as ``tuple[MechanismConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_settings_in(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found), None)
