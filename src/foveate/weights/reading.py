"""Tensors by name from files of others, of which nothing is ever executed."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InvalidTypeError, InvalidValueError, require

NESTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
"""Where training scripts put a state dict; an average over training comes before its last step."""
WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What wrappers of a model put before all of its names."""


def read_tensors(weights: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, out of whatever it is nested in.

    Args:
        weights: A safetensors file, a file of ``torch.save``, or what such a file holds.

    Raises:
        ValueError: If the file is missing, holds code, or cannot be read, or if there are no
            tensors.
        TypeError: If ``weights`` is neither a path nor a mapping.
        ImportError: If safetensors is needed and not installed.
    """
    if isinstance(weights, str | Path):
        path = Path(weights)
        if not path.is_file():
            raise InvalidValueError(f"there is no file of weights at '{path}'")
        return _tensors(_read(path), f"'{path}'")
    if not isinstance(weights, Mapping):
        raise InvalidTypeError(
            f"weights must be a path or a state dict, but got {type(weights).__name__}"
        )
    return _tensors(weights, "the state dict")


def _read(path: Path) -> Any:
    try:
        if _is_safetensors(path):
            return require("safetensors.torch", extra="hosts").load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # options beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # whatever a reader raises on foreign bytes
        raise InvalidValueError(_refusal(path, error)) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a JSON header follows eight bytes of length; the name of a file may say anything."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def _refusal(path: Path, error: Exception) -> str:
    code = re.search(r"(?:Unsupported (?:global|class)\W+(?:GLOBAL )?|import )([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and code:
        reason = f"it holds code ({code[1]}), none of which was run; save a state_dict() instead"
        return f"'{path}' holds no weights that can be read: {reason}"
    with path.open("rb") as file:
        start = file.read(2)
    if start in (b"PK", b"\x80\x02") or _is_safetensors(path):
        reason = re.split(r"[.:]? *(?:\n|[.:] )", str(error).strip())[0] or type(error).__name__
    else:
        reason = "it is neither a safetensors file nor one of torch.save"
    return f"'{path}' holds no weights that can be read: {reason}"


def _tensors(found: Any, source: str) -> dict[str, Tensor]:
    while nest := next((name for name in NESTS if isinstance(_get(found, name), Mapping)), None):
        found = found[nest]
    items = found.items() if isinstance(found, Mapping) else ()
    tensors = {name: value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise InvalidValueError(f"{source} holds no weights that can be read: no tensors by name")
    return tensors


def _get(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, Mapping) else None


def unwrapped(tensors: Mapping[str, Tensor], names: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without what a wrapper put before each name, unless the model has it too."""
    tensors = dict(tensors)
    while wrapper := next(
        (
            wrapper
            for wrapper in WRAPPERS
            if all(name.startswith(wrapper) for name in tensors)
            and not any(name.startswith(wrapper) for name in names)
        ),
        None,
    ):
        tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors
