"""What a comparison measured, as values that survive a round trip through JSON."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from foveate.errors import InvalidValueError

BASELINE: Literal["none"] = "none"
"""The control without attention, to which every mechanism is compared."""
STATIC = "static"
"""The control that has a gate, but one that cannot see its input."""
CONTROLS = (BASELINE, STATIC)


def _from_bits(value: Any) -> Any:
    return [bit == "1" for bit in value] if isinstance(value, str) else value


def _to_bits(value: list[bool]) -> str:
    return "".join("1" if bit else "0" for bit in value)


Percent = Annotated[float, Field(ge=0, le=100)]
Bits = Annotated[
    list[bool], BeforeValidator(_from_bits), PlainSerializer(_to_bits, when_used="json")
]
"""A list of booleans, in JSON a string of ``0`` and ``1``: a fifth of the length."""
Interval = tuple[float, float]
_T = TypeVar("_T")
Verdict = Literal["better", "worse", "not distinguishable", "no verdict"]


def _is_accuracy(metric: str) -> bool:
    return metric == "accuracy"


def _is_none(value: Any) -> bool:
    return value is None


_Beside = Annotated[_T | None, Field(exclude_if=_is_none)]
"""What a classification does not have, and its files do not mention."""


class _Model(BaseModel):
    # "strings": a loss that became NaN is written as "NaN", which is JSON, and read back as NaN.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class Curves(_Model):
    """How one run went: per optimiser step, and per epoch."""

    step: list[int] = []
    train_loss: list[float] = []
    epoch: list[int] = []
    epoch_train_loss: list[float] = []
    train_accuracy: list[float] = []
    val_loss: list[float] = []
    val_accuracy: list[float] = []
    lr: list[float] = []


class RunResult(_Model):
    """One training run; accuracies in percent, ``test_correct`` one value a test image.

    Where ``metric`` is another, as ``mIoU``, the accuracies are of that one. ``test_values`` has
    then one number a test image whose mean is the metric, as a share, if there is such a number.

    Raises:
        ValueError: If a finished run has no finite test accuracy, or a failed one no reason.
    """

    mechanism: str
    seed: int
    status: Literal["finished", "failed"]
    reason: str | None = None
    test_accuracy: Percent | None = None
    val_accuracy: Percent | None = None
    best_epoch: int | None = None
    test_correct: Bits | None = None
    metric: Annotated[str, Field(exclude_if=_is_accuracy)] = "accuracy"
    test_values: _Beside[list[float]] = None
    test_scores: _Beside[dict[str, float]] = None
    test_per_class: _Beside[dict[str, float | None]] = None
    images_per_second: float | None = None
    wall_seconds: float | None = None
    energy_joules: float | None = None
    curves: Curves = Curves()

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.status == "finished" and self.test_accuracy is None:
            raise ValueError("a finished run needs a test_accuracy")
        if self.status == "failed" and not self.reason:
            raise ValueError("a failed run needs a reason")
        return self

    @property
    def on_test(self) -> str:
        """The result of a finished run in words."""
        name = "" if _is_accuracy(self.metric) else f" {self.metric}"
        return f"{self.accuracy:.2f} %{name} on test"

    @property
    def image_values(self) -> list[float] | None:
        """One number a test image whose mean is the metric, as a share; None without such."""
        return (
            self.test_values if self.test_correct is None else list(map(float, self.test_correct))
        )

    @property
    def accuracy(self) -> float:
        """The test accuracy, or what the metric is, of a finished run, in percent."""
        if self.test_accuracy is None:
            raise InvalidValueError(f"{self.mechanism} with seed {self.seed} has no test accuracy")
        return self.test_accuracy


class Cost(_Model):
    """What one mechanism costs in this host; ``flops`` are multiply-adds of one image."""

    parameters: int
    added_parameters: int
    flops: int
    latency_ms: float
    latency_iqr_ms: float
    peak_memory_bytes: int
    images_per_second: float | None = None


class Site(_Model):
    """A place in the host that took attention."""

    name: str
    channels: int
    height: int
    width: int


class Comparison(_Model):
    """One mechanism against the baseline, paired by seed; accuracies in percent.

    ``interval`` covers the variation over seeds, ``interval_both`` that over seeds and test
    images. ``p`` is of the paired t test and two-sided, ``p_holm`` corrected for the number of
    mechanisms; ``effect_size`` is Cohen's d of the pairs with Hedges' correction.
    """

    mechanism: str
    seeds: int
    mean: float | None = None
    difference: float | None = None
    interval: Interval | None = None
    interval_kind: Literal["seeds"] = "seeds"
    interval_both: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    effect_size: float | None = None
    difference_to_static: float | None = None
    p_static_holm: float | None = None
    verdict: Verdict
    seeds_needed: int | None = None
    explanation: str

    @property
    def is_control(self) -> bool:
        """Whether it is of a control, which is compared but not a candidate."""
        return self.mechanism in CONTROLS


class Results(_Model):
    """Everything that a comparison leaves behind, ready for the report."""

    foveate: str
    created: str
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    metric: str = "test accuracy"
    host: str
    baseline: Literal["none"] = BASELINE
    runs: list[RunResult]
    costs: dict[str, Cost] = {}
    sites: dict[str, list[Site]] = {}
    comparisons: list[Comparison] = []

    @model_validator(mode="after")
    def _has_each_run_once(self) -> Self:
        keys = [(run.mechanism, run.seed) for run in self.runs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice[0]} with seed {twice[1]} is there twice")
        return self

    @property
    def task(self) -> str:
        """What was learned."""
        return str(self.config.get("task", "classify"))

    @property
    def metric_name(self) -> str:
        """The metric in words, without the split that it is of."""
        return self.metric.removeprefix("test ")

    @property
    def mechanisms(self) -> list[str]:
        """The keys of all runs: the controls first, then the others sorted."""
        keys = {run.mechanism for run in self.runs}
        controls = [key for key in CONTROLS if key in keys]
        return controls + sorted(keys.difference(controls))

    def finished(self, mechanism: str) -> dict[int, RunResult]:
        """The runs of a mechanism that came to their end, by seed in ascending order."""
        runs = (run for run in self.runs if run.mechanism == mechanism)
        done = {run.seed: run for run in runs if run.status == "finished"}
        return dict(sorted(done.items()))

    def differences(self, mechanism: str) -> dict[int, float]:
        """Accuracy less the baseline's, at each seed that both have finished."""
        ours, theirs = self.finished(mechanism), self.finished(self.baseline)
        return {
            seed: ours[seed].accuracy - theirs[seed].accuracy for seed in ours if seed in theirs
        }

    def failed(self) -> list[RunResult]:
        """The runs that did not come to their end."""
        return [run for run in self.runs if run.status == "failed"]

    def to_json(self) -> str:
        """The text of ``results.json``."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read a ``results.json``.

        Raises:
            ValueError: If the file is not what :meth:`to_json` writes.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise InvalidValueError(f"{path} holds no results: {where}: {first['msg']}") from error
