"""Reports say what the attention does; looking at it changes no number, and loses no report."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import foveate
import tiny
from foveate.experiments import alone, compare
from foveate.experiments.config import CompareConfig
from foveate.experiments.configfile import parse
from foveate.experiments.reporting import explained
from foveate.experiments.run import finished
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.progress import Watcher
from foveate.experiments.training.snapshots import Snapshots
from foveate.registry import create

EVIL = "<img src=x onerror=alert(1)>"
MEGABYTES = 8


def gates_of(folder: Path) -> list[dict]:
    return [row for row in read_journal(folder / "metrics.jsonl") if "gates" in row]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    run_grid(out)
    return out


def run_grid(out: Path) -> None:
    values = {
        "data": {"name": "digits", "limit": 100},
        "host": "tiny:net",
        "mechanisms": ["cbam", {"key": "nl", "name": "a <b>/c"}],
        "seeds": 2,
        "out": str(out),
        "recipe": {**tiny.RECIPE, "snapshots": 4},
        "explain": 24,
    }
    prepared = compare.prepare(parse(CompareConfig, values))
    compare.compare(prepared, Watcher(), command="foveate compare")


def test_the_report_explains_the_best_run_of_each_mechanism(grid: Path) -> None:
    page = (grid / "report.html").read_text()
    results = json.loads((grid / "results.json").read_text())
    for name in ("cbam", "static"):
        runs = [run for run in results["runs"] if run["mechanism"] == name]
        best = max(runs, key=lambda run: run["val_accuracy"])
        assert f"<summary>{name}, seed {best['seed']}:" in page
        assert (grid / "runs" / f"{name}-seed{best['seed']}" / "diagnosis.json").exists()
        assert (grid / "figures" / f"{name}-gate-evolution.svg").exists()
    assert "<summary>none" not in page
    assert "a &lt;b&gt;/c, seed" in page
    assert (grid / "figures" / "a__b__c-gradients-by-depth.png").exists()
    assert page.index("<summary>cbam") < page.index("<summary>static")
    assert page.count("Class evidence, not attention") >= 3


def test_the_report_stands_alone_and_is_small(grid: Path) -> None:
    page = (grid / "report.html").read_text()
    assert len(page) < MEGABYTES * 2**20
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "data:image/png" not in page


def test_a_diagnosis_is_made_once(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*args: object) -> None:
        raise AssertionError("diagnosed again")

    monkeypatch.setattr(explained, "diagnose", again)
    run_grid(grid)
    assert "It could not be drawn" not in (grid / "report.html").read_text()


def test_what_cannot_be_drawn_loses_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise RuntimeError(f"no {EVIL}")

    monkeypatch.setattr(explained, "sheet", broken)
    config = tiny.config("se")
    alone.run_alone(config, tmp_path / "run", Watcher())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "It could not be drawn: RuntimeError: no &lt;img src=x onerror=alert(1)&gt;" in page
    assert EVIL not in page
    assert finished(tmp_path / "run") is not None


def test_train_writes_a_report(tmp_path: Path) -> None:
    alone.run_alone(tiny.config("cbam"), tmp_path / "run", Watcher())
    page = (tmp_path / "run" / "report.html").read_text()
    result = finished(tmp_path / "run")
    assert result is not None
    assert f"<strong>{result.accuracy:.2f} %</strong>" in page
    assert "What the attention does" in page
    assert (tmp_path / "run" / "figures" / "cbam-right.png").exists()


@pytest.mark.parametrize(("mechanism", "explain"), [(None, 256), ("se", 0)])
def test_there_may_be_nothing_to_explain(
    tmp_path: Path, mechanism: str | None, explain: int
) -> None:
    config = tiny.config(mechanism).model_copy(update={"explain": explain})
    alone.run_alone(config, tmp_path / "run", Watcher())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the attention does" not in page
    assert "Accuracy at each epoch" in page
    assert not (tmp_path / "run" / "diagnosis.json").exists()


def test_without_the_library_of_class_evidence_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    here = {"pytorch_grad_cam": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: here.get(n, find) and find(n, *a)
    )
    alone.run_alone(tiny.config("se"), tmp_path / "run", Watcher())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Class evidence needs: pip install" in page
    assert "Class evidence, not attention" not in page


def test_snapshots_change_no_number(tmp_path: Path) -> None:
    for count in (0, 3, 50):
        tiny.train(tiny.config("cbam", snapshots=count), tmp_path / str(count))
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("0", "3", "50")]
    bodies = [w[8 + int.from_bytes(w[:8], "little") :] for w in weights]  # what follows the header
    assert bodies[0] == bodies[1] == bodies[2]
    assert gates_of(tmp_path / "0") == []
    total = 2 * (100 // 16)
    assert [row["step"] for row in gates_of(tmp_path / "3")] == [0, round(total / 2), total]
    assert [row["step"] for row in gates_of(tmp_path / "50")] == list(range(total + 1))


def test_a_snapshot_is_of_the_weights_of_its_step(tmp_path: Path) -> None:
    """The last one is what the gates of the trained network are, where the last epoch was best."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), create("se", 8, init="identity"))
    images = torch.rand(4, 1, 8, 8)
    snapshots = Snapshots(model, images, count=2, steps=7)
    assert snapshots.steps == {0, 7}
    first = snapshots.take(0)
    nn.init.ones_(model[1].strength)
    last = snapshots.take(7)
    with foveate.record(model) as record:
        model(images)
    gate = record["1"].maps["channel"].flatten().sort().values
    assert first == {"1 channel": [1.0] * 5}
    assert last["1 channel"][2] == pytest.approx(float(gate[round((len(gate) - 1) / 2)]))


class Chancy(nn.Module):
    """Draws random numbers in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_a_snapshot_leaves_the_random_numbers_alone() -> None:
    model = nn.Sequential(Chancy(), nn.Conv2d(1, 8, 3), create("se", 8))
    snapshots = Snapshots(model, torch.rand(4, 1, 8, 8), count=2, steps=7)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    snapshots.take(0)
    assert torch.equal(torch.rand(3), expected)


def test_the_settings_of_looking_are_no_part_of_a_run() -> None:
    config = tiny.config("se")
    looked = config.model_copy(update={"explain": 3})
    recipe = config.recipe.model_copy(update={"snapshots": 0})
    other = config.model_copy(update={"recipe": recipe})
    assert config.identity() == looked.identity() == other.identity()
