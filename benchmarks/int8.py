"""What eight bits cost and give: trained networks before and after static quantisation.

Calibrated on training images, judged on all test images. Writes `benchmarks/results/int8.json` and
`docs/int8.md`.

Usage: python benchmarks/int8.py --data FLOWERS12 RUN [RUN ...]
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from foveate import export
from foveate.experiments.data.load import Data, load_data
from foveate.experiments.saved import MODEL
from foveate.experiments.subject import Subject, trained
from gatebench import record

RESULTS = record.ROOT / "benchmarks/results/int8.json"
PAGE = record.ROOT / "docs/int8.md"
CALIBRATION = 128
BATCH = 8
WAYS = {"attention in float": False, "attention in int8 too": True}
SHOWN = 12


def measure(subject: Subject, data: Data) -> dict[str, Any]:
    """One network in eight bits, with its gates in floating point and without."""
    calibration = [x for x, _ in subject.batches(data, split="train", limit=CALIBRATION)]
    test = subject.batches(data)
    images = sum(len(labels) for _, labels in test)

    def accuracy(runner: export.Runner) -> float:
        return 100 * sum(int((runner(x).argmax(1) == y).sum()) for x, y in test) / images

    size = subject.image_size
    found = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        source = Path(folder) / "float.onnx"
        example = torch.zeros(1, len(subject.mean), size, size)
        export.onnx(subject.module, example, source, fixed_size=True)
        for way, gates in WAYS.items():
            batches = [calibration[0][:BATCH], *calibration]
            made = export.int8(
                source, Path(folder) / "q.onnx", batches, accuracy, max_drop=100, gates=gates
            )
            found[way] = {**dataclasses.asdict(made), "kept": len(made.kept)}
    return {"images": images, "size": size, "ways": found}


def render(result: dict[str, Any]) -> str:
    environment = result["environment"]
    lines = [
        "# Eight bits, measured",
        "",
        f"Written by `python benchmarks/int8.py` from `benchmarks/results/int8.json`, on "
        f"{environment['device']}, {environment['threads']} threads, ONNX Runtime. Weights by "
        f"channel, activations by tensor, ranges from {CALIBRATION} training images; times are of "
        f"a batch of {BATCH}, float and int8 in turns, median.",
        "",
        "| network | | accuracy, % | points lost | ms | times as fast | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, network in result["networks"].items():
        first = next(iter(network["ways"].values()))
        rows = {"float": ("before", "float", first)}
        rows |= {way: ("after", "int8", made) for way, made in network["ways"].items()}
        for way, (side, kind, made) in rows.items():
            time = made["times"]["float"]["median_ms"] / made["times"][kind]["median_ms"]
            lines.append(
                f"| `{name}` | {way} | {made[side]:.1f} | {made['before'] - made[side]:.1f} "
                f"| {made['times'][kind]['median_ms']:.1f} | {time:.2f} "
                f"| {made['sizes'][kind] / 2**20:.1f} |"
            )
    lines += [
        "",
        f"{next(iter(result['networks'].values()))['images']} test images: a point is "
        "between two and three of them.",
    ]
    for name, network in result["networks"].items():
        layers = sorted(next(iter(network["ways"].values()))["layers"], key=lambda one: one["snr"])
        lines += [
            "",
            f"## `{name}`: layers with the least signal to noise",
            "",
            "| layer | dB |",
            "| --- | --- |",
            *(f"| `{one['name']}` | {one['snr']:.1f} |" for one in layers[:SHOWN]),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trained networks")
    parser.add_argument("--data", required=True, help="folder of flowers12")
    args = parser.parse_args()
    data = load_data(args.data)
    result: dict[str, Any] = {"environment": record.environment(torch.device("cpu"))}
    result["networks"] = {run.name: measure(trained(run / MODEL), data) for run in args.runs}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(render(result))


if __name__ == "__main__":
    main()
