"""``foveate export``."""

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli import looked_at as options
from foveate.errors import InvalidValueError, check_choice, check_positive, require

if TYPE_CHECKING:
    import torch

    from foveate.experiments.subject import Subject
    from foveate.export import Runner

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml", "tensorrt": ".engine"}
_BATCH = 32


def export(
    model: options.Model,
    to: Annotated[str, typer.Option(help="onnx, torch, openvino or tensorrt.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Quantise; needs --data.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Folder or set of images to calibrate and judge eight bits.")
    ] = None,
    calibrate: Annotated[int, typer.Option(help="Training images to calibrate on.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Most test images to judge on.")] = None,
    max_drop: Annotated[float, typer.Option(help="Points of accuracy that may be lost.")] = 1.0,
    gates: Annotated[bool, typer.Option("--gates", help="Quantise inside attention too.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX operators: 11 to the newest.")] = None,
    fixed_size: Annotated[
        bool, typer.Option("--fixed-size", help="Keep height and width closed.")
    ] = False,
    weights: options.Weights = None,
    classes: options.Classes = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    root: options.Root = None,
    trust_code: options.TrustCode = False,
    out: Annotated[
        Path | None, typer.Option(help="File; default: the model's name with the usual ending.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every layer.")] = False,
) -> int:
    """Write a network for another runtime, and hold it against the original at other sizes."""
    check_choice("target", to, ENDINGS)
    check_positive(calibrate=calibrate, **({} if limit is None else {"limit": limit}))
    _check_options(to, int8, data, opset, out)
    if gates and not int8:
        raise InvalidValueError("--gates is for --int8, which was not given")
    for module in ("onnx", "onnxscript", "onnxruntime") if to != "torch" else ():
        require(module, extra="export")
    tasks = ("classify",) if int8 else ("classify", "segment")
    subject = options.open_model(
        model, weights, classes, size, mean, std, trust_code=trust_code, tasks=tasks
    )
    path = out or Path(re.sub(r"[^\w.-]", "-", subject.name) + ENDINGS[to])
    import torch

    from foveate.export import takes_any_size

    example = torch.zeros(1, len(subject.mean), subject.image_size, subject.image_size)
    if not (fixed_size or takes_any_size(subject.module, example)):
        fixed_size = True
        said = f"{subject.name} is exported for this size only: height and width stay closed"
        typer.echo(said, err=as_json)
    if not int8:
        _plain(subject, example, path, to, opset=opset, fixed_size=fixed_size, as_json=as_json)
        return 0
    images = _images(subject, str(data), root, calibrate, limit)
    how: Any = {"max_drop": max_drop, "gates": gates}
    write = _int8_program if to == "torch" else _int8_graph
    from foveate.export import DropError

    try:
        with torch.no_grad():
            write(subject, example, path, images, fixed_size=fixed_size, as_json=as_json, **how)
    except DropError as error:
        typer.echo(f"foveate: {error}", err=True)
        return 1
    return 0


def _check_options(
    to: str, int8: bool, data: str | None, opset: int | None, out: Path | None
) -> None:
    if out is not None and out.suffix != ENDINGS[to]:
        raise InvalidValueError(f"the file of --to {to} ends in {ENDINGS[to]}, but got '{out}'")
    if int8 and data is None:
        raise InvalidValueError("--int8 needs --data: images to calibrate and to judge on")
    if data is not None and not int8:
        raise InvalidValueError("--data is for --int8, which was not given")
    if int8 and to == "tensorrt":
        raise InvalidValueError("--int8 goes to onnx, torch or openvino, but got --to tensorrt")
    if int8 and opset is not None:
        raise InvalidValueError("--opset is not for --int8, whose operators it chooses itself")
    if out is not None and not out.parent.is_dir():
        raise InvalidValueError(f"cannot write {out}: there is no folder {out.parent}")
    if opset is not None and to != "onnx":
        raise InvalidValueError(f"--opset is for --to onnx, but got --to {to}")


def _plain(
    subject: "Subject",
    example: "torch.Tensor",
    path: Path,
    to: str,
    *,
    opset: int | None,
    fixed_size: bool,
    as_json: bool,
) -> None:
    from foveate import export

    if to == "tensorrt":
        export.tensorrt(subject.module, example, path)
        typer.echo(f"{path}: an engine for this machine's graphics card")
        return
    how: Any = {"fixed_size": fixed_size}
    if to == "onnx":
        how |= {"opset": opset, "about": subject.about()}
    write = {"onnx": export.onnx, "torch": export.program, "openvino": export.openvino}[to]
    found = write(subject.module, example, path, **how)
    differences = {"x".join(map(str, at)): value for at, value in found.differences.items()}
    if as_json:
        print(json.dumps({"path": str(path), "differences": differences}, indent=2))
    else:
        typer.echo(f"{path}: agrees within {found.worst:.1e} at {', '.join(differences)}")


class _Images:
    """What eight bits are calibrated and judged on."""

    def __init__(self, calibration: Any, test: Any) -> None:
        self.calibration = [images for images, _ in calibration]
        self._test = test

    def score(self, runner: "Runner") -> float:
        """Accuracy in percent."""
        hits = sum(int((runner(x).argmax(1) == labels).sum()) for x, labels in self._test)
        return 100 * hits / sum(len(labels) for _, labels in self._test)


def _images(
    subject: "Subject", name: str, root: Path | None, calibrate: int, limit: int | None
) -> _Images:
    data = subject.load_data(name, root=root)
    return _Images(
        subject.batches(data, split="train", limit=calibrate, batch_size=_BATCH),
        subject.batches(data, split="test", limit=limit, batch_size=_BATCH),
    )


def _int8_program(
    subject: "Subject",
    example: "torch.Tensor",
    path: Path,
    images: _Images,
    *,
    fixed_size: bool,
    as_json: bool,
    **how: Any,
) -> None:
    from foveate import export

    scores = export.program_int8(
        subject.module,
        example,
        path,
        images.calibration,
        images.score,
        fixed_size=fixed_size,
        **how,
    )
    found = dict(zip(("before", "after"), scores, strict=True))
    if as_json:
        print(json.dumps({"path": str(path), **found}, indent=2))
    else:
        typer.echo(f"{path}: accuracy {scores[0]:.2f} % before, {scores[1]:.2f} % after")


def _int8_graph(
    subject: "Subject",
    example: "torch.Tensor",
    path: Path,
    images: _Images,
    *,
    fixed_size: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """For ONNX Runtime, or by way of that for OpenVINO."""
    from rich.console import Console

    from foveate import export

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        export.onnx(subject.module, example, plain, fixed_size=fixed_size, about=subject.about())
        quantised = path if path.suffix == ENDINGS["onnx"] else Path(folder) / "small.onnx"
        made = export.int8(plain, quantised, images.calibration, images.score, **how)
        if quantised != path:
            export.openvino_int8(quantised, path, images.score, made.before, how["max_drop"])
    if as_json:
        print(json.dumps({"path": str(path), **dataclasses.asdict(made)}, indent=2))
        return
    Console().print(made)
    typer.echo(str(path))
