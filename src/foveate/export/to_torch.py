"""A network as a program of torch.export, in floating point or in eight bits."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValueError, require
from foveate.export.agreement import (
    Agreement,
    Runner,
    agree,
    check_calibration,
    check_drop,
)
from foveate.export.layers import first_difference, layers_of_program
from foveate.export.to_onnx import Size, compared_inputs, exported, traced, written
from foveate.mechanisms.base import Attention
from foveate.modes import in_mode


def program(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    sizes: Sequence[Size] | None = None,
    fixed_size: bool = False,
    tolerance: float = 1e-4,
) -> Agreement:
    """Write a network as a program ``.pt2``, read it back, run it at other sizes, and compare.

    Args:
        model: As for :func:`foveate.export.onnx`, as are the others.
        example: Likewise.
        path: Of the file; ``torch.export.load`` reads it where foveate is not installed.
        sizes: Likewise.
        fixed_size: Likewise.
        tolerance: Likewise.

    Raises:
        MismatchError: If outputs differ.
        ValueError: As for :func:`foveate.export.onnx`.
    """
    inputs = compared_inputs(example, sizes, fixed_size)
    with _saved(path) as draft, in_mode(model, training=False), torch.no_grad():
        _save(exported(model, example, fixed_size=fixed_size), draft)
        read = torch.export.load(draft)
        layers = partial(layers_of_program, read)
        where = partial(first_difference, model, layers, tolerance=tolerance)
        return agree(model, read.module(), inputs, tolerance, where)


def _saved(path: str | os.PathLike[str]) -> Any:
    if Path(path).suffix != ".pt2":
        raise InvalidValueError(f"the file of a torch program ends in .pt2, but got '{path}'")
    return written(path)


def _save(program: torch.export.ExportedProgram, path: Path) -> None:
    """Through memory: torch's own writer ends the process when the disk is full."""
    content = io.BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def program_int8(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    calibration: Sequence[Tensor],
    score: Callable[[Runner], float],
    *,
    fixed_size: bool = False,
    max_drop: float = 1.0,
    gates: bool = False,
) -> tuple[float, float]:
    """Quantise convolutions and linear layers to eight bits by torchao, and write the program.

    What is written simulates the integers wherever it runs; ``torch.compile`` makes integer kernels
    of it on x86 processors.

    Args:
        model: As for :func:`foveate.export.onnx`.
        example: Likewise.
        path: Of the ``.pt2`` file.
        calibration: As for :func:`foveate.export.int8`.
        score: Likewise.
        fixed_size: As for :func:`foveate.export.onnx`.
        max_drop: As for :func:`foveate.export.int8`.
        gates: Quantise layers of attention too, where they are called as layers: weights that a
            mechanism uses without calling their layer stay in floating point.

    Returns:
        The scores before and after.

    Raises:
        DropError: If the score loses more.
        ValueError: If there are no images, or the network cannot be exported.
        ImportError: Without torchao, which comes with ``foveate[export]``.
    """
    check_calibration(calibration)
    with (
        _saved(path) as draft,
        in_mode(model, training=False),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),  # observers draw from it
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torchao, about itself, also as it is imported
        torchao = require("torchao.quantization.pt2e.quantize_pt2e", extra="export")
        program = exported(model, example, fixed_size=fixed_size)
        prepared = torchao.prepare_pt2e(program.module(), _quantizer(model, gates))
        for images in calibration:
            prepared(images)
        quantized = torchao.convert_pt2e(prepared)
        before, after = score(model), score(quantized)
        check_drop(before, after, max_drop)
        _save(traced(quantized, example, fixed_size), draft)
    return before, after


def _quantizer(model: nn.Module, gates: bool) -> Any:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    if not gates:
        for name, module in model.named_modules():
            if isinstance(module, Attention):
                quantizer.set_module_name_qconfig(name, None)
    return quantizer
