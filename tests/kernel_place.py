"""A place to build kernels in that are not the real ones, for the tests of building."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from foveate.kernels import build, cache, compiler

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


def make_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """What building uses from now on, in this test, as if no process had tried yet."""
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
