"""The tables of the README and the pages of the documentation, as text."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foveate.cost import human
from foveate.describe.diagram import svg
from foveate.describe.docstrings import Block, blocks
from foveate.describe.facts import (
    SHAPE,
    Facts,
    as_keywords,
    cost,
    facts,
    summary,
)
from foveate.describe.formulas import formula_lines, markdown
from foveate.describe.measured import measured_tables
from foveate.describe.reach import receptive_field
from foveate.describe.steps import steps
from foveate.describe.tables import between, table
from foveate.mechanisms.base import Gate, Mixer, Replacement
from foveate.registry import list_mechanisms

SHAPES = ((256, 56, 56), (512, 28, 28), (1024, 14, 14))
READMES = {"README.md": "en", "README.zh-CN.md": "zh"}
KINDS = {
    "en": (
        ("what it does", "mechanisms"),
        (
            "weighs each element by a factor",
            "adds to each position what it gathers elsewhere",
            "stands in for a convolution, or beside it",
        ),
    ),
    "zh": (
        ("作用", "机制"),
        ("逐元素加权", "在每个位置加上从别处汇集的内容", "代替卷积，或与卷积并联"),
    ),
}
START, END = "<!-- mechanisms -->\n", "<!-- /mechanisms -->"
NAV_START, NAV_END = "      # mechanisms\n", "      # end of mechanisms\n"
INDEX = """# Mechanisms

{number} mechanisms, each held against a literal transcription of its paper in float64. A page each:
formula, diagram, costs, options, variants, published results, and where other code differs.
`foveate show KEY` prints the same.

## What each is

{what}

## What each costs

Parameters and multiply-adds of one map, counted: convolutions, linear layers and matrix products,
without pooling, normalisation and elementwise work.

{counted}
"""
MEASURED = """
## What each takes

{measured}
"""


def written(root: Path) -> dict[Path, str]:
    """Every file under ``root`` that follows from the registry, with its text."""
    docs = root / "docs"
    texts = {docs / "mechanisms.md": index_page(root)}
    for key in list_mechanisms():
        texts[docs / "mechanisms" / f"{key}.md"] = page(key)
        texts[docs / "mechanisms" / f"{key}.svg"] = diagram(key)
    for name, language in READMES.items():
        texts[root / name] = with_table((root / name).read_text(), language)
    texts[root / "mkdocs.yml"] = with_nav((root / "mkdocs.yml").read_text())
    return texts


def diagram(key: str) -> str:
    """The drawing of a mechanism."""
    return svg(steps(key), title=f"What {key} does, step by step, with the shape after each step")


def page(key: str) -> str:
    """The page of a mechanism."""
    return "\n\n".join(_page(facts(key))) + "\n"


def _page(known: Facts) -> Iterator[str]:
    module = known.cls.__module__
    yield f"# `{known.key}`"
    yield known.citation
    yield from _prose(known.doc.body)
    yield f"![Steps of {known.key}, with the shape after each]({known.key}.svg)"
    yield table(("at a glance", ""), _rows(known))
    yield "## Options"
    yield table(
        ("option", "default", "meaning"),
        [
            ("`channels`", "", markdown(known.doc.entries("Args")["channels"])),
            *((f"`{o.name}`", f"`{o.default!r}`", markdown(o.meaning)) for o in known.options),
        ],
    )
    for title, named in (
        ("Variants", known.cls.variants),
        ("Counterparts in timm", known.cls.timm),
    ):
        if named:
            yield f"## {title}"
            rows = ((f"`{name}`", _keywords(options)) for name, options in named.items())
            yield table(("name", "options here"), rows)
    if known.results:
        yield "## As published"
        yield "Printed by others, not measured here."
        yield table(
            ("model", "measure", "with", "without", "source"),
            ((r.model, r.metric, r.value, r.baseline or "–", r.source) for r in known.results),
        )
    if note := known.doc.sections.get("Note"):
        yield "## Where other code differs"
        yield from _prose(blocks(note))
    yield "## In the code"
    name = module.rpartition(".")[2]
    yield (
        f"`{module}.{known.cls.__qualname__}`, held against the transcription "
        f"`tests/references/{name}.py`."
    )


def _rows(known: Facts) -> Iterator[tuple[str, str]]:
    channels, height, width = SHAPE
    yield "place in the paper", f"`{known.place}`"
    yield f"parameters at {channels} channels", f"{known.parameters:,}"
    yield f"multiply-adds at {height} × {width}", f"{human(known.flops)}"
    yield "a position depends on", receptive_field(known.key)
    yield "identity form", known.identity
    for name, meaning in known.doc.entries("Shape").items():
        yield markdown(name.removeprefix("- ")), markdown(meaning)


def _keywords(options: dict[str, Any]) -> str:
    return f"`{as_keywords(options)}`" if options else as_keywords(options)


def _prose(parts: Iterable[Block]) -> Iterator[str]:
    items: list[str] = []
    for block in parts:
        if items and block.kind != "item":
            yield "\n".join(items)
            items = []
        if block.kind == "formula":
            yield "\n".join(["```text", *formula_lines(block.content), "```"])
        elif block.kind == "item":
            items.append(f"- {markdown(block.content)}")
        else:
            yield markdown(block.content)
    if items:
        yield "\n".join(items)


def index_page(root: Path) -> str:
    """The page that lists and compares all of them."""
    keys = list_mechanisms()
    what = table(
        ("key", "what it does", "a position depends on", "place"),
        ((_link(key), summary(key), receptive_field(key), f"`{facts(key).place}`") for key in keys),
    )
    sizes = [" × ".join(map(str, shape)) for shape in SHAPES]
    costs = {key: [cost(key, *shape) for shape in SHAPES] for key in keys}
    counted = table(
        ("key", *sizes),
        ((_link(key), *(f"{human(p)}, {human(flops)}" for p, flops in costs[key])) for key in keys),
    )
    text = INDEX.format(number=len(keys), what=what, counted=counted)
    measured = measured_tables(root / "benchmarks" / "results" / "mechanisms.json", keys, _link)
    return text + MEASURED.format(measured=measured) if measured else text


def _link(key: str) -> str:
    return f"[`{key}`](mechanisms/{key}.md)"


def with_table(text: str, language: str) -> str:
    """A README with the table of mechanisms between its marks as the registry has it."""
    return between(text, START, END, mechanism_table(language) + "\n")


def mechanism_table(language: str) -> str:
    """The mechanisms by kind, as a README of ``"en"`` or ``"zh"`` shows them."""
    heads, kinds = KINDS[language]
    rows = []
    for kind, name in zip((Gate, Mixer, Replacement), kinds, strict=True):
        keys = [key for key in list_mechanisms() if issubclass(facts(key).cls, kind)]
        links = " ".join(f"[`{key}`](docs/mechanisms/{key}.md)" for key in keys)
        rows.append((f"{name} ({len(keys)})", links))
    return table(heads, rows)


def with_nav(text: str) -> str:
    """The configuration of the site with a line of its contents for each page."""
    lines = [f"      - {key}: mechanisms/{key}.md\n" for key in list_mechanisms()]
    return between(text, NAV_START, NAV_END, "".join(lines))


def stale(root: Path) -> list[Path]:
    """Pages and drawings of mechanisms that are not in the registry."""
    keys = list_mechanisms()
    pages = sorted((root / "docs" / "mechanisms").iterdir())
    return [path for path in pages if path.stem not in keys]
