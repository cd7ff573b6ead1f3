"""Results of comparisons that never ran, shaped like real ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foveate.experiments.reporting.results import Cost, Curves, Results, RunResult, Site

IMAGES = 360
ADDED = {"none": 0, "static": 0.002, "se": 0.02, "eca": 0.0001, "cbam": 0.023, "coord": 0.03}


def results_of(accuracies: Mapping[str, Sequence[float | None]], **fields: Any) -> Results:
    """Results with the given test accuracies, one a seed; None is a failed run."""
    runs = [
        RunResult(
            mechanism=key,
            seed=seed,
            status="failed" if value is None else "finished",
            reason="the loss became NaN at step 12" if value is None else None,
            test_accuracy=value,
        )
        for key, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return Results(**{**describe(), **fields}, runs=runs)


def describe() -> dict[str, Any]:
    return {
        "foveate": "0.1.0",
        "created": "2026-11-21T10:00:00+00:00",
        "command": "foveate compare --mechanisms se,cbam --seeds 5 --out demo-report",
        "config": {
            "data": {"name": "digits", "image_size": 32, "val_fraction": 0.1},
            "host": "small_cnn",
            "mechanisms": ["se", "cbam"],
            "recipe": {"epochs": 30, "batch_size": 64, "lr": 0.001, "augment": "auto"},
        },
        "environment": {
            "python": "3.11.9",
            "torch": "2.15.0",
            "device": "Intel(R) Xeon(R) CPU @ 2.20GHz",
            "threads": 2,
            "commit": "6ea8347c0ffee",
        },
        "data": {
            "name": "digits",
            "classes": [str(digit) for digit in range(10)],
            "sizes": {"train": 1257, "val": 180, "test": IMAGES},
            "image_size": 32,
            "record": {"split_seed": 0, "fingerprint": "9f86d081884c7d659a2feaa0c55ad015"},
        },
        "host": "small_cnn",
    }


def realistic(
    mechanisms: Sequence[str], *, seeds: int, epochs: int = 30, steps: int = 20, **fields: Any
) -> Results:
    """Results whose runs have curves, correct images and costs, drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    easy = rng.beta(12, 0.5, IMAGES)
    runs = [
        _run(key, seed, 0.01 * (index % 4) ** 2 / 3, easy, rng, epochs, steps)
        for index, key in enumerate(mechanisms)
        for seed in range(seeds)
    ]
    costs = {key: _cost(index, key) for index, key in enumerate(mechanisms)}
    sites = {
        key: [Site(name=f"blocks.{i}.relu", channels=32 * 2**i, height=32 >> i, width=32 >> i)]
        for i, key in enumerate(mechanisms[:3])
        if key != "none"
    }
    return Results(**{**describe(), **fields}, runs=runs, costs=costs, sites=sites)


def _run(
    key: str, seed: int, gain: float, easy: Any, rng: Any, epochs: int, steps: int
) -> RunResult:
    correct = rng.random(IMAGES) < np.clip(easy + gain + 0.003 * rng.standard_normal(), 0, 1)
    t = np.arange(1, epochs * steps + 1)
    loss = 2.3 * np.exp(-t / (4.0 * steps)) + 0.05 + 0.05 * rng.gamma(2, 1, t.size)
    epoch = np.arange(1, epochs + 1)
    accuracy = 100 * correct.mean() - 60 * np.exp(-epoch / 3) - rng.random(epochs)
    return RunResult(
        mechanism=key,
        seed=seed,
        status="finished",
        test_accuracy=100 * float(correct.mean()),
        val_accuracy=float(accuracy.max()),
        best_epoch=int(accuracy.argmax()) + 1,
        test_correct=correct.tolist(),
        images_per_second=float(2900 + 100 * rng.standard_normal()),
        wall_seconds=float(17 + rng.random()),
        curves=Curves(
            step=t.tolist(),
            train_loss=loss.tolist(),
            epoch=epoch.tolist(),
            epoch_train_loss=loss[steps - 1 :: steps].tolist(),
            train_accuracy=np.minimum(100, accuracy + 1).tolist(),
            val_loss=(loss[steps - 1 :: steps] + 0.05).tolist(),
            val_accuracy=np.clip(accuracy, 0, 100).tolist(),
            lr=[0.001 * (1 + math.cos(math.pi * e / epochs)) / 2 for e in epoch],
        ),
    )


def _cost(index: int, key: str) -> Cost:
    host = 1_147_466
    added = int(host * ADDED.get(key, 0.01 * index))
    return Cost(
        parameters=host + added,
        added_parameters=added,
        flops=11_500_000 + 30_000 * index,
        latency_ms=3.2 + 0.31 * index,
        latency_iqr_ms=0.1,
        peak_memory_bytes=57_000_000 + 3_100_000 * index,
        images_per_second=3000.0 - 120 * index,
    )
