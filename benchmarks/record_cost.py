"""What recording costs: a ResNet-50 with CBAM in every block, 8 images of 224 px, in turns.

Usage: python benchmarks/record_cost.py [--out FILE]
"""

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch

import foveate
from gatebench import record
from gatebench.clock import Contender, quartiles, ratios, take_turns

OUT = record.ROOT / "benchmarks/results/record_cost.json"
ROUNDS = (11, 51)
CPU = torch.device("cpu")


def main() -> None:
    from torchvision.models import resnet50

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="file of the measurements")
    args = parser.parse_args()
    environment = record.environment(CPU)
    torch.manual_seed(0)
    model = resnet50().eval()
    foveate.insert(model, "cbam", where="residual", init="paper")
    images = torch.randn(8, 3, 224, 224)

    def recorded() -> None:
        with foveate.record(model):
            model(images)

    contenders = [
        Contender("plain", torch.no_grad()(lambda: model(images)), nullcontext),
        Contender("recorded", torch.no_grad()(recorded), nullcontext),
    ]
    times = take_turns(contenders, CPU, ROUNDS)
    result = {
        "environment": environment,
        "milliseconds": {name: quartiles(values) for name, values in times.items()},
        "slower": ratios(times, "recorded", "plain"),
        "rounds": len(times["plain"]),
    }
    record.write(result, args.out)
    print(result["milliseconds"], "recorded takes", result["slower"], "times as long")


if __name__ == "__main__":
    main()
