"""What a run or a comparison is, as values that are checked, saved and read back."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from foveate.errors import check_choice
from foveate.experiments.data.augment import AUGMENTS
from foveate.experiments.reporting.results import BASELINE

_Count = Annotated[int, Field(ge=1, strict=True)]
_Whole = Annotated[int, Field(ge=0, strict=True)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Settings):
    """Images and how they are split; see :func:`foveate.experiments.data.load.load_data`.

    ``void`` is the number in masks of pixels that are of no class.
    """

    name: str = "digits"
    root: Path | None = None
    image_size: _Count | None = None
    val_fraction: _Fraction = 0.1
    test_fraction: _Fraction = 0.2
    split_seed: _Whole = 0
    limit: _Count | None = None
    skip_bad: bool = False
    download: bool = False
    void: Annotated[int, Field(ge=0, le=65535, strict=True)] = 255


class DistillConfig(_Settings):
    """What a student is drawn to: the attention maps of a teacher's features, or its gates.

    ``weight`` is the beta of the paper; by default its 1000 for maps, which are of length 1, and 1
    for gates, which are not.
    """

    kind: Literal["attention", "gates"] = "attention"
    weight: _Positive | None = None

    @property
    def strength(self) -> float:
        """The weight, or the default of the kind."""
        return self.weight or (1000.0 if self.kind == "attention" else 1.0)


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
    distill: DistillConfig | None = None
    checkpointing: bool = False
    channels_last: bool = False
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    deterministic: bool = False
    workers: _Whole = 0
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    snapshots: _Whole = 20

    @field_validator("augment")
    @classmethod
    def _augment_exists(cls, augment: str) -> str:
        return check_choice("augment", augment, AUGMENTS)

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

    @field_validator("options")
    @classmethod
    def _are_the_mechanisms(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("at", "example", "init", "mechanism", "model", "optimizer", "where"):
            if name in options:
                raise ValueError(f"'{name}' is no option of a mechanism")
        return options

    @property
    def label(self) -> str:
        """What reports call it."""
        return self.name or self.key


def _mechanism(value: Any) -> Any:
    if value == BASELINE:
        return None
    return {"key": value} if isinstance(value, str) else value


def _mechanisms(value: Any) -> Any:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list):
        return value
    return [mechanism for item in value if (mechanism := _mechanism(item)) is not None]


def _seeds(value: Any) -> Any:
    if isinstance(value, str):
        try:
            numbers = [int(part) for part in value.split(",")]
        except ValueError:
            raise ValueError(f"must be a count or a list of seeds, but got '{value}'") from None
        value = numbers if "," in value else numbers[0]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if value < 1:
        raise ValueError(f"must be at least 1, or a list of seeds, but got {value}")
    return list(range(value))


_Mechanism = Annotated[MechanismConfig, BeforeValidator(_mechanism)]
_Mechanisms = Annotated[tuple[MechanismConfig, ...], BeforeValidator(_mechanisms)]
_Seeds = Annotated[tuple[_Whole, ...], BeforeValidator(_seeds), Field(min_length=1)]

# Chosen so that the host alone trains well; a value that is given replaces its own entry only.
_DIGITS = {"epochs": 8, "lr": 2e-3, "weight_decay": 0.01}
_CIFAR = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "batch_size": 128}
_RECIPES: dict[str, dict[str, Any]] = {"digits": _DIGITS, "cifar10": _CIFAR, "cifar100": _CIFAR}
_SCENES = {"batch_size": 8, "weight_decay": 0.01}

# The heads of each task, the usual one first; a classification is the host alone.
HEADS: dict[str, tuple[str, ...]] = {
    "classify": (),
    "detect": ("ssdlite", "retinanet", "fasterrcnn"),
    "segment": ("unet", "deeplabv3plus", "psp", "danet", "ccnet"),
}


class _Experiment(_Settings):
    task: Literal["classify", "detect", "segment"] = "classify"
    data: DataConfig = DataConfig()
    host: str = "small_cnn"
    head: str | None = None
    pretrained: str | None = None
    teacher: Path | None = None
    recipe: Recipe = Recipe()
    explain: _Whole = 256
    trust_code: bool = False

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
            if values.get("task", "classify") != "classify":
                values = {"host": "resnet18", **values}
                defaults = _SCENES
            if values.get("teacher") is not None:
                recipe = {**recipe, "distill": recipe.get("distill") or {}}
            values = {**values, "data": data, "recipe": {**defaults, **recipe}}
        heads = HEADS.get(str(values.get("task", "classify")), ())
        return {**values, "head": values.get("head") or next(iter(heads), None)}

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        heads = HEADS[self.task]
        if self.head is not None and self.head not in heads:
            accepted = f"accepted: {', '.join(heads)}" if heads else "it has none"
            raise ValueError(f"task={self.task} has no head '{self.head}'; {accepted}")
        exact = ("32-true", "64-true")
        if self.task == "detect" and self.recipe.precision not in exact:
            raise ValueError(
                "boxes need all their digits: task=detect takes recipe.precision "
                f"{' or '.join(exact)}, but got {self.recipe.precision}"
            )
        if self.recipe.distill is not None and self.teacher is None:
            raise ValueError("recipe.distill needs a teacher: the folder of a finished run")
        return self


class RunConfig(_Experiment):
    """One training: the same value always gives the same numbers on the same machine."""

    mechanism: Annotated[MechanismConfig | None, BeforeValidator(_mechanism)] = None
    seed: _Whole = 0

    @property
    def label(self) -> str:
        """The mechanism as reports call it, ``none`` without one."""
        return self.mechanism.label if self.mechanism else BASELINE

    def identity(self) -> dict[str, Any]:
        """The settings that the numbers depend on."""
        settings = self.model_dump(mode="json", exclude={"explain", "trust_code"})
        for name in ("root", "download", "skip_bad"):
            del settings["data"][name]
        for name in ("workers", "tracker", "snapshots"):
            del settings["recipe"][name]
        return settings


class CompareConfig(_Experiment):
    """A grid of runs: mechanisms and controls by seeds, all else equal."""

    mechanisms: _Mechanisms = tuple(
        MechanismConfig(key=key) for key in ("se", "eca", "cbam", "coord")
    )
    controls: tuple[Literal["none", "static"], ...] = ("none", "static")
    where: str | None = None
    at: str | None = None
    init: str = "identity"
    seeds: _Seeds = (0, 1, 2)
    out: Path = Path("foveate-compare")

    @field_validator("controls", mode="before")
    @classmethod
    def _with_baseline(cls, controls: Any) -> Any:
        listed = isinstance(controls, list | tuple)
        return [BASELINE, *(c for c in controls if c != BASELINE)] if listed else controls

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        labels = [mechanism.label for mechanism in self.mechanisms]
        for label, count in Counter([*labels, *self.controls]).items():
            if count > 1:
                raise ValueError(
                    f"'{label}' stands {count} times among mechanisms and controls; "
                    "give each its own name"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"each seed counts once, but got seeds={list(self.seeds)}")
        return self

    def variants(self) -> list[MechanismConfig | None]:
        """What is compared, the controls first; None is the host alone."""
        static = [MechanismConfig(key=key) for key in self.controls if key != BASELINE]
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
            task=self.task,
            data=self.data,
            host=self.host,
            head=self.head,
            pretrained=self.pretrained,
            teacher=self.teacher,
            trust_code=self.trust_code,
            recipe=self.recipe,
            mechanism=mechanism,
            seed=seed,
        )
