"""The C++ compiler of this machine, and the shared library it makes of the kernels."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from foveate.kernels.processor import processor

CANDIDATES = ("g++", "clang++", "c++")
FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fPIC",
    "-fvisibility=hidden",
    # What the kernels need of -ffast-math; the rest of it would lose NaN and infinity.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",  # vectors pass only between functions of the same build
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # the stable interface as of 2.11
)
PATIENCE = 600.0
"""Seconds after which a compiler, or another process that builds, is given up."""

_CPU_FIELDS = ("model name", "flags", "CPU implementer", "CPU part", "Features")


class BuildError(RuntimeError):
    """The C++ kernels cannot be had; the message says why in one line."""


@dataclass(frozen=True)
class Compiler:
    """A command that compiles C++, and what it says of its version."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    """The compiler named by ``CXX``, or else the first of ``CANDIDATES`` on the path.

    Raises:
        BuildError: If there is none.
    """
    if sys.platform != "linux":
        raise BuildError(f"the C++ kernels are built on Linux only, not on {sys.platform}")
    named = os.environ.get("CXX", "").strip()
    for words in [shlex.split(named)] if named else [[name] for name in CANDIDATES]:
        if program := shutil.which(words[0]):
            command = (program, *words[1:])
            return Compiler(command, _run([*command, "--version"]).partition("\n")[0])
    if named:
        raise BuildError(f"there is no program CXX='{named}'")
    raise BuildError(f"there is no C++ compiler: none of {', '.join(CANDIDATES)} is on PATH")


def read_sources(folder: Path) -> dict[str, str]:
    """The text of each source and header, read once: an edit cannot come between its uses."""
    files = [*folder.glob("*.h"), *folder.glob("*.cpp")]
    return {file.name: file.read_text() for file in sorted(files)}


def fingerprint(compiler: Compiler, sources: Mapping[str, str]) -> str:
    """Digest of all that decides what the compiler makes of the sources, and where it runs."""
    digest = hashlib.sha256()
    parts = [*compiler.command, compiler.version, *FLAGS, *_torch_flags(), torch.__version__, cpu()]
    for part in chain(parts, *sources.items()):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:32]


def cpu() -> str:
    """What ``-march=native`` depends on: the model and instruction sets of the processor."""
    fields = processor()
    return "\n".join([platform.machine(), *(fields.get(name, "") for name in _CPU_FIELDS)])


def compile_library(compiler: Compiler, sources: Mapping[str, str], scratch: Path) -> Path:
    """Compile every ``.cpp`` file, in parallel, and link them.

    Args:
        compiler: The compiler.
        sources: The text of each source and header, by file name.
        scratch: An empty folder to work in.

    Returns:
        The shared library, in ``scratch``.

    Raises:
        BuildError: If the compiler refuses a file, or takes longer than ``PATIENCE``.
    """
    command = [*compiler.command, *FLAGS]
    include, *link = _torch_flags()
    for name, text in sources.items():
        (scratch / name).write_text(text)

    def compile_one(name: str) -> str:
        _run([*command, include, "-c", name, "-o", f"{name}.o"], scratch)
        return f"{name}.o"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, (name for name in sources if name.endswith(".cpp"))))
    _run([*command, "-shared", *objects, *link, "-o", "library.so"], scratch)
    return scratch / "library.so"


def _torch_flags() -> tuple[str, ...]:
    """Where torch keeps its headers, then how to link with it."""
    home = Path(torch.__file__).parent
    libraries = home / "lib"
    names = ("-ltorch_cpu", "-lc10")
    return f"-I{home / 'include'}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", *names


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    """The output of a command, or a BuildError with the first error it prints."""
    # The first error is looked for in English.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {PATIENCE:.0f} s") from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if "error:" in line or "ld: " in line]
        errors = errors or said[-1:] or ["no message"]
        raise BuildError(f"{command[0]} failed with exit code {done.returncode}: {errors[0]}")
    return done.stdout
