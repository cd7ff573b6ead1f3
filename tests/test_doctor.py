"""``foveate doctor``: what it says in each situation, and that it says the truth."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import profile

import foveate
from foveate import kernels
from foveate.cli import main
from foveate.cli.doctor import SHAPE
from foveate.describe.facts import built
from foveate.kernels import build

Capture = pytest.CaptureFixture[str]
Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Runs it as a new process would, and gives what it prints as JSON."""

    def run(**variables: str) -> dict[str, Any]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(build, "_outcome", None)
        assert main(["doctor", "--json"]) == 0
        printed = capsys.readouterr()
        assert not printed.err
        found: dict[str, Any] = json.loads(printed.out)
        return found

    monkeypatch.delenv("FOVEATE_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return run


def paths(found: dict[str, Any]) -> dict[str, str]:
    return {key: one["path"] for key, one in found["mechanisms"]["cpu"].items()}


def test_kernels(doctor: Doctor) -> None:
    found = doctor()
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["requested"] == {"variable": "FOVEATE_KERNELS", "value": "auto", "set": False}
    assert found["paths"]["cpu"] == {"path": "cpu", "reason": "C++ kernels serve cpu tensors"}
    assert found["build"]["library"] == str(build.load())
    assert found["build"]["seconds"] > 0
    assert found["build"]["reason"] is None
    assert found["warnings"] == []
    assert list(found["mechanisms"]["cpu"]) == foveate.list_mechanisms()
    assert paths(found)["cbam"] == "cpu"
    limits = "C++ kernels serve cpu tensors of 32,768 elements or more"
    assert found["mechanisms"]["cpu"]["cbam"]["reason"] == limits
    assert found["mechanisms"]["cpu"]["se"]["reason"] == f"{limits}, in training"
    assert found["mechanisms"]["cpu"]["nl"]["reason"] == "C++ kernels serve cpu tensors"
    assert found["mechanisms"]["cpu"]["static"] == {
        "path": "eager",
        "reason": "no kernel is written for it",
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the profiler
@pytest.mark.parametrize("key", foveate.list_mechanisms())
def test_paths_are_those_taken(key: str, seen_by_doctor: dict[str, str]) -> None:
    module = built(key, *SHAPE[1:])
    x = torch.rand(SHAPE, requires_grad=True)
    with kernels.using("cpu"), profile() as profiled:
        module(x).sum().backward()
    called = any(event.name.startswith("foveate_cpu::") for event in profiled.events())
    assert seen_by_doctor[key] == ("cpu" if called else "eager")


@pytest.fixture(scope="module")
def seen_by_doctor() -> dict[str, str]:
    from foveate.cli.doctor import examine

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FOVEATE_KERNELS", raising=False)
        return paths(examine())


def test_eager_asked_for(doctor: Doctor) -> None:
    found = doctor(FOVEATE_KERNELS="eager")
    assert set(paths(found).values()) == {"eager"}
    assert found["paths"]["cpu"]["reason"] == "FOVEATE_KERNELS=eager"
    assert found["requested"]["set"]


def test_no_compiler(doctor: Doctor) -> None:
    found = doctor(CXX="no-such-compiler")
    reason = "there is no program CXX='no-such-compiler'"
    assert found["build"]["compiler"] is None
    assert found["build"]["reason"] == reason
    assert found["warnings"] == [f"there are no C++ kernels, which costs speed: {reason}"]
    assert set(paths(found).values()) == {"eager"}
    assert found["mechanisms"]["cpu"]["cbam"]["reason"] == reason


@pytest.mark.parametrize(
    ("asked", "reason"),
    [("cpu", "there is no program CXX='none'"), ("triton", "not cpu tensors")],
)
def test_what_is_asked_for_cannot_be_had(asked: str, reason: str, doctor: Doctor) -> None:
    found = doctor(FOVEATE_KERNELS=asked, CXX="none", TRITON_INTERPRET="0")
    for key in ("cbam", "nl"):
        one = found["mechanisms"]["cpu"][key]
        assert one["path"] == "none", key
        assert one["reason"].startswith(f"FOVEATE_KERNELS={asked} cannot be met: ")
        assert reason in one["reason"]
    assert paths(found)["a2"] == "eager"


def test_cache_that_is_not_used(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "empty.cpp").write_text("")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "empty")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    found = doctor(FOVEATE_CACHE=str(tmp_path / "cache"), FOVEATE_KERNELS="cpu")
    (warning,) = found["warnings"]
    assert "cache can be written by other users" in warning
    assert found["build"]["library"] is None
    assert "cache can be written by other users" in found["build"]["reason"]


def test_bad_value_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_KERNELS", "tritn")
    assert main(["doctor"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("foveate: unknown FOVEATE_KERNELS 'tritn'; did you mean 'triton'?")


@pytest.mark.parametrize("width", [80, 120])
def test_table(width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FOVEATE_KERNELS", "eager")
    monkeypatch.setenv("FOVEATE_CACHE", os.fspath(Path("/nowhere")))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    words = printed.split()
    assert set(foveate.list_mechanisms()) <= set(words)
    for row in ("versions", "cpu", "FOVEATE_KERNELS", "compiler", "flags", "C++ kernels"):
        assert any(line.startswith(row) for line in printed.splitlines()), row
    assert "none kept in /nowhere" in printed
    assert max(map(len, printed.splitlines())) <= width
