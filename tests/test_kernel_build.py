"""Building the C++ kernels: once for a machine, from a cache that is trusted or not used.

Most tests build a library that does nothing but note that it was loaded.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.kernels import build, cache, compiler

ROOT = Path(__file__).parents[1]
MARK = """
#include <cstdio>
namespace {{
struct Mark {{
  Mark() {{
    std::FILE* file = std::fopen("{log}", "a");
    std::fputs("{word}\\n", file);
    std::fclose(file);
  }}
}} mark;
}}
"""
# Notes each compilation; waits for the files that `wait` lists, if it is there.
WRAPPER = """\
#!/bin/sh
if [ "$1" != --version ]; then
  case "$*" in *" -c "*) echo compile >> {log};; esac
  if [ -e {wait} ]; then
    for file in $(cat {wait}); do until [ -e "$file" ]; do sleep 0.02; done; done
  fi
fi
exec g++ "$@"
"""


@dataclass
class Place:
    """A folder of sources, a cache, and a compiler that notes what it does."""

    folder: Path

    @property
    def sources(self) -> Path:
        return self.folder / "sources"

    @property
    def store(self) -> Path:
        return self.folder / "cache"

    def write(self, name: str, text: str) -> None:
        (self.sources / name).write_text(text)

    def mark(self, word: str) -> str:
        return MARK.format(log=self.folder / "loads", word=word)

    def lines(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().split() if file.exists() else []

    @property
    def compiled(self) -> int:
        return len(self.lines("compilations"))

    def entry(self) -> cache.Entry:
        texts = compiler.read_sources(self.sources)
        return cache.Entry(self.store, compiler.fingerprint(compiler.find_compiler(), texts))

    def compile(self, to: Path) -> Path:
        texts = compiler.read_sources(self.sources)
        return compiler.compile_library(compiler.find_compiler(), texts, to)

    def fill(self) -> cache.Entry:
        """Build into the cache without loading: a library is loaded once in a process."""
        entry = self.entry()
        cache.make_private(entry.folder)
        entry.write(self.compile, 10.0)
        (self.folder / "compilations").unlink()
        return entry


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    here = Place(tmp_path)
    here.sources.mkdir()
    here.write("mark.cpp", here.mark("ours"))
    wrapper = tmp_path / "c++"
    wrapper.write_text(WRAPPER.format(log=tmp_path / "compilations", wait=tmp_path / "wait"))
    wrapper.chmod(0o755)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("CXX", str(wrapper))
    monkeypatch.setenv("FOVEATE_CACHE", str(here.store))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(build, "SOURCES", here.sources)
    monkeypatch.setattr(build, "_outcome", None)
    return here


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


def warned_once(action: Callable[[], object]) -> str:
    """The one warning of an action, which must be of one line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    assert [one.category for one in caught] == [build.BuildWarning]
    text = str(caught[0].message)
    assert "\n" not in text
    return text


def fails(match: str) -> str:
    """The warning of a first load that fails; the second fails alike, without a warning."""

    def first() -> None:
        with pytest.raises(build.BuildError, match=match):
            build.load()

    text = warned_once(first)
    with pytest.raises(build.BuildError, match=match) as caught:
        build.load()
    assert str(caught.value) in text
    assert build.status().reason == str(caught.value)
    return text


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


def test_cache_is_private_whatever_the_umask(place: Place) -> None:
    before = os.umask(0)
    try:
        build.load()
    finally:
        os.umask(before)
    assert place.store.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in place.store.iterdir()} == {0o600}
    assert place.entry().read() is not None


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


