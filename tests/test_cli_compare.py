import json
import re
import sys

import pytest
import yaml

from foveate.cli import main
from foveate.experiments.configfile import read_yaml

SMALL = ["--data", "digits", "--limit", "100", "--host", "tiny:net", "--tracker", "none"]
SMALL += ["--epochs", "1", "--batch-size", "16", "--set", "explain=0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mechanisms", "se,cbm"], "unknown mechanism 'cbm'; did you mean 'cbam'?"),
        (["--host", "resnet19"], "unknown host 'resnet19'"),
        (["--data", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--where", "residul"], "'residul'"),
        (["--at", "nothing.*"], "nothing.*"),
        (["--init", "zero"], "unknown init 'zero'"),
        (["--seeds", "0"], "seeds: must be at least 1"),
        (["--seeds", "one"], "seeds: must be a count or a list of seeds"),
        (["--epochs", "0"], "recipe.epochs: must be greater than or equal to 1, but got 0"),
        (["--epochs", "two"], "'--epochs': Input should be a valid integer"),
        (["--lr", "-1"], "recipe.lr: must be greater than 0"),
        (["--optimizer", "lion"], "must be 'sgd', 'adam' or 'adamw', but got 'lion'"),
        (["--augment", "ful"], "unknown augment 'ful'; did you mean 'full'?"),
        (["--tracker", "mlflow"], "foveate[mlflow]"),
        (["--accelerator", "tpu"], "recipe.accelerator: must be"),
        (["--set", "recipe.epoch=3"], "did you mean 'recipe.epochs'?"),
        (["--set", "recipe.epochs"], "--set takes KEY=VALUE"),
        (["--config", "missing.yaml"], "cannot read the configuration missing.yaml"),
        (["--limit", "3"], "limit must be at least 1 image a class"),
        (["--mechanism", "se"], "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(["compare", *SMALL, "--out", "out", *options]) == 2
    written = capsys.readouterr()
    assert message in written.err
    assert len(written.err.splitlines()) == 1
    assert written.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["compare", *SMALL, "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_options_override_the_file_and_json_stands_alone(tmp_path, capsys):
    path, out = tmp_path / "c.yaml", tmp_path / "out"
    values = {
        "data": {"name": "digits", "limit": 100},
        "host": "tiny:net",
        "mechanisms": [{"key": "se", "options": {"reduction": 2}}],
        "recipe": {"epochs": 1, "batch_size": 50, "tracker": "none", "lr": 0.5},
        "seeds": [4],
        "explain": 0,
    }
    path.write_text(yaml.safe_dump(values))
    options = ["--lr", "0.25", "--set", "recipe.label_smoothing=0.1", "--out", str(out), "--json"]
    assert main(["compare", "--config", str(path), *options]) == 0
    written = capsys.readouterr()
    results = json.loads(written.out)
    assert {run["seed"] for run in results["runs"]} == {4}
    assert "report: " in written.err
    saved = read_yaml(out / "config.yaml")
    assert saved["recipe"]["lr"] == 0.25
    assert saved["recipe"]["label_smoothing"] == 0.1
    assert saved["recipe"]["batch_size"] == 50
    assert results["config"] == saved
    assert main(["compare", "--config", str(out / "config.yaml")]) == 0  # the saved one is whole


def test_the_verdicts_and_the_report_are_shown(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", *SMALL, "--mechanisms", "se", "--seeds", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^se .*(better|worse|not distinguishable)", shown, re.MULTILINE)
    assert shown.rstrip().endswith(f"report: {out / 'report.html'}")
    assert shown.count("% on test") == 9


def test_only_failures_are_an_exit_code_of_1(tmp_path, capsys):
    wild = ["--lr", "1e30", "--optimizer", "sgd", "--set", "recipe.warmup_epochs=0"]
    out = ["--seeds", "1", "--mechanisms", "se", "--out", str(tmp_path / "out")]
    assert main(["compare", *SMALL, *wild, *out]) == 1
    assert "loss became" in capsys.readouterr().out
