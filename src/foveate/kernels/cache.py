"""Built kernels kept between processes, in a folder that only their user can write."""

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "FOVEATE_CACHE"


class CacheError(Exception):
    """The cache cannot be used; the message says why in one line."""


def cache_folder() -> Path:
    """Where built kernels are kept, whether or not it is there yet.

    Raises:
        CacheError: If the user has no home.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    general = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The convention has relative paths ignored.
        return (general if general.is_absolute() else Path.home() / ".cache") / "foveate"
    except RuntimeError as error:
        raise CacheError(f"there is no home folder ({error})") from error


@dataclass(frozen=True)
class Entry:
    """A library in the cache, and beside it a record of what it was when it was built."""

    folder: Path
    name: str

    @property
    def library(self) -> Path:
        return self.folder / f"{self.name}.so"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    def read(self) -> dict[str, Any] | None:
        """The record of a library that is there, ours and unharmed; None otherwise.

        Raises:
            CacheError: If others could have written in the folder.
        """
        check_private(self.folder)
        try:
            record = json.loads(_read_own(self.record))
            intact = record["sha256"] == hashlib.sha256(_read_own(self.library)).hexdigest()
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return record if intact else None

    def write(self, make: Callable[[Path], Path], patience: float) -> None:
        """Build the library and its record, unless another process has meanwhile.

        Args:
            make: Builds a library in the empty folder it is given.
            patience: Seconds to wait for another process that builds.

        Raises:
            CacheError: If the folder cannot be written, or the wait is over.
        """
        with _usable(self.folder), locked(self.folder / f"{self.name}.lock", patience):
            if self.read() is not None:
                return
            # Only the holder of the lock uses this folder; one that was killed may have left it.
            scratch = self.folder / f"{self.name}.build"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)
            try:
                self._fill(make, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _fill(self, make: Callable[[Path], Path], scratch: Path) -> None:
        start = time.perf_counter()
        library = make(scratch)
        seconds = time.perf_counter() - start
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        record = scratch / "record.json"
        record.write_text(json.dumps({"sha256": digest, "seconds": round(seconds, 1)}))
        for made, place in ((library, self.library), (record, self.record)):
            made.chmod(0o600)
            os.replace(made, place)

    def remove(self) -> None:
        """Forget a library that turned out not to load."""
        with _usable(self.folder):
            self.record.unlink(missing_ok=True)


def make_private(folder: Path) -> None:
    """Create a folder that only the user can enter.

    Raises:
        CacheError: If it cannot be created, or is there and others can write in it.
    """
    with _usable(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


def check_private(folder: Path) -> None:
    """Refuse a folder in which others could have put something, or could exchange it whole."""
    with _usable(folder):
        facts = folder.stat()
        if facts.st_uid != os.geteuid():
            raise CacheError(f"{folder} belongs to another user")
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheError(f"{folder} can be written by other users")
        for parent in folder.resolve().parents:
            mode = parent.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise CacheError(f"{parent} can be written by other users")


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Keep other processes out; the kernel frees the lock of a process that dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise CacheError(f"another process has held {path} for {patience:.0f} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    import fcntl  # Windows has none

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_own(path: Path) -> bytes:
    """The content of a file; an error where others own it, or can write it."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid != os.geteuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{path} is not private")
        return file.read()


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Errors of the file system as errors of the cache."""
    try:
        yield
    except OSError as error:
        raise CacheError(f"{folder} cannot be used ({error.strerror or error})") from error
