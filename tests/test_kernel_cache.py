"""The cache of built kernels: what it does not trust, it does not use."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from foveate.kernels import build, cache
from kernel_place import Place, fails, make_place, warned_once


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path, monkeypatch)


def test_cache_is_private_whatever_the_umask(place: Place) -> None:
    before = os.umask(0)
    try:
        build.load()
    finally:
        os.umask(before)
    assert place.store.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in place.store.iterdir()} == {0o600}
    assert place.entry().read() is not None


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


def test_status_tells_of_a_cache_that_is_not_used(place: Place) -> None:
    place.store.mkdir()
    place.store.chmod(0o777)
    found = build.status()
    assert "can be written by other users" in str(found.reason)
    assert found.library is None
