"""The same network in several runtimes, timed in turns."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.cost import Timing, race
from foveate.errors import check_choice
from foveate.export.agreement import Runner, agree
from foveate.export.to_onnx import on_session, onnx
from foveate.export.to_openvino import convert, on_openvino
from foveate.export.to_tensorrt import on_tensorrt
from foveate.modes import in_mode

TOLERANCE = 1e-4


def measure(
    models: Mapping[str, nn.Module],
    images: Tensor,
    runtimes: Sequence[str],
    *,
    repeats: int = 20,
) -> dict[tuple[str, str], Timing]:
    """Time networks in runtimes on this machine, all of them in turns in each round.

    Each is first held against the original on the images.

    Args:
        models: Networks by name; evaluation mode is measured.
        images: The batch ``(B, C, H, W)``.
        runtimes: Some of :data:`RUNTIMES`.
        repeats: Rounds.

    Returns:
        Milliseconds of one batch by the names of network and runtime.

    Raises:
        MismatchError: If a runtime computes something else.
        ValueError: If a runtime is unknown or not here, or a network cannot be exported.
        ImportError: If a runtime is not installed.
    """
    for runtime in runtimes:
        check_choice("runtime", runtime, RUNTIMES)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for number, (name, model) in enumerate(models.items()):
            stack.enter_context(in_mode(model, training=False))
            at = Path(folder) / f"{number}.onnx"
            for runtime in runtimes:
                runner = RUNTIMES[runtime](model, images, at)
                with torch.no_grad():
                    agree(model, runner, [images], TOLERANCE)
                calls[name, runtime] = partial(runner, images)
        return race(calls, repeats=repeats)


def _eager(model: nn.Module, images: Tensor, at: Path) -> Runner:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            output: Tensor = model(images)
            return output

    return run


def _compiled(model: nn.Module, images: Tensor, at: Path) -> Runner:
    compiled = torch.compile(model)

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = compiled(images)
            return output

    return run


def _file(model: nn.Module, images: Tensor, at: Path) -> Path:
    """The network as ONNX, written once for all runtimes that read it."""
    if not at.exists():
        batch, _, height, width = images.shape
        onnx(model, images, at, sizes=[(batch, height, width)], fixed_size=True)
    return at


def _onnxruntime(model: nn.Module, images: Tensor, at: Path) -> Runner:
    return on_session(_file(model, images, at))


def _openvino(model: nn.Module, images: Tensor, at: Path) -> Runner:
    path = at.with_suffix(".xml")
    convert(_file(model, images, at), path)
    return on_openvino(path)


def _tensorrt(model: nn.Module, images: Tensor, at: Path) -> Runner:
    return on_tensorrt(_file(model, images, at))


RUNTIMES: dict[str, Callable[[nn.Module, Tensor, Path], Runner]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}
"""How a network is run, by the name of the runtime."""
