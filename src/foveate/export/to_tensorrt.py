"""A network for TensorRT, where its own tool or ONNX Runtime with its provider is installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor, nn

from foveate.errors import InvalidValueError, UserError, require
from foveate.export.agreement import Runner
from foveate.export.to_onnx import on_session, onnx, written

PROVIDER = "TensorrtExecutionProvider"
TOOL = "trtexec"
_MAX_BATCH = 8


class BuildFailedError(UserError, RuntimeError):
    """TensorRT's tool did not build the network."""


def tensorrt(model: nn.Module, example: Tensor, path: str | os.PathLike[str]) -> None:
    """Build an engine for the graphics card of this machine, at the example's height and width.

    Batches of 1 to 8 are open, or more if the example has more.

    Args:
        model: As for :func:`foveate.export.onnx`, which it goes through.
        example: Likewise.
        path: Of the engine.

    Raises:
        ValueError: If ``trtexec``, which comes with TensorRT, is not there.
        BuildFailedError: If it fails; the message has its last line.
    """
    tool = shutil.which(TOOL)
    if tool is None:
        raise InvalidValueError(
            f"a TensorRT engine is built by {TOOL}, which comes with TensorRT and was not found; "
            "export to ONNX, and run that with ONNX Runtime's TensorRT provider"
        )
    channels, height, width = example.shape[1:]
    sizes = {
        name: f"images:{batch}x{channels}x{height}x{width}"
        for name, batch in {
            "min": 1,
            "opt": len(example),
            "max": max(_MAX_BATCH, len(example)),
        }.items()
    }
    with tempfile.TemporaryDirectory() as folder, written(path) as draft:
        between = Path(folder) / "model.onnx"
        onnx(model, example, between, fixed_size=True)
        command = [tool, f"--onnx={between}", f"--saveEngine={draft}"]
        command += [f"--{name}Shapes={shape}" for name, shape in sizes.items()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not draft.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise BuildFailedError(f"{TOOL} failed: {last[0]}")


def on_tensorrt(path: Path) -> Runner:
    """Runs an ONNX file through ONNX Runtime's provider.

    Raises:
        ValueError: If this ONNX Runtime has none.
    """
    there = require("onnxruntime", extra="export").get_available_providers()
    if PROVIDER not in there:
        raise InvalidValueError(
            f"tensorrt needs an ONNX Runtime with {PROVIDER}; this one has {', '.join(there)}"
        )
    return on_session(path, PROVIDER)
