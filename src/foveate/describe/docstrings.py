"""Docstrings taken apart: prose, formulas, and the sections of Google's style."""

import inspect
import re
from dataclasses import dataclass

SECTION = re.compile(r"^([A-Z][a-z]+):$")


@dataclass(frozen=True)
class Block:
    """A paragraph, an item of a list or a displayed formula, its markup not yet taken away."""

    kind: str
    """``"text"``, ``"item"`` or ``"formula"``."""
    content: str


@dataclass(frozen=True)
class Docstring:
    """What a docstring says, part by part."""

    body: tuple[Block, ...]
    sections: dict[str, str]
    """Each section's text by its name, with its indentation taken away."""

    @property
    def summary(self) -> str:
        """The first paragraph, on one line."""
        return " ".join(self.body[0].content.split()) if self.body else ""

    def entries(self, section: str) -> dict[str, str]:
        """What a section of ``name: meaning`` lines says of each name."""
        entries: dict[str, str] = {}
        for entry in re.split(r"\n(?=\S)", self.sections.get(section, "")):
            name, colon, meaning = entry.partition(":")
            if colon:
                entries[name] = " ".join(meaning.split())
        return entries


def parse(documented: object) -> Docstring:
    """The docstring of a class or module.

    Example:
        >>> parse(Docstring).summary
        'What a docstring says, part by part.'
    """
    name, parts = "", {"": list[str]()}
    for line in inspect.cleandoc(documented.__doc__ or "").splitlines():
        if heading := SECTION.match(line):
            name = heading[1]
            parts[name] = []
        elif name and line and not line.startswith(" "):
            name = ""
            parts[name].append(line)
        else:
            parts[name].append(line)
    sections = {name: inspect.cleandoc("\n".join(["", *part])) for name, part in parts.items()}
    return Docstring(tuple(blocks(sections.pop(""))), sections)


def blocks(text: str) -> list[Block]:
    """Paragraphs, items and formulas of a text."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith(".. math::"):
            found.append(Block("formula", paragraph.removeprefix(".. math::").strip()))
        elif paragraph.startswith("- "):
            items = re.split(r"\n(?=- )", paragraph)
            found += [Block("item", item.removeprefix("- ")) for item in items]
        else:
            found.append(Block("text", paragraph))
    return found
