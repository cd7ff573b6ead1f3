"""Networks trained on photographs of flowers, and every picture and table that explains them.

Writes ``docs/gallery.md`` and ``docs/images/gallery/``. Runs that are finished are not repeated;
on two cores all of it takes about 25 minutes, most of it training.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from foveate import explain, figures
from foveate.experiments.alone import run_alone
from foveate.experiments.config import RunConfig
from foveate.experiments.configfile import parse
from foveate.experiments.data.load import Data, load_data
from foveate.experiments.reporting.results import RunResult
from foveate.experiments.run import finished
from foveate.experiments.saved import MODEL
from foveate.experiments.subject import Subject, trained
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.progress import Lines
from foveate.printing import as_text

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "images" / "gallery"
HOST = "timm:mobilenetv2_100?pad_type=same"
RUNS: dict[str, dict[str, Any]] = {
    "cbam": {"mechanism": {"key": "cbam", "init": "paper"}, "epochs": 20, "lr": 1e-3},
    "cbam-identity": {"mechanism": {"key": "cbam"}, "epochs": 12, "lr": 5e-4},
    "nl": {"mechanism": {"key": "nl", "where": "stage"}, "epochs": 12, "lr": 5e-4},
}
FAITHFUL = 96
"""Test images on which maps are judged."""


def main() -> None:
    """Train what is not there yet, draw, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of flowers12")
    parser.add_argument("--weights", required=True, help="ImageNet weights of MobileNetV2")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the trained networks")
    arguments = parser.parse_args()
    data = load_data(arguments.data)
    subjects, results = {}, {}
    for name, settings in RUNS.items():
        folder = arguments.runs / name
        results[name] = train(settings, folder, arguments.data, arguments.weights)
        subjects[name] = trained(folder / MODEL)
        subjects[name].module.eval()
    PICTURES.mkdir(parents=True, exist_ok=True)
    parts = page(subjects, results, data, arguments.runs)
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def train(settings: dict[str, Any], folder: Path, data: str, weights: str) -> RunResult:
    """The result of one run, trained now or before."""
    before = finished(folder)
    if before is not None:
        return before
    recipe = {"epochs": settings["epochs"], "lr": settings["lr"], "batch_size": 32}
    values = {
        "data": data,
        "host": HOST,
        "pretrained": weights,
        "mechanism": settings["mechanism"],
        "recipe": {**recipe, "tracker": "none"},
        "explain": 0,
    }
    return run_alone(parse(RunConfig, values), folder, Lines(Console()))


def page(
    subjects: dict[str, Subject], results: dict[str, RunResult], data: Data, runs: Path
) -> Iterator[str]:
    """The parts of the page; draws what they show."""
    cbam, right = subjects["cbam"], results["cbam"].test_correct or []
    accuracies = {name: f"{result.accuracy:.1f} %" for name, result in results.items()}
    yield INTRODUCTION.format(**{name.replace("-", "_"): a for name, a in accuracies.items()})
    yield "## One image\n\nGates of the network with `cbam`, for a test image that it gets right:"
    yield picture("right", sheet(cbam, data, right.index(True)), "A sheet of one image")
    yield "and for one that it gets wrong:"
    yield picture("wrong", sheet(cbam, data, right.index(False)), "A sheet of an image got wrong")
    yield (
        "With `nl`, positions read each other; the crosses mark who reads: the middle of the\n"
        "image, and where the evidence for the class is strongest."
    )
    nl = results["nl"].test_correct or []
    yield picture("affinity", sheet(subjects["nl"], data, nl.index(True)), "Affinities of a point")
    yield "## Over the test images"
    batches = cbam.batches(data)
    for name, figure in explain.over_data(cbam.module, batches, cbam.classes).items():
        yield picture(name, figure, name.replace("-", " "))
    rows = [r for r in read_journal(runs / "cbam" / "metrics.jsonl") if "gates" in r]
    moved = explain.evolution([r["step"] for r in rows], [r["gates"] for r in rows])
    yield picture("gate-evolution", moved, "Gates while the network learned")
    yield DIAGNOSES
    for name in ("cbam", "cbam-identity"):
        found = explain.diagnose(subjects[name].module, batches)
        yield f"`{name}`, {accuracies[name]}:\n\n```text\n{as_text(found)}\n```"
    yield FAITHFULNESS.format(count=FAITHFUL)
    found = faithfulness(cbam, data)
    yield picture("faithfulness", found.figure(), "Deletion and insertion curves")
    yield verdict(found)


