"""A run that is killed or stopped comes to exactly the numbers of one that is not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from foveate.errors import InvalidValueError
from foveate.experiments.run import finished
from foveate.experiments.training.checkpoint import load
from foveate.experiments.training.interrupt import Interrupted
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.learner import Learner

KILLER = Path(__file__).with_name("killed_runs.py")


def outcome(folder):
    """Everything that must be equal: rows without their speed, weights, and test images."""
    rows = read_journal(folder / "metrics.jsonl")
    for row in rows:
        row.pop("images_per_second", None)
    weights = {
        name: t.numpy().tobytes() for name, t in load(folder / "model.safetensors")[0].items()
    }
    return rows, weights, json.loads((folder / "result.json").read_text())["test_correct"]


def test_sigkill_at_random_points_changes_nothing(tmp_path):
    """Adam with a plateau and a thaw: everything that has a state."""
    command = [sys.executable, str(KILLER), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folders = sorted(path for path in tmp_path.iterdir() if path.name != "whole")
    assert len(folders) == 5
    assert finished(tmp_path / "whole").best_epoch < 3  # so the best weights are not the last
    for folder in folders:
        assert outcome(folder) == outcome(tmp_path / "whole"), folder.name


def interrupt_at(monkeypatch, number, times=1):
    """Press Ctrl-C within the given optimiser step."""
    original, steps = Learner.step, []

    def step(self, *args):
        steps.append(None)
        for _ in range(times if len(steps) == number else 0):
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    monkeypatch.setattr(Learner, "step", step)


def test_ctrl_c_ends_the_step_and_saves(tmp_path, monkeypatch):
    config, handler = tiny.config(epochs=2), signal.getsignal(signal.SIGINT)
    tiny.train(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted):
            tiny.train(config, tmp_path / "run")
    rows = read_journal(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    tiny.train(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 4, times=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        tiny.train(tiny.config(), tmp_path)
    assert not isinstance(caught.value, Interrupted)


def test_a_finished_run_is_only_read(tmp_path, monkeypatch):
    first = tiny.train(tiny.config(), tmp_path)
    monkeypatch.setattr(Learner, "step", None)
    assert tiny.train(tiny.config(), tmp_path) == first


def test_a_folder_of_another_run_is_refused(tmp_path):
    tiny.train(tiny.config(epochs=1), tmp_path)
    with pytest.raises(InvalidValueError, match=r"recipe.epochs is 1 there and 2 here"):
        tiny.train(tiny.config(epochs=2), tmp_path)
    with pytest.raises(InvalidValueError, match="mechanism"):
        tiny.train(tiny.config("eca", epochs=1), tmp_path)
    record = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps({**record, "fingerprint": "other"}))
    with pytest.raises(InvalidValueError, match="images or their split changed"):
        tiny.train(tiny.config(epochs=1), tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 4)
    with pytest.raises(Interrupted):
        tiny.train(tiny.config(), tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(InvalidValueError, match=r"checkpoint.safetensors is not a readable"):
        tiny.train(tiny.config(), tmp_path)


def test_the_command_stops_with_130_and_goes_on(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", "import sys, foveate.cli; sys.exit(foveate.cli.main())"]
    command += ["train", "--limit", "100", "--host", "tiny:net", "--epochs", "100000"]
    command += ["--tracker", "none", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(KILLER.parent)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert "epoch 1:" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert errors.strip() == f"foveate: stopped; the same command goes on from {out}"
    assert finished(out) is None
    assert (out / "checkpoint.safetensors").exists()
