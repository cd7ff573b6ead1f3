"""What a result was measured with, and its file."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from foveate.kernels import explain

PACKAGES = ("foveate", "torch", "torchvision", "timm", "triton", "numpy")
ROOT = Path(__file__).parents[2]


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, load and commit; needs nothing but torch."""
    return {
        **dict(_versions()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "kind": device.type,
        "device": _device_name(device),
        "kernels": ": ".join(explain(device)),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "commit": _git("rev-parse", "HEAD") + ("+" if _git("status", "--porcelain", "src") else ""),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def write(result: dict[str, Any], path: Path) -> None:
    """As JSON, one measurement a line."""
    parts = []
    for name, value in result.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f' "{name}": [\n{rows}\n ]')
        else:
            parts.append(f' "{name}": {json.dumps(value)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
