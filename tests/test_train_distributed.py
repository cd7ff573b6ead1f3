"""Two processes under torchrun learn one network, and the one that a single process learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from foveate.experiments.training.checkpoint import load
from foveate.experiments.training.journal import read_journal


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("ddp")
    script = Path(__file__).with_name("ddp_runs.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [(out / f"world-{rank}.json").read_text() for rank in (0, 1)] == ["2", "2"]
    return out


@pytest.mark.parametrize("name", ["plain", "normed"])
def test_both_processes_have_the_same_weights_and_numbers(runs, name):
    (first, numbers), (second, others) = (
        load(runs / f"{name}-{rank}.safetensors") for rank in (0, 1)
    )
    assert numbers == others
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_numbers_are_those_of_one_process_with_the_whole_batch(runs, tmp_path):
    config = tiny.config("none", host="tiny:plain", batch_size=16, augment="none", clip_norm=1.0)
    tiny.train(config, tmp_path)
    alone, together = (read_journal(f / "metrics.jsonl") for f in (tmp_path, runs / "plain"))
    assert len(alone) == len(together) > 2
    for row, other in zip(alone, together, strict=True):
        row.pop("images_per_second", None)
        other.pop("images_per_second", None)
        assert other == pytest.approx(row, rel=1e-5)
