"""Which form of identity transfers best: measured on photographs, from real ImageNet weights.

Each mechanism is put into MobileNetV2 in four forms and fine-tuned on a set of 12 kinds of
flowers, with the same seeds, batches and recipe:

- ``paper``: the published form, which disturbs the features it is put into;
- ``strength``: ``x * (1 + a * (gate - 1))`` with a learned ``a`` that starts at zero;
- ``rescaled``: ``x * 2 * gate`` with a last layer that starts at zero;
- ``none``: no attention.

Usage: python benchmarks/identity_form.py SHARED_DATA [--seeds 3] [--epochs 4]
SHARED_DATA holds ``flowers12/`` (train and test folders) and the weights file.
"""

import argparse
import itertools
import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn

from foveate.hosts.folded import give_statistics
from foveate.insertion import insert
from foveate.mechanisms.base import Gate

LAST_LAYERS = {
    "se": ("fc2",),
    "eca": ("conv",),
    "cbam": ("channel_gate.fc2", "spatial_gate.bn"),
    "coord": ("conv_h", "conv_w"),
}
FORMS = ("paper", "strength", "rescaled")
SIZE = 96


def images(folder: Path) -> tuple[Tensor, Tensor]:
    files = sorted(folder.glob("*/*.jpg"))
    classes = sorted({file.parent.name for file in files})
    pixels = np.stack(
        [np.asarray(Image.open(f).convert("RGB").resize((SIZE, SIZE))) for f in files]
    )
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, labels


def host(weights: Path, seed: int, calibration: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model("mobilenetv2_100", pad_type="same", num_classes=12)
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}
    model.load_state_dict({k: v for k, v in state.items() if "classifier" not in k}, strict=False)
    give_statistics(model, calibration)
    nn.init.zeros_(model.classifier.weight)
    return model


class _Doubled(nn.Module):
    """The rescaled form of a gate in its published form."""

    def __init__(self, gate: Gate, key: str) -> None:
        super().__init__()
        self.gate = gate
        for name in LAST_LAYERS[key]:
            for parameter in gate.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
        gate.temper = lambda g: 2 * g

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


def put(model: nn.Module, key: str, form: str, seed: int) -> None:
    torch.manual_seed(1000 + seed)
    init = "identity" if form == "strength" else "paper"
    handle = insert(model, key, where="residual", init=init, example=torch.zeros(1, 3, SIZE, SIZE))
    if form == "rescaled":
        for name, module in handle.modules.items():
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, _Doubled(module, key))


def fit(model: nn.Module, data: dict, seed: int, epochs: int, optimizer_name: str) -> dict:
    x, y = data["train"]
    if optimizer_name == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    steps = epochs * (len(x) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in optimizer.param_groups], total_steps=steps
    )
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(97 * seed + epoch))
        model.train()
        for batch in order[: len(x) // 32 * 32].split(32):
            torch.manual_seed(seed * 10_000 + len(losses))
            images = x[batch].flip(3) if len(losses) % 2 else x[batch]
            loss = F.cross_entropy(model(images), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    model.eval()
    x, y = data["test"]
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in x.split(60)])
    correct = (logits.argmax(1) == y).float().mean().item()
    return {
        "accuracy": 100 * correct,
        "test_loss": F.cross_entropy(logits, y).item(),
        "first_loss": losses[0],
        "mean_train_loss": float(np.mean(losses)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adamw"])
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], help="results to add to")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/identity_form.json"))
    args = parser.parse_args()
    weights = args.weights or args.data / "mobilenetv2_100.imagenet.safetensors"
    data = {split: images(args.data / "flowers12" / split) for split in ("train", "test")}
    runs = [run for path in args.earlier for run in json.loads(path.read_text())["runs"]]
    done = {(run["optimizer"], run["seed"], run["mechanism"], run["form"]) for run in runs}
    for optimizer in args.optimizers:
        for seed in range(args.seeds):
            for key, form in [("none", "none"), *((k, f) for k in LAST_LAYERS for f in FORMS)]:
                if (optimizer, seed, key, form) in done:
                    continue
                model = host(weights, seed, data["train"][0][::4])
                if key != "none":
                    put(model, key, form, seed)
                row = fit(model, data, seed, args.epochs, optimizer)
                runs.append(
                    {"optimizer": optimizer, "mechanism": key, "form": form, "seed": seed, **row}
                )
                print(runs[-1], flush=True)
    save(args, runs)


def save(args: argparse.Namespace, runs: list[dict]) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "question": "which identity form transfers best to 12 kinds of flowers",
        "host": "timm mobilenetv2_100, ImageNet weights, 96 px",
        "epochs": args.epochs,
        "commit": commit,
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "runs": runs,
        "differences": [d for o in args.optimizers for d in differences(runs, o)],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


def differences(runs: list[dict], optimizer: str) -> list[dict]:
    """Paired over mechanism and seed: each form against each other one."""
    by = {(r["mechanism"], r["seed"], r["form"]): r for r in runs if r["optimizer"] == optimizer}
    pairs = {key[:2] for key in by if key[0] != "none"}
    found = []
    for form, against in itertools.combinations(FORMS, 2):
        for metric in ("accuracy", "test_loss", "mean_train_loss"):
            values = [by[(*p, form)][metric] - by[(*p, against)][metric] for p in sorted(pairs)]
            interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
            found.append(
                {
                    "optimizer": optimizer,
                    "form": form,
                    "against": against,
                    "metric": metric,
                    "pairs": len(values),
                    "mean": float(np.mean(values)),
                    "interval": [float(end) for end in interval],
                }
            )
    return found


if __name__ == "__main__":
    main()
