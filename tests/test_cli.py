"""The command line: what is printed, and that each mistake is one line and exit code 2."""

import inspect
import json
import re

import pytest
from rich.cells import cell_len

import foveate
from foveate.cli import main

Capture = pytest.CaptureFixture[str]


def test_list(capsys: Capture) -> None:
    assert main(["list", "danet*"]) == 0
    printed = capsys.readouterr().out
    assert "danet_position" in printed
    assert "cbam" not in printed


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("key", foveate.list_mechanisms())
def test_show(key: str, width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["show", key]) == 0
    printed = capsys.readouterr().out
    cls = foveate.get_mechanism(key)
    assert cls.__qualname__ in printed
    assert "multiply-adds at 256 x 56 x 56" in printed
    assert all(name in printed for name in (*inspect.signature(cls).parameters, *cls.timm))
    assert all(result.source.split()[0] in printed for result in cls.results)
    assert not re.search(r"\\|``|:\w+:`|\.\. ", printed)
    assert max(map(cell_len, printed.splitlines())) <= width


def test_plan_as_a_table(capsys: Capture) -> None:
    assert main(["plan", "resnet50", "cbam", "--where", "residual", "--size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "layer4.2.bn3" in printed
    assert "2.53 M" in printed  # 28,089,624 - 25,557,032 and 16 strengths


def test_plan_as_json(capsys: Capture) -> None:
    words = ["plan", "resnet50", "cbam", "--where", "residual", "--init", "paper", "--json"]
    assert main(words) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"] == 28_089_624 - 25_557_032
    assert plan["host_parameters"] == 25_557_032
    assert plan["host_flops"] == pytest.approx(4.089e9, rel=1e-3)
    assert plan["sites"][0] == {
        "name": "layer1.0.bn3",
        "side": "after",
        "channels": 256,
        "height": 56,
        "width": 56,
        "calls": 1,
        "parameters": 2 * 256 * 16 + 256 + 16 + 100,
        # two passes through the bottleneck, and a 7 x 7 convolution from two channels to one
        "flops": 2 * 2 * 256 * 16 + 98 * 56 * 56,
        "target": "",
        "options": {},
        "ends_block": True,
    }


def test_plan_takes_options(capsys: Capture) -> None:
    words = ["plan", "small_cnn", "se", "--size", "32", "--json", "--option", "bias=false"]
    assert main([*words, "--option", "reduction=8", "--at", "*block3*"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["options"] == {"bias": False, "reduction": 8}
    assert [site["parameters"] for site in plan["sites"]] == [2 * 128 * 16 + 1]


def test_profile(capsys: Capture) -> None:
    assert main(["profile", "small_cnn", "se", "--size", "32", "--batch", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    bare, with_se = made["none"], made["se"]
    assert bare["sites"] == []
    assert len(with_se["sites"]) == 3
    added = sum(site["parameters"] for site in with_se["sites"])
    assert with_se["model"]["parameters"] == bare["model"]["parameters"] + added
    # A gate keeps its input for the backward pass: 2 x 32 x 32 x 32 floats at the first site.
    assert with_se["sites"][0]["memory"] >= 4 * 2 * 32 * 32 * 32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "resnet50", "cbm"], "unknown mechanism 'cbm'; did you mean 'cbam'?"),
        (["plan", "resnt50", "cbam"], "resnt50"),
        (["plan", "resnet50", "cbam", "--where", "residul"], "did you mean 'residual'?"),
        (["plan", "resnet50", "cbam", "--at", "layer9"], "at='layer9' matches none of the sites"),
        (["plan", "resnet50", "cbam", "--size", "0"], "size"),
        (["plan", "resnet50", "cbam", "--option", "x"], "an option is written name=value"),
        (["plan", "resnet50", "cbam", "--option", "reductoin=8"], "did you mean 'reduction'?"),
        (["plan", "resnet50", "cbam", "--option", "reduction=0"], "reduction must be at least 1"),
        (["plan", "squeezenet1_1", "cbam"], "has no place 'residual'; it has: pre (26)"),
        (["profile", "small_cnn", "se", "--batch", "0"], "batch must be at least 1"),
        (["profile", "small_cnn", "se", "--size", "-1"], "size must be at least 1"),
        (["show", "nothing"], "unknown mechanism 'nothing'"),
        (["list", "nothing*"], "unknown mechanism 'nothing*'"),
        (["comapre"], "comapre"),
        (["plan", "--nothing"], "--nothing"),
        (["plan"], "Missing argument"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: Capture) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("foveate: ")
    assert message in printed.err
