"""Which kernels serve a tensor: those in C++, those in Triton, or none."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from foveate.errors import InvalidValueError, check_choice
from foveate.kernels import build

PATHS = ("auto", "eager", "cpu", "triton")
VARIABLE = "FOVEATE_KERNELS"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LEAST = (1 << 15, 1 << 18)
"""Elements of a map on a processor, and on a graphics card, below which kernels do not pay."""

_found: dict[tuple[str, str], Any] = {}
_override: ContextVar[str | None] = ContextVar("kernels", default=None)


@contextmanager
def using(path: str) -> Iterator[None]:
    """Take one path inside the block, whatever the environment says.

    Args:
        path: ``"auto"``: kernels where they can run and are worth it; ``"eager"``: none;
            ``"cpu"`` or ``"triton"``: those, or an error where they cannot run.
    """
    token = _override.set(check_choice("path", path, PATHS))
    try:
        yield
    finally:
        _override.reset(token)


def requested() -> str:
    """The path asked for by :func:`using`, or else by the environment variable.

    Raises:
        ValueError: If the variable has none of the values of ``PATHS``.
    """
    asked = _override.get() or os.environ.get(VARIABLE) or "auto"
    return asked if asked in PATHS else check_choice(VARIABLE, asked, PATHS)


def explain(device: torch.device) -> tuple[str, str]:
    """The path that maps on a device take, and why.

    Raises:
        ValueError: If the path asked for cannot be taken there.
    """
    asked = requested()
    if asked == "eager":
        return "eager", f"{VARIABLE}=eager"
    own = "triton" if device.type == "cuda" else "cpu"
    path = own if asked == "auto" else asked
    hindrance = _hindrance(path, device.type)
    if hindrance is None:
        return path, f"{'C++' if path == 'cpu' else 'Triton'} kernels serve {device.type} tensors"
    if asked == "auto":
        return "eager", hindrance
    raise InvalidValueError(f"{VARIABLE}={asked} cannot be met: {hindrance}")


def _hindrance(path: str, device: str) -> str | None:
    """Why the kernels of a path cannot serve a kind of device; None if they can."""
    if path == "cpu":
        if device != "cpu":
            return f"the C++ kernels serve cpu tensors, not {device} tensors"
        try:
            build.load()
        except build.BuildError as error:
            return str(error)
        return None
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"the Triton kernels serve cuda tensors, not {device} tensors"


def serving(device: torch.device) -> Any | None:
    """The kernels of a device, as an object with a function for each; None where there are none."""
    path, _ = explain(device)
    if path == "eager":
        return None
    if path == "cpu":
        return torch.ops.foveate_cpu
    return importlib.import_module("foveate.kernels.triton")


def pick(x: Tensor, *, least: int | None = None) -> Any | None:
    """The kernels to serve a tensor eagerly; None where eager operations are better.

    That is also where a kernel would hide what happens from those who watch the operations:
    transformations of functions, tracing, modes that intercept operations.

    Args:
        x: The tensor, ``(B, C, H, W)``.
        least: Elements from which on kernels are worth it; None for what was measured for maps.
    """
    if torch.compiler.is_compiling():  # first: not every compiler reads what follows
        return None
    if (type(x) is not Tensor and type(x) is not Parameter) or x.dim() != 4:
        return None
    asked = requested()
    if asked == "eager" or torch._C._get_tracing_state() is not None:
        return None  # a tracer would warn of the number that follows
    device, count = x.device, x.numel()
    if asked == "auto" and count < (LEAST[device.type == "cuda"] if least is None else least):
        return None
    if not count or device.type == "meta" or x.dtype not in DTYPES or watched():
        return None
    found = _found.get((asked, device.type))
    if found is None:
        found = serving(device)
        if found is not None:
            _found[asked, device.type] = found
    return found


def watched() -> bool:
    """Whether someone watches, transforms or compiles the operations that now run."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


def serves(device: str) -> bool:
    """Whether compiled programs may call kernels on a kind of device."""
    return explain(torch.device(device))[0] != "eager"


# As torch.compiler.assume_constant_result, which would import the whole compiler here.
serves._dynamo_marked_constant = True  # type: ignore[attr-defined]


def compiles(x: Tensor) -> bool:
    """Whether a program is being compiled, not exported, that may call kernels for a map."""
    return (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and x.dtype in DTYPES
        and serves(x.device.type)
    )
