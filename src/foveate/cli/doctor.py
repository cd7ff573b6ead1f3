"""``foveate doctor``."""

import json
import os
import platform
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from torch import nn

PACKAGES = ("foveate", "torch", "torchvision", "timm", "triton")
SHAPE = (2, 256, 14, 14)
"""The map on which mechanisms are tried."""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which kernels serve each mechanism on this machine and why; build them first if need be.

    Exits with 0 also where kernels cannot run; the table says so.
    """
    from rich.console import Console

    from foveate.kernels.choice import requested

    requested()  # a value that is none is a mistake of its own, before anything is built
    with Console(stderr=True).status("Kernels that are not in the cache are built now"):
        found = examine()
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        Console(highlight=False).print(*_tables(found), sep="\n", markup=False)


def examine() -> dict[str, Any]:
    """What decides about kernels here, and what they serve, by device."""
    import torch

    from foveate.kernels import build
    from foveate.kernels.choice import VARIABLE, requested

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", build.BuildWarning)
        paths = {name: _path(torch.device(name)) for name in devices}
    status = build.status()
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "devices": {name: _describe(name) for name in devices},
        "requested": {"variable": VARIABLE, "value": requested(), "set": VARIABLE in os.environ},
        "build": {
            "compiler": status.compiler,
            "flags": list(status.flags),
            "cache": str(status.folder) if status.folder else None,
            "library": str(status.library) if status.library else None,
            "seconds": status.seconds,
            "reason": status.reason,
        },
        "warnings": [str(one.message) for one in caught if one.category is build.BuildWarning],
        "paths": {name: {"path": path, "reason": why} for name, (path, why) in paths.items()},
        "mechanisms": {name: _mechanisms(torch.device(name), *paths[name]) for name in devices},
    }


def _path(device: "torch.device") -> tuple[str, str]:
    """The path of a device and its reason; ``"none"`` if the one asked for cannot be taken."""
    from foveate.errors import InvalidValueError
    from foveate.kernels import explain

    try:
        return explain(device)
    except InvalidValueError as error:
        return "none", str(error)


def _mechanisms(device: "torch.device", path: str, reason: str) -> dict[str, dict[str, str]]:
    """The path and the reason for each mechanism, set up as it is by default."""
    import foveate
    from foveate.describe.facts import built

    found = {}
    for key in foveate.list_mechanisms():
        module = built(key, *SHAPE[1:])
        served = path == "eager" or _served(module, device, path)
        why = reason + _limits(module, device, path) if served else "no kernel is written for it"
        found[key] = {"path": path if served else "eager", "reason": why}
    return found


def _limits(module: "nn.Module", device: "torch.device", path: str) -> str:
    """Which maps of a gate kernels serve, as the end of a sentence; the others do not pay."""
    from foveate.kernels.choice import LEAST, requested

    if path not in ("cpu", "triton") or not getattr(module, "fused", False):
        return ""
    elements = f" of {LEAST[device.type == 'cuda']:,} elements or more"
    training = ", in training" if getattr(module, "mean_only", False) else ""
    return (elements if requested() == "auto" else "") + training


def _served(module: "nn.Module", device: "torch.device", path: str) -> bool:
    """Whether kernels serve a mechanism: a gate declares it, another calls them when it runs."""
    import torch

    from foveate.errors import InvalidValueError
    from foveate.kernels import using
    from foveate.kernels.choice import requested

    if getattr(module, "fused", False):
        return True
    if device.type != "cpu" or path == "triton":  # the others have kernels in C++ alone
        return False
    try:
        with using(requested() if path == "none" else path), torch.no_grad(), _watch() as seen:
            module(torch.rand(SHAPE))
    except InvalidValueError:  # it asks for the kernels that cannot be had
        return True
    return bool(seen)


@contextmanager
def _watch() -> Iterator[set[str]]:
    """The C++ kernels that are called inside the block."""
    from torch.overrides import TorchFunctionMode

    seen: set[str] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if str(func).startswith("foveate_cpu."):
                seen.add(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe(device: str) -> str:
    import torch

    from foveate.kernels.processor import processor

    if device == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    name = processor().get("model name") or platform.machine()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def _tables(found: dict[str, Any]) -> list[Any]:
    """What a person reads of :func:`examine`: mechanisms that fare alike share a row."""
    from rich.table import Table

    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(found):
        facts.add_row(name, value)
    parts: list[Any] = [facts]
    for device, mechanisms in found["mechanisms"].items():
        alike: dict[tuple[str, str], list[str]] = defaultdict(list)
        for key, one in mechanisms.items():
            alike[one["path"], one["reason"]].append(key)
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(f"on {device}", style="bold", no_wrap=True)
        table.add_column("why", ratio=2)
        table.add_column("mechanisms", ratio=3)
        for (path, why), keys in alike.items():
            table.add_row(path, why, " ".join(keys))
        parts += ["", table]
    return parts


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    requested, build = found["requested"], found["build"]
    versions = (f"{name} {number or '-'}" for name, number in found["versions"].items())
    rows = [("versions", ", ".join(versions))]
    rows += found["devices"].items()
    rows.append((requested["variable"], requested["value"] + " (not set)" * (not requested["set"])))
    rows.append(("compiler", build["compiler"] or build["reason"]))
    rows.append(("flags", " ".join(build["flags"])))
    if build["library"]:
        rows.append(("C++ kernels", f"{build['library']}, built in {build['seconds']} s"))
    else:
        rows.append(("C++ kernels", f"none kept in {build['cache'] or 'any cache'}"))
    rows += [("warning", text) for text in found["warnings"]]
    return rows
