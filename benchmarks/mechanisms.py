"""What each mechanism takes on three shapes: time of a forward pass, memory held for training.

Each forward pass, in evaluation mode and without gradients, is timed right after a copy of its
input: the time in copies hardly depends on the machine. All mechanisms take turns in each round.

Usage: python benchmarks/mechanisms.py [--keys se,cbam] [--rounds 15] [--shapes 8x256x56x56,...]
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from foveate import list_mechanisms
from foveate.cost import latency, peak_memory, timing
from foveate.describe.facts import built
from foveate.experiments.training.environment import describe
from foveate.modes import in_mode

SHAPES = "8x256x56x56,8x512x28x28,8x1024x14x14"


class Copy(nn.Module):
    """The unit of time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def measure(keys: Sequence[str], shape: Sequence[int], rounds: int) -> dict[str, dict]:
    """Times and memory of each mechanism on one shape."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    modules = {key: built(key, *shape[1:]).eval() for key in keys}
    times: dict[str, list[tuple[float, float]]] = {key: [] for key in keys}
    for module in (Copy(), *modules.values()):
        latency(module, x, repeats=1, warmup=1)
    for _ in range(rounds):
        for key, module in modules.items():
            copy = latency(Copy(), x, repeats=1, warmup=1).median_ms
            times[key].append((latency(module, x, repeats=1, warmup=0).median_ms, copy))
    return {key: summary(modules[key], x, times[key]) for key in keys}


def summary(module: nn.Module, x: Tensor, times: Sequence[tuple[float, float]]) -> dict:
    forward, copies = timing([own for own, _ in times]), timing([own / copy for own, copy in times])
    with in_mode(module, training=True):
        held = peak_memory(module, x)
    return {
        "forward_ms": {"median": forward.median_ms, "iqr": forward.iqr_ms},
        "copies": {"median": copies.median_ms, "iqr": copies.iqr_ms},
        "held_bytes": held,
        "input_bytes": x.numel() * x.element_size(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", default=",".join(list_mechanisms()))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mechanisms.json"))
    args = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    results = {}
    for shape in args.shapes.split(","):
        sides = [int(side) for side in shape.split("x")]
        results[shape] = measure(args.keys.split(","), sides, args.rounds)
        print(f"{shape} measured", flush=True)
    environment = {**describe(Fabric(accelerator="cpu")), "load_before": load}
    result = {"environment": environment, "rounds": args.rounds, "shapes": results}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
