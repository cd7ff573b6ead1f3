"""A network as an ONNX file that takes any batch and size, compared before it is kept."""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidTypeError, InvalidValueError, require
from foveate.export.agreement import Agreement, Runner, agree, original
from foveate.export.layers import Layers, first_difference, opened_up
from foveate.export.older import lowered
from foveate.mechanisms.base import Attention
from foveate.modes import in_mode

Size = tuple[int, int, int]
"""Images, height and width."""
OLDEST = 11
"""Version of the operators before which convolutions and resizing were others."""
WRITTEN = 18
"""The oldest version that the exporter writes."""

_ABOUT, _ATTENTION = "foveate", "foveate.attention"


def onnx(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    sizes: Sequence[Size] | None = None,
    fixed_size: bool = False,
    tolerance: float = 1e-4,
    about: Mapping[str, Any] | None = None,
) -> Agreement:
    """Write a network as ONNX, run it in ONNX Runtime at other sizes, and compare.

    Batch, height and width stay open. The file is written only if all outputs agree; until then
    it has another name.

    Args:
        model: In any mode; what is exported is its evaluation mode.
        example: An input ``(B, C, H, W)`` that it takes, on its device.
        path: Of the file.
        opset: Version of the operators, from 11; by default that of the exporter.
        sizes: Batch, height and width of the inputs that are compared; by default batches of 1, 2
            and 5, and three sizes besides that of the example.
        fixed_size: Keep height and width as they are in the example, for networks that take no
            others.
        tolerance: Largest difference, relative to the largest absolute value of the output.
        about: Anything that JSON can hold, to be kept in the file; see :func:`read_about`.

    Returns:
        How well both agree, shape by shape.

    Raises:
        MismatchError: If they do not; it names the layer where it begins.
        ValueError: If the network cannot be exported with open sizes or in that opset, or refuses
            one of the sizes.
        TypeError: For a compiled network.
        ImportError: Without ONNX, which comes with ``foveate[export]``.

    Example:
        >>> import foveate, torch, torchvision
        >>> model = torchvision.models.resnet18()
        >>> _ = foveate.insert(model, "cbam", example=torch.zeros(1, 3, 64, 64))
        >>> foveate.export.onnx(model, torch.zeros(1, 3, 64, 64), "model.onnx")  # doctest: +SKIP
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, extra="export")
    _check_opset(opset)
    inputs = compared_inputs(example, sizes, fixed_size)
    notes = {
        _ATTENTION: json.dumps([n for n, m in model.named_modules() if isinstance(m, Attention)])
    }
    if about is not None:
        notes[_ABOUT] = json.dumps(about)
    with written(path) as draft, in_mode(model, training=False), torch.no_grad():
        _export(model, example, draft, opset, fixed_size, notes)
        return agree(
            model,
            on_session(draft),
            inputs,
            tolerance,
            partial(first_difference, model, partial(_layers, draft), tolerance=tolerance),
        )


def read_about(path: Path) -> dict[str, Any] | None:
    """What :func:`onnx` was told to keep in a file; None if nothing.

    Raises:
        ValueError: If the file is no ONNX file, or not whole, or it keeps what is none of ours.
    """
    notes = _notes(path)
    if _ABOUT not in notes:
        return None
    try:
        found = json.loads(notes[_ABOUT])
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"{path} keeps something else under '{_ABOUT}'") from error
    if not isinstance(found, dict):
        raise InvalidValueError(f"{path} keeps something else under '{_ABOUT}'")
    return found


def read_attention(path: Path) -> list[str]:
    """Names of the modules of the original that are attention."""
    return json.loads(_notes(path).get(_ATTENTION, "[]"))


def _notes(path: Path) -> dict[str, str]:
    return {one.key: one.value for one in open_proto(path).metadata_props}


def open_proto(path: Path) -> Any:
    """The graph in a file.

    Raises:
        ValueError: If it is no ONNX file, or not whole.
    """
    library = require("onnx", extra="export")
    try:
        proto = library.load(str(path))
        library.checker.check_model(proto)
    except Exception as error:  # of parser or checker
        reason = str(error).partition("\n")[0]
        raise InvalidValueError(f"{path} is not a whole ONNX file: {reason}") from error
    return proto


def session(source: Path | bytes, provider: str = "CPUExecutionProvider") -> Any:
    """A file or a graph, ready to run in ONNX Runtime on as many threads as torch has."""
    runtime = require("onnxruntime", extra="export")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    options.intra_op_num_threads = torch.get_num_threads()
    opened = str(source) if isinstance(source, Path) else source
    return runtime.InferenceSession(opened, options, providers=[provider])


def on_session(source: Path | bytes, provider: str = "CPUExecutionProvider") -> Runner:
    """Runs a file or a graph in ONNX Runtime, which is opened when it is first called."""
    opened: list[Any] = []

    def run(images: Tensor) -> Tensor:
        if not opened:
            opened.append(session(source, provider))
        name = opened[0].get_inputs()[0].name
        return torch.from_numpy(opened[0].run(None, {name: images.cpu().numpy()})[0])

    return run


def _layers(path: Path, images: Tensor) -> Layers:
    proto = open_proto(path)
    told_apart = opened_up(proto)
    opened = session(proto.SerializeToString())
    return told_apart(opened.run(None, {opened.get_inputs()[0].name: images.cpu().numpy()}))


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place for a file, which is moved to its own if nothing is raised.

    Raises:
        ValueError: If there is no such folder, or it cannot be written.
    """
    target = Path(path)
    try:
        if not target.parent.is_dir() or (target.exists() and not target.is_file()):
            raise InvalidValueError(
                f"cannot write {target}: it must be a file in a folder that exists"
            )
        target = target.resolve()  # a link is followed, not replaced
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".foveate-") as name:
            yield Path(name) / target.name
            made = {one: target.parent / one.name for one in sorted(Path(name).iterdir())}
            for place in made.values():
                if place.is_dir():  # known before anything is replaced
                    raise InvalidValueError(f"cannot write {place}: it is a folder")
            for one, place in made.items():
                os.replace(one, place)
    except OSError as error:
        raise InvalidValueError(f"cannot write {target}: {error.strerror or error}") from error


