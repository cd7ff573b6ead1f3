import json
import sys

import pytest

from foveate.cli import main
from foveate.experiments.configfile import read_yaml

SMALL = ["--data", "digits", "--limit", "100", "--host", "tiny:net", "--tracker", "none"]
SMALL += ["--epochs", "1", "--batch-size", "16"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mechanism", "cbm"], "unknown mechanism 'cbm'; did you mean 'cbam'?"),
        (["--where", "post"], "mechanism.key: Field required"),
        (["--host", "tiny:nets"], "nets"),
        (["--seed", "-1"], "seed: must be greater than or equal to 0, but got -1"),
        (["--batch-size", "0"], "recipe.batch_size: must be greater than or equal to 1"),
        (["--pretrained", "none.safetensors"], "none.safetensors"),
        (["--set", "mechanism.options={reduction: 0}", "--mechanism", "se"], "reduction=0"),
        (["--set", "mechanism.options={ratio: 4}", "--mechanism", "se"], "ratio"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert main(["train", *SMALL, "--out", str(out), *options]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not out.exists()


def test_it_trains_tests_and_keeps_the_weights(tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", *SMALL, "--mechanism", "cbam", "--where", "post", "--out", str(out)]
    assert main([*command, "--set", "mechanism.options.reduction=4"]) == 0
    shown = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert f"test accuracy {result['test_accuracy']:.2f} %" in shown
    assert (out / "model.safetensors").exists()
    saved = read_yaml(out / "config.yaml")["mechanism"]
    assert (saved["where"], saved["options"]) == ("post", {"reduction": 4})


def test_json_is_the_result(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "result.json").read_text())


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'foveate[train]'" in capsys.readouterr().err


def test_a_diverging_run_is_an_error_without_traceback(tmp_path, capsys):
    wild = ["--lr", "1e30", "--optimizer", "sgd", "--set", "recipe.warmup_epochs=0"]
    assert main(["train", *SMALL, *wild, "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith("foveate: the training loss became")
