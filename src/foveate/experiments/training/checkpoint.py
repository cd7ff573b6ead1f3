"""Files that are either the old ones or the new ones, and checkpoints made of them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveate.errors import InvalidValueError

Tensors = dict[str, Tensor]


def write_text(path: Path, text: str) -> None:
    """Like :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees all of it or nothing."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:  # a full disk, or a folder in the way
        temporary.unlink(missing_ok=True)
        raise


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and JSON values as one safetensors file, atomically."""
    # A copy each: safetensors refuses tensors that share memory or have gaps.
    copies = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in tensors.items()
    }
    write_bytes(path, safetensors.torch.save(copies, metadata={"state": json.dumps(state)}))


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """What :func:`save` wrote, on the CPU.

    Raises:
        ValueError: If the file is none of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:  # it has keys, and is no mapping
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {})["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InvalidValueError(f"{path} is not a readable checkpoint: {error}") from error


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors with ``prefix`` and a dot before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """What :func:`prefixed` put under ``prefix``, by the original names."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """The state of an optimizer as named tensors and JSON values."""
    tensors: Tensors = {}
    values: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            kept = tensors if isinstance(value, Tensor) else values
            kept[f"{index}.{name}"] = value
    return tensors, values


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Give an optimizer over the same parameters the state that was packed."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *values.items()]:
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
