"""A network for OpenVINO."""

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValueError, require
from foveate.export.agreement import Agreement, Runner, agree, check_drop
from foveate.export.layers import Layers, first_difference, opened_up
from foveate.export.to_onnx import Size, compared_inputs, onnx, open_proto, written
from foveate.modes import in_mode


def openvino(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    sizes: Sequence[Size] | None = None,
    fixed_size: bool = False,
    tolerance: float = 1e-4,
) -> Agreement:
    """Write a network as ``.xml`` and ``.bin``, run it in OpenVINO at other sizes, and compare.

    Args:
        model: As for :func:`foveate.export.onnx`, which it goes through, as do the others.
        example: Likewise.
        path: Of the ``.xml`` file.
        sizes: Likewise.
        fixed_size: Likewise.
        tolerance: Likewise.

    Raises:
        MismatchError: If outputs differ.
        ValueError: As for :func:`foveate.export.onnx`.
        ImportError: Without OpenVINO, which comes with ``foveate[openvino]``.
    """
    if Path(path).suffix != ".xml":
        raise InvalidValueError(f"the file of an OpenVINO model ends in .xml, but got '{path}'")
    require("openvino", extra="openvino")
    with tempfile.TemporaryDirectory() as folder, written(path) as draft:
        between = Path(folder) / "model.onnx"
        onnx(model, example, between, sizes=sizes, fixed_size=fixed_size, tolerance=tolerance)
        convert(between, draft)
        with in_mode(model, training=False), torch.no_grad():
            inputs = compared_inputs(example, sizes, fixed_size)
            layers = partial(_layers, between)
            where = partial(first_difference, model, layers, tolerance=tolerance)
            return agree(model, on_openvino(draft), inputs, tolerance, where)


def openvino_int8(
    source: Path,
    path: str | os.PathLike[str],
    score: Callable[[Runner], float],
    before: float,
    max_drop: float,
) -> float:
    """Convert what :func:`foveate.export.int8` has written, and judge it again in OpenVINO.

    Args:
        source: The quantised ONNX file.
        path: Of the ``.xml`` file.
        score: As for :func:`foveate.export.int8`.
        before: The score of the network in floating point.
        max_drop: Most that it may lose, in percentage points.

    Returns:
        The score.

    Raises:
        DropError: If it loses more.
    """
    with written(path) as draft:
        convert(source, draft)
        after = score(on_openvino(draft))
        check_drop(before, after, max_drop)
    return after


def convert(source: Path, path: Path) -> None:
    """Turn an ONNX file into OpenVINO's two files."""
    library = require("openvino", extra="openvino")
    library.save_model(library.convert_model(str(source)), str(path), compress_to_fp16=False)


def on_openvino(path: Path) -> Runner:
    """Runs a file on the processor, in full precision, on as many threads as torch has."""
    compiled = _compiled(str(path))
    return lambda images: torch.from_numpy(compiled(images.cpu().numpy())[0].copy())


def _compiled(model: Any) -> Any:
    library = require("openvino", extra="openvino")
    how = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return library.Core().compile_model(model, "CPU", how)


def _layers(source: Path, images: Tensor) -> Layers:
    """What the layers of an ONNX file give in OpenVINO."""
    proto = open_proto(source)
    told_apart = opened_up(proto)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        path.write_bytes(proto.SerializeToString())
        found = _compiled(str(path))(images.cpu().numpy())
    return told_apart([found[place] for place in range(len(found))])
