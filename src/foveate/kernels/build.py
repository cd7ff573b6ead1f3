"""Builds the C++ kernels once for this machine and loads them, at most once a process."""

import logging
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from foveate.kernels.cache import VARIABLE, CacheError, Entry, cache_folder, make_private
from foveate.kernels.compiler import (
    FLAGS,
    PATIENCE,
    compile_library,
    find_compiler,
    fingerprint,
    read_sources,
)
from foveate.kernels.compiler import BuildError as BuildError

SOURCES = Path(__file__).parent / "csrc"

_log = logging.getLogger("foveate")
_lock = threading.Lock()
_outcome: Path | BuildError | None = None


class BuildWarning(UserWarning):
    """The C++ kernels cannot be had, or cannot be kept for the next process."""


@dataclass(frozen=True)
class Status:
    """What is known of the C++ kernels without building them."""

    compiler: str | None
    """Its command and version."""
    flags: tuple[str, ...]
    folder: Path | None
    """The cache."""
    library: Path | None
    """The kernels in the cache, if they are there and unharmed."""
    seconds: float | None
    """How long it took to build them."""
    reason: str | None
    """Why there are no kernels, or why they are not kept."""


def load() -> Path:
    """Load the C++ kernels, from the cache or else newly built.

    Only the first call of a process tries; what came of it is remembered.

    Returns:
        The library that was loaded. One that could not be kept is gone by now.

    Raises:
        BuildError: If the kernels cannot be had.

    Warns:
        BuildWarning: At the first call, if they cannot be had, or cannot be kept.
    """
    global _outcome
    warning = None
    with _lock:
        if _outcome is None:
            try:
                _outcome, warning = _load_somehow()
            except BuildError as error:
                _outcome, warning = error, f"there are no C++ kernels, which costs speed: {error}"
        outcome = _outcome
    if warning:
        warnings.warn(warning, BuildWarning, stacklevel=2)
    if isinstance(outcome, BuildError):
        raise BuildError(str(outcome))
    return outcome


def status() -> Status:
    """What is known of the C++ kernels; builds and loads nothing."""
    compiler = folder = library = seconds = reason = None
    try:
        found = find_compiler()
        compiler = f"{' '.join(found.command)} ({found.version})"
        folder = cache_folder()
        entry = Entry(folder, fingerprint(found, read_sources(SOURCES)))
        if folder.exists() and (record := entry.read()):
            library, seconds = entry.library, record["seconds"]
    except (BuildError, CacheError) as error:
        reason = str(error)
    if isinstance(_outcome, BuildError):
        reason = str(_outcome)
    return Status(compiler, FLAGS, folder, library, seconds, reason)


def _load_somehow() -> tuple[Path, str | None]:
    """The library that was loaded, and the warning that it is not kept."""
    compiler, sources = find_compiler(), read_sources(SOURCES)

    def make(scratch: Path) -> Path:
        _log.warning("foveate builds its C++ kernels for this machine, once: about a minute")
        return compile_library(compiler, sources, scratch)

    try:
        entry = Entry(cache_folder(), fingerprint(compiler, sources))
        make_private(entry.folder)
        return _load_kept(entry, make), None
    except CacheError as error:
        return _load_unkept(make), (
            f"the C++ kernels are built anew in every process, because {error}; "
            f"{VARIABLE} can name a folder that only you can write"
        )


def _load_kept(entry: Entry, make: Callable[[Path], Path]) -> Path:
    if entry.read() is None:
        entry.write(make, PATIENCE)
    try:
        return _open(entry.library)
    except BuildError:
        entry.remove()
    entry.write(make, PATIENCE)
    return _open(entry.library)


def _load_unkept(make: Callable[[Path], Path]) -> Path:
    """Build for this process alone; a library that is loaded outlives its file."""
    try:
        with tempfile.TemporaryDirectory(prefix="foveate-") as scratch:
            return _open(make(Path(scratch)))
    except OSError as error:
        raise BuildError(f"there is no folder to build them in ({error.strerror})") from error


def _open(library: Path) -> Path:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise BuildError(f"they cannot be loaded: {error.__cause__ or error}") from error
    return library