def usual_sizes(height: int, width: int) -> list[Size]:
    """What is compared by default: the size of the example, and three others.

    Example:
        >>> usual_sizes(64, 64)
        [(1, 64, 64), (5, 96, 64), (1, 64, 128), (2, 97, 131)]
    """
    higher, wider = height + height // 2, 2 * width
    return [(1, height, width), (5, higher, width), (1, height, wider), (2, higher + 1, wider + 3)]


def takes_any_size(model: nn.Module, example: Tensor) -> bool:
    """Whether a network runs, and can be exported, at sizes other than that of the example."""
    if _pads_by_size(model):
        return False
    with in_mode(model, training=False), torch.no_grad():
        try:
            for images in compared_inputs(example, None, fixed_size=False):
                model(images[:1])
        except (RuntimeError, ValueError, AssertionError):  # hosts check in many ways
            return False
    return True


def _pads_by_size(model: nn.Module) -> bool:
    """Whether layers of timm pad as TensorFlow does, by what is left over at their stride.

    With open sizes each such layer doubles the cases that the exporter has to tell apart.
    """
    return any(
        type(module).__name__.endswith("Same") and type(module).__module__.startswith("timm.")
        for module in model.modules()
    )


def _check_opset(opset: int | None) -> None:
    newest = require("onnx", extra="export").defs.onnx_opset_version()
    if opset is not None and not OLDEST <= opset <= newest:
        raise InvalidValueError(f"opset must be from {OLDEST} to {newest}, but got {opset}")


def compared_inputs(
    example: Tensor, sizes: Sequence[Size] | None, fixed_size: bool
) -> list[Tensor]:
    """What files are compared on."""
    if example.dim() != 4:
        raise InvalidValueError(f"example must be (B, C, H, W), but got {tuple(example.shape)}")
    if sizes is not None and not sizes:
        raise InvalidValueError("sizes must name at least one batch, height and width to compare")
    if example.dtype not in (torch.float32, torch.float16):
        raise InvalidValueError(
            f"example must be float32 or float16, which runtimes compute in, but is {example.dtype}"
        )
    height, width = example.shape[2:]
    usual = [(b, height, width) for b in (1, 2, 5)] if fixed_size else usual_sizes(height, width)
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(b, example.shape[1], h, w, generator=generator).to(example)
        for b, h, w in (usual if sizes is None else sizes)
    ]


def _export(
    model: nn.Module,
    example: Tensor,
    path: Path,
    opset: int | None,
    fixed_size: bool,
    notes: Mapping[str, str],
) -> None:
    program = exported(model, example, fixed_size=fixed_size, then=partial(_translated, opset))
    program.model.metadata_props.update(notes)
    program.save(path)
    if opset is not None and opset < WRITTEN:
        _lower(path, opset, type(model).__name__)
    library = require("onnx", extra="export")
    library.shape_inference.infer_shapes(open_proto(path), check_type=True, strict_mode=True)


def _lower(path: Path, opset: int, name: str) -> None:
    """Write the graph again, in older operators."""
    library = require("onnx", extra="export")
    try:
        library.save(lowered(open_proto(path), opset), str(path))
        open_proto(path)
    except InvalidValueError as error:
        raise InvalidValueError(
            f"the graph of this {name} cannot be written in opset {opset}: {error}"
        ) from error


def _translated(opset: int | None, program: torch.export.ExportedProgram) -> Any:
    return torch.onnx.export(
        program,
        dynamo=True,
        opset_version=None if opset is None else max(opset, WRITTEN),
        input_names=["images"],
        verbose=False,
    )


def exported(
    model: nn.Module,
    example: Tensor,
    *,
    fixed_size: bool = False,
    then: Callable[[torch.export.ExportedProgram], Any] = lambda program: program,
) -> Any:
    """The program of a network in evaluation mode with open sizes, and what is made of it.

    Raises:
        ValueError: If the network has none.
        TypeError: For a compiled network.
    """
    if hasattr(model, "_orig_mod"):
        raise InvalidTypeError("a compiled network cannot be exported; pass the one it is made of")
    original(model, example)
    if _pads_by_size(model) and not fixed_size:
        raise InvalidValueError(
            f"this {type(model).__name__} pads by the size of its input (pad_type=same), which "
            "cannot be exported with open sizes; it can with fixed_size"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            return then(traced(model, example, fixed_size))
    except Exception as error:  # of any kind, from deep inside
        reason = str(error).strip().partition("\n")[0]
        hint = "" if fixed_size else " with open sizes; it may have one with fixed_size"
        raise InvalidValueError(
            f"this {type(model).__name__} cannot be exported{hint}: {reason}"
        ) from error


def traced(model: nn.Module, example: Tensor, fixed_size: bool) -> torch.export.ExportedProgram:
    """The program of a network as it is: batch open, height and width open or fixed."""
    # A batch of one would be taken for a constant.
    images = torch.cat([example, example]) if len(example) == 1 else example
    open_ones = (0,) if fixed_size else (0, 2, 3)
    shapes = (dict.fromkeys(open_ones, torch.export.Dim.DYNAMIC),)
    return torch.export.export(model, (images,), dynamic_shapes=shapes)