def truncate(place: Place, entry: cache.Entry) -> None:
    os.truncate(entry.library, entry.library.stat().st_size // 2)


def exchange(place: Place, entry: cache.Entry) -> None:
    place.write("mark.cpp", place.mark("foreign"))
    shutil.copyfile(place.compile(place.folder / "temporary"), entry.library)
    place.write("mark.cpp", place.mark("ours"))
    (place.folder / "compilations").unlink()


def open_to_group(place: Place, entry: cache.Entry) -> None:
    entry.library.chmod(0o620)


def link_elsewhere(place: Place, entry: cache.Entry) -> None:
    entry.library.rename(place.folder / "elsewhere.so")
    entry.library.symlink_to(place.folder / "elsewhere.so")


def lose_record(place: Place, entry: cache.Entry) -> None:
    entry.record.unlink()


def spoil_record(place: Place, entry: cache.Entry) -> None:
    entry.record.write_text('["')


def not_a_library(place: Place, entry: cache.Entry) -> None:
    entry.library.write_bytes(b"text")
    entry.record.write_text(json.dumps({"sha256": sha256(b"text").hexdigest(), "seconds": 1}))


@pytest.mark.parametrize(
    "harm",
    [
        truncate,
        exchange,
        open_to_group,
        link_elsewhere,
        lose_record,
        spoil_record,
        not_a_library,
    ],
)
def test_harmed_library_is_built_again_and_not_executed(
    harm: Callable[[Place, cache.Entry], None], place: Place
) -> None:
    entry = place.fill()
    harm(place, entry)
    assert build.load() == entry.library
    assert place.compiled == 1
    assert place.lines("loads") == ["ours"]
    assert entry.read() is not None


def test_another_users_library_is_built_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = place.fill()
    real = os.fstat

    def fstat(handle: int) -> Any:
        facts = list(real(handle))
        if os.path.realpath(f"/proc/self/fd/{handle}") == str(entry.library):
            facts[4] += 1  # the owner
        return os.stat_result(facts)

    monkeypatch.setattr(os, "fstat", fstat)
    assert entry.read() is None


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


def foreign_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    place.store.mkdir(0o700)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    return "belongs to another user"


def shared_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    place.store.mkdir()
    place.store.chmod(0o770)
    return "cache can be written by other users"


def exposed_parent(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    parent = place.folder / "open"
    parent.mkdir()
    parent.chmod(0o777)
    monkeypatch.setenv("FOVEATE_CACHE", str(parent / "cache"))
    return "open can be written by other users"


def file_in_its_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    place.store.touch(0o600)
    return "File exists"


def read_only_home(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    real = os.mkdir

    def mkdir(path: Any, mode: int = 0o777) -> None:
        if Path(path).is_relative_to(place.store):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(path, mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    return "Read-only file system"


def read_only_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    place.store.mkdir(0o700, exist_ok=True)
    real = os.open

    def open_file(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT and Path(path).is_relative_to(place.store):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_file)
    return "Permission denied"


def no_home(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FOVEATE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    return "there is no home folder"


def no_locks(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    def flock(handle: int, what: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    return "No locks available"


def lock_held(place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(build, "PATIENCE", 0.0)
    monkeypatch.setattr(cache, "_try_lock", lambda handle: False)
    return "another process has held"


@pytest.mark.parametrize(
    "prepare",
    [
        foreign_folder,
        shared_folder,
        exposed_parent,
        file_in_its_place,
        read_only_home,
        read_only_cache,
        no_home,
        no_locks,
        lock_held,
    ],
)
def test_cache_that_cannot_be_used(
    prepare: Callable[[Place, pytest.MonkeyPatch], str],
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = prepare(place, monkeypatch)
    text = warned_once(build.load)
    assert reason in text
    assert "FOVEATE_CACHE" in text
    build.load()
    assert place.compiled == 1
    assert place.lines("loads") == ["ours"]
    assert not list(place.folder.glob("temporary/*"))


def test_nowhere_to_build(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.store.touch()
    (place.folder / "temporary").rmdir()
    assert "No such file or directory" in fails("no folder to build them in")


def test_kept_library_needs_no_writing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = place.fill()
    read_only_cache(place, monkeypatch)
    assert build.load() == entry.library
    assert place.compiled == 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FOVEATE_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"FOVEATE_CACHE": "~/b"}, "/home/somebody/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/foveate"),
        ({"FOVEATE_CACHE": "", "XDG_CACHE_HOME": "relative"}, "/home/somebody/.cache/foveate"),
        ({}, "/home/somebody/.cache/foveate"),
    ],
)
def test_folder(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOVEATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/somebody", **variables}.items():
        monkeypatch.setenv(name, value)
    assert str(cache.cache_folder()) == expected


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


def test_status_tells_of_a_cache_that_is_not_used(place: Place) -> None:
    place.store.mkdir()
    place.store.chmod(0o777)
    found = build.status()
    assert "can be written by other users" in str(found.reason)
    assert found.library is None


def test_nan_and_infinity_survive_the_flags() -> None:
    assert not {"-ffast-math", "-Ofast", "-ffinite-math-only"} & set(compiler.FLAGS)
