"""An ONNX network in eight bits: calibrated on images, judged on images, kept only if it holds."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from foveate.cost import Timing, race
from foveate.errors import InvalidValueError, require
from foveate.export.agreement import Runner, check_calibration, check_drop
from foveate.export.layers import layers_of
from foveate.export.to_onnx import on_session, open_proto, read_attention, written
from foveate.printing import as_text

KEPT = ("HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh")
"""Operations that stay in floating point: eight bits are too few where a curve is steep."""
_COMPARED = 2
"""Batches of images on which layers are compared."""
LEAST_OPSET = 13
_SHOWN = 5


@dataclass(frozen=True)
class Layer:
    """The signal-to-noise ratio of what a layer gives, in decibels; 20 is an error of a tenth."""

    name: str
    snr: float


@dataclass(frozen=True)
class Int8:
    """A network in eight bits beside the one it was made of.

    Scores are what the judge gave, times are of one batch, sizes in bytes.
    """

    before: float
    after: float
    layers: tuple[Layer, ...]
    times: Mapping[str, Timing]
    sizes: Mapping[str, int]
    kept: tuple[str, ...]
    """Operations that stayed in floating point because they belong to attention."""

    @property
    def drop(self) -> float:
        """What it has lost."""
        return self.before - self.after

    @property
    def speedup(self) -> float:
        """How many times as fast it is in ONNX Runtime on this machine."""
        return self.times["float"].median_ms / self.times["int8"].median_ms

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        table = Table()
        for column in ("", "score, %", "a batch, ms", "size, MiB"):
            table.add_column(column, justify="right" if column else "left")
        for name, score in {"float": self.before, "int8": self.after}.items():
            time = self.times[name]
            table.add_row(
                name,
                f"{score:.2f}",
                f"{time.median_ms:.1f} (IQR {time.iqr_ms:.1f})",
                f"{self.sizes[name] / 2**20:.1f}",
            )
        yield table
        yield f"{self.drop:.2f} points lost, {self.speedup:.2f} times as fast"
        worst = sorted(self.layers, key=lambda layer: layer.snr)[:_SHOWN]
        yield "least signal to noise, dB: " + ", ".join(
            f"{one.name} {one.snr:.1f}" for one in worst
        )


def int8(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    calibration: Sequence[Tensor],
    score: Callable[[Runner], float],
    *,
    max_drop: float = 1.0,
    gates: bool = False,
) -> Int8:
    """Quantise an ONNX file to eight bits, layer by layer and statically.

    Weights are quantised for each output channel, activations for each tensor. What attention
    computes stays in floating point, as do sigmoid and softmax.

    Args:
        source: What :func:`foveate.export.onnx` has written.
        path: Of the new file, written only if the drop is small enough.
        calibration: Batches of images; activations take their ranges from these.
        score: Judges a network that is run, in percent; the more the better.
        max_drop: Most that the score may lose, in percentage points.
        gates: Quantise inside attention too.

    Raises:
        DropError: If the score loses more.
        ValueError: If there are no images, or the source is no ONNX file.
        ImportError: Without ONNX Runtime, which comes with ``foveate[export]``.
    """
    require("onnxruntime", extra="export")
    check_calibration(calibration)
    source = Path(source)
    check_source(source)
    kept = [] if gates else _inside(source)
    with tempfile.TemporaryDirectory() as folder, written(path) as draft:
        prepared = Path(folder) / "prepared.onnx"
        with _quiet():
            _quantize(source, prepared, draft, calibration, kept)
        runners = {"float": on_session(source), "int8": on_session(draft)}
        before, after = (score(runner) for runner in runners.values())
        check_drop(before, after, max_drop)
        with _quiet():
            layers = _compared(prepared, draft, calibration[:_COMPARED], Path(folder))
        images = calibration[0]
        return Int8(
            before,
            after,
            layers,
            race({name: partial(runner, images) for name, runner in runners.items()}),
            {"float": source.stat().st_size, "int8": draft.stat().st_size},
            tuple(kept),
        )


def check_source(path: Path) -> None:
    """Refuse operators that are too old to be quantised by channel."""
    found = next(one.version for one in open_proto(path).opset_import if not one.domain)
    if found < LEAST_OPSET:
        raise InvalidValueError(f"eight bits need opset {LEAST_OPSET}, but {path} has {found}")


def _inside(path: Path) -> list[str]:
    """The nodes that belong to attention."""
    names = set(read_attention(path))
    return [node.name for node in open_proto(path).graph.node if names & set(layers_of(node))]


def _quantize(
    source: Path, prepared: Path, path: Path, calibration: Sequence[Tensor], kept: list[str]
) -> None:
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # The optimisation of the whole graph would rename nodes, and with them forget whose they are.
    quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        _reader(prepared, calibration),
        op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry} - set(KEPT)),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=kept,
    )


def _reader(path: Path, batches: Sequence[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    name = open_proto(path).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self._left, None)
            return None if images is None else {name: images.cpu().numpy()}

    return Reader()


def _compared(
    source: Path, path: Path, batches: Sequence[Tensor], folder: Path
) -> tuple[Layer, ...]:
    """The ratio for the last quantised tensor of each layer, in the order of the graph."""
    from onnxruntime.quantization import qdq_loss_debug as debug

    found = []
    for name, model in {"float": source, "int8": path}.items():
        watched = folder / f"watched-{name}.onnx"
        debug.modify_model_output_intermediate_tensors(str(model), str(watched))
        found.append(debug.collect_activations(str(watched), _reader(model, batches)))
    floats, quantised = found
    errors = debug.compute_activation_error(debug.create_activation_matching(quantised, floats))
    layers: dict[str, float] = {}
    for node in open_proto(source).graph.node:
        names = layers_of(node)
        for output in node.output:
            if names and "xmodel_err" in errors.get(output, {}):
                layers[names[-1]] = errors[output]["xmodel_err"]
    return tuple(Layer(name, snr) for name, snr in layers.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's advice goes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
