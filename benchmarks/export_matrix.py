"""Every mechanism in every runtime at several sizes, and every named model: does the file agree?

Mechanisms stand between two convolutions, all parameters random; models are compared at one size.
Each answer is the largest difference to PyTorch, relative to the largest output, or a reason. What
is there already is not measured again, so the command can be stopped and goes on.

Usage: python benchmarks/export_matrix.py [--models PATTERN] [--out FILE] [--render]
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import foveate
from foveate.describe.facts import built
from foveate.errors import UserError
from foveate.export.agreement import difference
from foveate.export.to_onnx import compared_inputs
from foveate.mechanisms.norm import GateNorm
from gatebench import record

RESULTS = record.ROOT / "benchmarks/results/export.json"
PAGE = record.ROOT / "docs/export_matrix.md"
CHANNELS = 64
TRACED = (14, 22)
SIZES = ((1, 14, 22), (5, 28, 28), (1, 21, 33), (3, 32, 15))
RUNTIMES: dict[str, tuple[str, Callable[..., Any]]] = {
    "ONNX Runtime": ("m.onnx", foveate.export.onnx),
    "OpenVINO": ("m.xml", foveate.export.openvino),
    "torch.export": ("m.pt2", foveate.export.program),
}
MODEL_SIZE = (2, 96, 96)
ROUNDING = 1e-5
Record = dict[str, Any]


class Between(nn.Module):
    """A mechanism between two convolutions, with random parameters."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.attention = built(key, CHANNELS, *TRACED)
        self.head = nn.Conv2d(CHANNELS, 8, 1)
        for parameter in self.attention.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            nn.init.normal_(parameter, std=fan_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.stem(x)))


def agreement(write: Callable[..., Any], name: str, *args: Any, **how: Any) -> Any:
    """Differences by size, or why there is no file."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = write(*args, Path(folder) / name, **how)
        except UserError as error:
            return str(error)
    return {"x".join(map(str, shape)): value for shape, value in found.differences.items()}


def mechanisms(done: Record) -> Iterator[tuple[str, Any]]:
    for key in foveate.list_mechanisms():
        if key in done:
            continue
        torch.manual_seed(0)
        model = Between(key).eval()
        yield (
            key,
            {
                runtime: agreement(write, name, model, torch.zeros(1, 3, *TRACED), sizes=SIZES)
                for runtime, (name, write) in RUNTIMES.items()
            },
        )


def models(done: Record, pattern: str) -> Iterator[tuple[str, Any]]:
    batch, *size = MODEL_SIZE
    names = [name for name in foveate.models.list_models(pattern) if name not in done]
    for name in sorted(names, key=lambda name: (cost_order(name), name)):
        torch.manual_seed(0)
        example = torch.zeros(1, 3, *size)
        (images,) = compared_inputs(example, [(batch, *size)], True)
        model = settled(foveate.models.create(name, num_classes=10, image_size=size[0]), images)
        yield (
            name,
            agreement(
                foveate.export.onnx,
                "m.onnx",
                model,
                example,
                sizes=[(batch, *size)],
                fixed_size=True,
            ),
        )


@torch.no_grad()
def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """In evaluation mode. What cannot be computed to five digits untrained is tamed.

    Such a network explodes, or doubles each rounding error many times over. Its branches get a
    tenth of their weight, and its normalisations the statistics of these images, and an epsilon
    that keeps what hardly varies among them small.
    """
    exact = copy.deepcopy(model).double().eval()(images.double())
    if difference(model.eval()(images), exact) < ROUNDING:
        return model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = 1.0, 0.1
            if isinstance(module, GateNorm):
                nn.init.constant_(module.weight, 0.1)
        last = getattr(module, "bn3", getattr(module, "bn2", None))
        if isinstance(last, nn.BatchNorm2d):
            nn.init.constant_(last.weight, 0.1)
    model.train()(images)
    return model.eval()


def cost_order(name: str) -> int:
    """Small hosts first: what is stopped early has seen most mechanisms."""
    order = ("mobilenet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
    return next((rank for rank, host in enumerate(order) if host in name), len(order))


def cell(found: Any) -> str:
    """The worst difference of a file, or a mark for the notes."""
    return f"{max(found.values()):.0e}" if isinstance(found, dict) else "no"


def render(result: Record) -> str:
    """The page."""
    sizes = ", ".join("x".join(map(str, size)) for size in SIZES)
    lines = [
        "# What exports, and how well it agrees",
        "",
        "Written by `python benchmarks/export_matrix.py` from `benchmarks/results/export.json`. "
        "Each number is the largest difference to PyTorch, relative to the largest output, over "
        f"all sizes compared (batch, height, width: {sizes}; traced at 2x{TRACED[0]}x{TRACED[1]}), "
        f"for {CHANNELS} channels, float32, random parameters.",
        "",
        f"| mechanism | {' | '.join(RUNTIMES)} |",
        "| --- |" + " --- |" * len(RUNTIMES),
    ]
    notes = []
    for key, found in sorted(result["mechanisms"].items()):
        lines.append(f"| `{key}` | " + " | ".join(cell(found[r]) for r in RUNTIMES) + " |")
        notes += [f"- `{key}`, {r}: {found[r]}" for r in RUNTIMES if isinstance(found[r], str)]
    lines += ["", *(["Where there is no file:", "", *notes, ""] if notes else [])]
    return "\n".join([*lines, *of_models(result["models"])]) + "\n"


def of_models(found: Record) -> Iterator[str]:
    if not found:
        return
    good = {name: max(one.values()) for name, one in found.items() if isinstance(one, dict)}
    size = "x".join(map(str, MODEL_SIZE))
    total = len(foveate.models.list_models())
    yield "## Named models"
    yield ""
    yield (
        f"ONNX Runtime at {size}: {len(good)} of {len(found)} agree, the worst within "
        f"{max(good.values()):.0e}. {len(found)} of {total} were tried, with random parameters. "
        f"Networks that explode, or that float32 does not compute to {ROUNDING:.0e} untrained, "
        "were tamed first, with weaker branches and the statistics of the images in the "
        "normalisations."
    )
    bad = {name: one for name, one in found.items() if isinstance(one, str)}
    if bad:
        yield ""
        yield from (f"- `{name}`: {reason}" for name, reason in sorted(bad.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="", help="shell pattern of named models")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the measurements")
    parser.add_argument("--render", action="store_true", help="write the page, measure nothing")
    args = parser.parse_args()
    result: Record = {"environment": {}, "mechanisms": {}, "models": {}}
    if args.out.exists():
        result = json.loads(args.out.read_text())
    if not args.render:
        result["environment"] = record.environment(torch.device("cpu"))
        parts = {"mechanisms": mechanisms(result["mechanisms"])}
        if args.models:
            parts["models"] = models(result["models"], args.models)
        for part, entries in parts.items():
            for name, found in entries:
                result[part][name] = found
                args.out.write_text(json.dumps(result, indent=1) + "\n")
                print(name, found, flush=True)
    if args.out == RESULTS:
        PAGE.write_text(render(result))


if __name__ == "__main__":
    main()
