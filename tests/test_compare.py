import json
import shutil
import signal

import pytest
from filelock import FileLock

import tiny
from foveate.errors import InvalidValueError
from foveate.experiments import compare as compare_module
from foveate.experiments.compare import Grid, compare, prepare
from foveate.experiments.config import CompareConfig
from foveate.experiments.configfile import parse
from foveate.experiments.reporting.results import Results
from foveate.experiments.training.interrupt import Interrupted
from foveate.experiments.training.journal import read_journal
from foveate.experiments.training.learner import Learner
from foveate.experiments.training.progress import Watcher


def grid(out, **changes) -> Grid:
    values = {
        "data": {"name": "digits", "limit": 100},
        "host": "tiny:net",
        "mechanisms": ["se"],
        "recipe": {**tiny.RECIPE, "epochs": 1},
        "out": out,
        "explain": 0,  # which has tests of its own
    }
    return prepare(parse(CompareConfig, {**values, **changes}))


def run_grid(made: Grid) -> Results:
    return compare(made, Watcher(), command="foveate compare")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole comparison; tests must not change its folder."""
    out = tmp_path_factory.mktemp("compare")
    return run_grid(grid(out)), out


def test_it_leaves_report_results_and_runs(done):
    results, out = done
    assert Results.from_json(out / "results.json") == results
    for name in ("report.html", "results.csv", "config.yaml", "environment.json"):
        assert (out / name).stat().st_size
    assert {path.name for path in (out / "runs").iterdir()} == {
        f"{name}-seed{seed}" for name in ("none", "static", "se") for seed in (0, 1, 2)
    }
    assert {run.status for run in results.runs} == {"finished"}
    assert [c.mechanism for c in results.comparisons] == ["static", "se"]


def test_runs_of_one_seed_are_paired(done):
    _, out = done
    first = {
        path.name: next(r for r in read_journal(path / "metrics.jsonl") if "loss" in r)["loss"]
        for path in (out / "runs").iterdir()
    }
    for seed in (0, 1, 2):
        assert len({first[f"{name}-seed{seed}"] for name in ("none", "static", "se")}) == 1
    assert len(set(first.values())) == 3


def test_costs_are_those_of_the_networks(done):
    results, _ = done
    none, se = results.costs["none"], results.costs["se"]
    assert none.parameters == 80 + 16 + 1168 + 32 + 170
    assert none.flops == 8 * 64 * 9 + 16 * 16 * 72 + 160
    assert (
        se.added_parameters
        == se.parameters - none.parameters
        == sum(2 * c * max(1, c // 16) + c + max(1, c // 16) + 1 for c in (8, 16))
    )
    assert se.peak_memory_bytes > none.peak_memory_bytes > 16 * 8 * 64 * 4
    assert [(site.channels, site.height) for site in results.sites["se"]] == [(8, 8), (16, 4)]
    assert none.images_per_second in [
        run.images_per_second for run in results.runs if run.mechanism == "none"
    ]


def test_finished_runs_are_not_repeated(done, monkeypatch):
    results, out = done
    monkeypatch.setattr(Learner, "step", None)
    again = run_grid(grid(out))
    assert again.runs == results.runs


def test_the_order_is_interleaved_and_of_chance(tmp_path):
    cells = grid(tmp_path, seeds=6, mechanisms="se,eca,cbam").runs
    blocks = [cells[start : start + 5] for start in range(0, 30, 5)]
    assert [{cell.seed for cell in block} for block in blocks] == [{seed} for seed in range(6)]
    orders = [tuple(cell.label for cell in block) for block in blocks]
    assert {frozenset(order) for order in orders} == {
        frozenset(("none", "static", "se", "eca", "cbam"))
    }
    assert len(set(orders)) > 1
    assert cells == grid(tmp_path, seeds=6, mechanisms="se,eca,cbam").runs


def test_a_run_that_fails_is_recorded_and_tried_again(tmp_path, monkeypatch):
    made = grid(tmp_path, seeds=2)
    original = compare_module.run

    def fail(config, *rest):
        if (config.label, config.seed) == ("se", 1):
            raise RuntimeError("out of\nmemory")
        return original(config, *rest)

    monkeypatch.setattr(compare_module, "run", fail)
    (failed,) = run_grid(made).failed()
    assert (failed.mechanism, failed.seed) == ("se", 1)
    assert failed.reason == "RuntimeError: out of memory"
    assert "Traceback" in (tmp_path / "runs" / "se-seed1" / "error.txt").read_text()
    monkeypatch.setattr(compare_module, "run", original)
    assert run_grid(made).failed() == []
    assert not (tmp_path / "runs" / "se-seed1" / "error.txt").exists()


def test_a_loss_that_is_not_finite_fails_its_run(tmp_path):
    recipe = {**tiny.RECIPE, "optimizer": "sgd", "lr": 1e30, "warmup_epochs": 0}
    results = run_grid(grid(tmp_path, recipe=recipe, seeds=1))
    assert len(results.failed()) == 3
    assert all("loss became" in run.reason for run in results.failed())
    assert (tmp_path / "report.html").exists()


def test_an_interrupted_comparison_goes_on_to_the_same_numbers(tmp_path, done):
    whole, _ = done
    original, steps = Learner.step, []

    def step(self, *args):
        steps.append(None)
        if len(steps) == 9:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step)
        with pytest.raises(Interrupted):
            run_grid(grid(tmp_path))
    results = run_grid(grid(tmp_path))
    assert [run.test_correct for run in results.runs] == [run.test_correct for run in whole.runs]
    assert [c.difference for c in results.comparisons] == [c.difference for c in whole.comparisons]


def test_other_settings_are_refused_before_anything_is_written(done, tmp_path):
    _, out = done
    with pytest.raises(InvalidValueError, match=r"recipe.batch_size is 16 there and 8 here"):
        grid(out, recipe={**tiny.RECIPE, "epochs": 1, "batch_size": 8})


def test_another_grid_takes_the_runs_that_are_there(done, tmp_path):
    results, whole = done
    out = shutil.copytree(whole, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", None)
        fewer = run_grid(grid(out, mechanisms=[], seeds=[2, 0]))
    assert [run.seed for run in fewer.runs] == [2, 2, 0, 0]
    assert all(run in results.runs for run in fewer.runs)


def test_two_processes_do_not_share_a_folder(tmp_path):
    made = grid(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(InvalidValueError, match="another pr"):
        run_grid(made)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidValueError, match=r"cannot write to .*file"):
        run_grid(grid(tmp_path / "file" / "out"))


def test_the_record_says_what_the_data_were(done):
    results, out = done
    data = tiny.digits()
    assert results.data["sizes"] == {"train": 100, "val": 100, "test": 100}
    assert results.data["record"]["fingerprint"] == data.record["fingerprint"]
    config = json.loads((out / "results.json").read_text())["config"]
    assert config == grid(out).config.model_dump(mode="json")