def sheet(subject: Subject, data: Data, index: int) -> figures.Figure:
    """The sheet of one test image."""
    (image, label), *_ = subject.batches(data, chosen=[index])
    return explain.sheet(subject.module, image, feed=subject.feed, label=int(label))


def faithfulness(subject: Subject, data: Data) -> explain.Faithfulness:
    """Gates of positions against class activation maps, on the same images."""
    batches = subject.batches(data, limit=FAITHFUL, batch_size=FAITHFUL)
    images = batches[0][0]
    gates = explain.spatial_gates(subject.module, images)
    size = images.shape[2:]
    with torch.no_grad():
        target = subject.module(images).argmax(1).tolist()
    first, *_, last = gates.values()
    maps = {
        "gate, first layer": first,
        "gate, last layer": last,
        "gates, mean of layers": explain.mean_of_layers(list(gates.values()), size),
        **{
            explain.CAMS[method][0]: torch.cat(
                [
                    explain.class_evidence(
                        subject.module, images[i : i + 8], target=target[i : i + 8], method=method
                    )
                    for i in range(0, len(images), 8)
                ]
            )
            for method in ("gradcam", "gradcam++", "layercam")
        },
    }
    return explain.faithfulness(subject.module, images, maps)


def verdict(found: explain.Faithfulness) -> str:
    """A table of the gains over chance."""
    lines = ["| map | deletion | insertion |", "| --- | --- | --- |"]
    gains = {kind: found.gains(kind) for kind in ("deletion", "insertion")}
    for name in gains["deletion"]:
        cells = (
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gains[kind][name])
            for kind in ("deletion", "insertion")
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    better = [n for n in gains["deletion"] if all(g[n][1] > 0 for g in gains.values())]
    rest = [n for n in gains["deletion"] if n not in better]
    told = f"Better than chance in both curves: {'; '.join(better) or 'none'}."
    return "\n".join([*lines, "", f"{told} Not in both: {'; '.join(rest) or 'none'}."])


def picture(name: str, figure: figures.Figure, label: str) -> str:
    """Write a figure, and return the words that show it."""
    drawn = Image.open(io.BytesIO(figures.png(figure))).convert("RGB")
    drawn.save(PICTURES / f"{name}.webp", quality=82, method=6)
    return f"![{label}](images/gallery/{name}.webp)"


INTRODUCTION = """# Gallery

MobileNetV2 with its ImageNet weights, fine-tuned on 720 photographs of 12 kinds of flowers at
128 x 128 pixels and tested on 240 others. Three networks:

| network | attention | test accuracy |
| --- | --- | --- |
| `cbam` | as published, with fresh gates around 0.5; 20 epochs | {cbam} |
| `cbam-identity` | the same, inserted as the identity; 12 epochs, half the rate | {cbam_identity} |
| `nl` | non-local blocks after the stages, as the identity; 12 epochs, half the rate | {nl} |

One seed each, so these accuracies say nothing about which is better: that is what
`foveate compare` is for. The page and its pictures are written by `benchmarks/gallery.py`."""

DIAGNOSES = """## What the attention does

The same mechanism twice, as published and inserted as the identity. Drawn on a scale of their own,
gates that hardly differ look as busy as those that do; what the network loses without them tells
the two apart."""

FAITHFULNESS = """## Is a gate an explanation?

Pixels are blurred, or brought back into the blurred image, in the order in which a map ranks them,
and the probability of the predicted class is watched ({count} test images, `cbam`). A map that
knows what the network looks at loses the class early, and brings it back early. Below: how much
better each map is than a random one of 8 x 8 cells, in mean probability over the curve, with 95 %
intervals over the images, paired. `centre` knows nothing of the network: it says that the subject
of a photograph is in the middle, and a map that is no better has not shown that it knows more."""

if __name__ == "__main__":
    main()
