"""What a result was computed with."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from foveate.kernels.processor import processor

_PACKAGES = ("foveate", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "scikit-learn")


def describe(fabric: Fabric) -> dict[str, Any]:
    """Versions, device, threads and commit, ready for JSON."""
    return {
        **{name: version for name in _PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": _device_name(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "commit": _commit(Path(__file__).parents[2]),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor().get("model name") or platform.processor() or device.type


def _commit(package: Path) -> str | None:
    """The commit of the checkout that the package runs from, marked if the package has changes."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel"), "src", package.name) != package:
            return None  # installed beneath some other repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
