"""The README and the documentation: every block runs, tables and translations are in step."""

import re
import shlex
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import foveate
from foveate.cli import main
from foveate.describe.pages import READMES, with_table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    tokens = MarkdownIt().parse(page.read_text())
    return [t.content for t in tokens if t.type == "fence" and t.info.split()[:1] == [language]]


def outline(page: Path) -> list[tuple[str, str]]:
    """Levels of the headings, languages and contents of the blocks."""
    tokens = MarkdownIt().parse(page.read_text())
    headings = [(t.tag, "") for t in tokens if t.type == "heading_open"]
    return headings + [(t.info, t.content) for t in tokens if t.type == "fence"]


# The blocks of the translation are those of the README, which has a test of its own.
each_once = pytest.mark.parametrize("page", [PAGES[0], *PAGES[2:]], ids=lambda page: page.name)


@each_once
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@each_once
def test_foveate_commands_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each ``$ foveate ...`` line; trainings are cut to one epoch, one seed, two mechanisms."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ foveate (.*)$", block, re.MULTILINE):
            words = shlex.split(re.sub(r"(--mechanisms \w+,\w+)\S*", r"\1", line), comments=True)
            if words[0] == "explore":
                continue  # it serves until Ctrl-C; its own tests start it
            if words[0] in ("compare", "train"):
                words += ["--epochs", "1", "--limit", "120", "--tracker", "none"]
                words += ["--seeds", "1"] if words[0] == "compare" else []
            assert main(words) == 0, f"{line}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_and_links_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^\$? ?make ([a-z-]+)", "\n".join(blocks(page, "console")), re.MULTILINE)
    assert set(named) <= targets
    for link in re.findall(r"\]\((?!http|#|mailto)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_mechanism_table_is_the_registry(page: Path) -> None:
    text = page.read_text()
    assert text == with_table(text, READMES[page.name])
    assert all(f"[`{key}`](docs/mechanisms/{key}.md)" in text for key in foveate.list_mechanisms())


def test_translation_is_in_step() -> None:
    assert outline(PAGES[1]) == outline(PAGES[0])
