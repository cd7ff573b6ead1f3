"""Building the C++ kernels: once for a machine, or an error that says why not.

Most tests build a library that does nothing but note that it was loaded.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from foveate.kernels import build, compiler
from kernel_place import Place, fails, make_place, warned_once

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path, monkeypatch)


@pytest.fixture
def spawn(place: Place) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts a process that touches the file ``ready<i>`` and then loads the kernels."""
    started: list[subprocess.Popen[str]] = []

    def start(number: int) -> subprocess.Popen[str]:
        code = f"""
            from pathlib import Path
            from foveate.kernels import build
            build.SOURCES = Path({str(place.sources)!r})
            Path({str(place.folder / f"ready{number}")!r}).touch()
            print(build.load())
        """
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_builds_once_and_keeps_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("second.cpp", "int second() { return 2; }")
    library = build.load()
    assert build.load() == library == place.entry().library
    assert place.compiled == 2
    assert place.lines("loads") == ["ours"]
    monkeypatch.setattr(build, "_outcome", None)  # as another process
    assert build.load() == library
    assert place.compiled == 2
    assert not list(place.folder.glob("temporary/*"))
    assert sorted(file.suffix for file in place.store.iterdir()) == [".json", ".lock", ".so"]


def test_edits_while_it_is_built_belong_to_the_next_library(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = place.entry(), build.make_private

    def edit(folder: Path) -> None:
        place.write("mark.cpp", place.mark("edited"))
        real(folder)

    monkeypatch.setattr(build, "make_private", edit)
    assert build.load() == before.library != place.entry().library
    assert place.lines("loads") == ["ours"]


def test_threads_build_once(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = {future.result() for future in [pool.submit(build.load) for _ in range(4)]}
    assert found == {place.entry().library}
    assert place.compiled == 1


def test_threads_fail_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def find_compiler() -> compiler.Compiler:
        tried.append(1)
        time.sleep(0.1)  # so that the others are there
        raise build.BuildError("no compiler in this test")

    monkeypatch.setattr(build, "find_compiler", find_compiler)

    def fail() -> None:
        with ThreadPoolExecutor(4) as pool:
            errors = [future.exception() for future in [pool.submit(build.load) for _ in range(4)]]
        assert [str(error) for error in errors] == ["no compiler in this test"] * 4

    warned_once(fail)
    assert len(tried) == 1


def set_cpu(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "cpu", lambda: "x86_64, of another model")


def set_torch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0")


def set_compiler(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "g++").write_text("#!/bin/sh\necho 'g++ 99'\n")
    (place.folder / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(place.folder), prepend=os.pathsep)


def set_flags(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-g"))


def set_header(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("mark.h", "// new")


def set_source(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("mark.cpp", place.mark("ours") + "// new")


@pytest.mark.parametrize(
    "change", [set_cpu, set_torch, set_compiler, set_flags, set_header, set_source]
)
def test_what_decides_the_library_names_it(
    change: Callable[[Place, pytest.MonkeyPatch], None],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = place.fill()
    assert place.entry() == before
    change(place, monkeypatch)
    assert place.entry() != before
    assert build.status().library is None


def test_processor_is_told_by_model_and_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [
        "processor\t: 0\nmodel name\t: A\ncpu MHz\t: 1\nflags\t: avx2\n\nprocessor\t: 1",
        "processor\t: 0\nmodel name\t: A\ncpu MHz\t: 2\nflags\t: avx2\n\n",
        "processor\t: 0\nmodel name\t: B\ncpu MHz\t: 1\nflags\t: avx2\n\n",
        "processor\t: 0\nmodel name\t: A\ncpu MHz\t: 1\nflags\t: avx512f\n\n",
        "processor\t: 0\nCPU part\t: 0xd40\nFeatures\t: sve\n\n",
    ]
    found = []
    for block in blocks:
        monkeypatch.setattr(Path, "read_text", lambda path, text=block: text)
        found.append(compiler.cpu())
    assert found[0] == found[1]
    assert len(set(found)) == 4


@pytest.mark.parametrize("named", [None, "no-such-compiler"])
def test_no_compiler(named: str | None, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(place.store))
    if named is None:
        monkeypatch.delenv("CXX")
        assert "none of g++, clang++, c++ is on PATH" in fails("no C")
    else:
        monkeypatch.setenv("CXX", named)
        assert "CXX='no-such-compiler'" in fails("no program")
    assert build.status().compiler is None
    assert not place.store.exists()


def test_named_compiler_may_have_options(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = os.environ["CXX"]
    monkeypatch.setenv("CXX", f"env {wrapper} -g0")
    assert compiler.find_compiler().command[1:] == (wrapper, "-g0")
    assert "g++" in compiler.find_compiler().version


def test_program_that_cannot_be_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "c++").write_bytes(b"\x00 no program")
    assert "cannot be run" in fails("format error")


def test_other_systems(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only, not on darwin" in fails("Linux only")


def test_compile_error(place: Place) -> None:
    place.write("wrong.cpp", "int f() {\n  return missing;\n}")
    text = fails("failed with exit code 1")
    assert ": wrong.cpp:2:10: error:" in text
    assert "missing" in text
    assert [file.suffix for file in place.store.iterdir()] == [".lock"]


def test_compiler_that_never_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "wait").write_text(str(place.folder / "never"))
    monkeypatch.setattr(compiler, "PATIENCE", 0.5)
    assert "took more than 0 s" in fails("took more")
    (place.folder / "never").touch()  # what the wrapper still waits for


def test_library_that_cannot_be_loaded(place: Place) -> None:
    place.write("open.cpp", "int nowhere(); int here = nowhere();")
    assert "undefined symbol" in fails("cannot be loaded")
    assert place.compiled == 4  # once more, in case that the cache had been harmed


def test_processes_at_once_build_once(
    place: Place, spawn: Callable[[int], subprocess.Popen[str]]
) -> None:
    ready = [place.folder / f"ready{i}" for i in range(2)]
    (place.folder / "wait").write_text("\n".join(map(str, ready)))
    processes = [spawn(i) for i in range(2)]
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert outputs == [str(place.entry().library)] * 2
    assert place.compiled == 1
    assert place.lines("loads") == ["ours", "ours"]


def test_killed_builder_leaves_nothing_in_the_way(
    place: Place, spawn: Callable[[int], subprocess.Popen[str]]
) -> None:
    (place.folder / "wait").write_text(str(place.folder / "go"))
    process = spawn(0)
    wait_for(lambda: place.compiled == 1)
    process.kill()  # its compiler goes on
    process.wait()
    assert list(place.store.glob("*.build"))
    (place.folder / "wait").unlink()
    assert build.load() == place.entry().library
    assert place.lines("loads") == ["ours"]
    assert not list(place.store.glob("*.build"))


def test_status_builds_nothing(place: Place) -> None:
    before = build.status()
    assert before.library is None
    assert before.seconds is None
    assert before.reason is None
    assert before.folder == place.store
    assert "g++" in str(before.compiler)
    assert before.flags == compiler.FLAGS
    assert not place.store.exists()
    assert place.compiled == 0
    library = build.load()
    after = build.status()
    assert after.library == library
    assert after.seconds == json.loads(library.with_suffix(".json").read_text())["seconds"]


def test_nan_and_infinity_survive_the_flags() -> None:
    assert not {"-ffast-math", "-Ofast", "-ffinite-math-only"} & set(compiler.FLAGS)
