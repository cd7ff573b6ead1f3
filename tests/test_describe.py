"""What is written about a mechanism is what its class says and what its code does."""

import importlib.util
import inspect
import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest
import torch

import foveate
from cases import fitting
from foveate.describe.docstrings import parse
from foveate.describe.facts import built, facts
from foveate.describe.formulas import formula_lines, markdown, plain
from foveate.describe.measured import measured_tables
from foveate.describe.pages import diagram, index_page, page, stale, with_nav
from foveate.describe.reach import receptive_field
from foveate.describe.steps import LIMIT, Step, steps

ROOT = Path(__file__).parents[1]
KEYS = foveate.list_mechanisms()
SVG = "{http://www.w3.org/2000/svg}"


# Formulas.


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"y = x \cdot \sigma(W_2\,\mathrm{relu}(W_1 z))", ["y = x · σ(W₂ relu(W₁ z))"]),
        (r"y = \frac{a + b}{c}, \quad c = 2", ["y = (a + b) / c", "c = 2"]),
        (r"\frac{f(a, b)}{d - e}", ["f(a, b) / (d - e)"]),
        (r"\sum_{j \in R_i \cup C_i}\mathrm{softmax}_j(q_i^\top k_j)", None),
        (r"\Big[\sum_s a_{is}\Big]_h", ["[∑_s a_is]_h"]),
        (r"\hat x^2 + d^{-0.5}", ["x̂² + d^(-0.5)"]),
    ],
)
def test_formulas_are_readable(latex: str, text: list[str] | None) -> None:
    expected = text or ["∑_{j ∈ R_i ∪ C_i} softmax_j(q_iᵀ k_j)"]
    assert formula_lines(latex) == expected


def test_long_formulas_break_before_operators() -> None:
    latex = r"y = a_1 \cdot f(x, z) + b_2 \cdot g(x, z) + \sum_j h(x_j, z)"
    lines = formula_lines(latex, width=24)
    assert lines == ["y = a₁ · f(x, z) + b₂", "    · g(x, z)", "    + ∑_j h(x_j, z)"]


def test_prose_loses_its_markup() -> None:
    text = "See :class:`~foveate.mechanisms.base.Gate`,\n``x`` and :math:`W_1^\\top`."
    assert plain(text) == "See Gate, x and W₁ᵀ."
    assert markdown(text) == "See `Gate`, `x` and `W₁ᵀ`."


# Docstrings.


class Documented:
    r"""Does one thing, in a sentence
    of two lines.

    .. math:: a
        + b

    - one item
      of two lines
    - another

    Args:
        first: Meaning: with a colon,
            and a second line.
        second: Other.

    Note:
        A remark.
    """


def test_docstrings_are_taken_apart() -> None:
    doc = parse(Documented)
    assert doc.summary == "Does one thing, in a sentence of two lines."
    assert [block.kind for block in doc.body] == ["text", "formula", "item", "item"]
    assert doc.body[2].content.split() == ["one", "item", "of", "two", "lines"]
    assert doc.entries("Args") == {
        "first": "Meaning: with a colon, and a second line.",
        "second": "Other.",
    }
    assert doc.sections["Note"] == "A remark."


@pytest.mark.parametrize("key", KEYS)
def test_docstrings_say_all_that_is_shown(key: str) -> None:
    known = facts(key)
    assert known.citation.endswith(".")
    assert any(block.kind == "formula" for block in known.doc.body)
    assert list(known.doc.entries("Args")) == list(inspect.signature(known.cls).parameters)


# Facts.


def test_costs_are_those_of_the_form_without_options() -> None:
    known = facts("se")
    assert (known.parameters, known.flops) == (2 * 256 * 16 + 256 + 16, 2 * 256 * 16)


@pytest.mark.parametrize("key", KEYS)
def test_identity_is_said_to_be_the_papers_where_it_is(key: str) -> None:
    x = torch.randn(2, 64, 14, 14, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    module = built(key, 64, 14, 14, **fitting(key, 64)).eval()
    says = facts(key).identity.startswith("the paper's own initialisation is the identity")
    assert torch.equal(module(x), x) == says


# Diagrams.


def outline(found: list[Step]) -> list[tuple[str, str, list[int]]]:
    return [
        (", ".join(step.labels), step.shape, [found.index(parent) for parent in step.parents])
        for step in found
    ]


def test_steps_of_squeeze_excitation() -> None:
    assert outline(steps("se")) == [
        ("input", "C × H × W", []),
        ("mean", "C × 1 × 1", [0]),
        ("linear", "C/16", [1]),
        ("ReLU", "C/16 × 1 × 1", [2]),
        ("linear", "C", [3]),
        ("sigmoid", "C × 1 × 1", [4]),
        ("multiply", "C × H × W", [0, 5]),
    ]


def test_steps_of_coordinate_attention() -> None:
    assert outline(steps("coord"))[3:6] == [
        ("concatenate", "C × (H + W) × 1", [1, 2]),
        ("conv 1 × 1, batch norm, h-swish", "C/32 × (H + W) × 1", [3]),
        ("conv 1 × 1", "C × H × 1", [4]),
    ]


def test_parts_that_take_many_steps_are_one_each() -> None:
    labels = [label for step in steps("mobilevit") for label in step.labels]
    assert labels.count("transformer layer") == 2
    assert "attention" not in labels


def test_loops_are_one_step() -> None:
    assert "add 48 times" in steps("involution")[-1].labels  # 7 x 7 places


@pytest.mark.parametrize("key", KEYS)
def test_steps_are_few_and_lead_from_the_input_to_the_output(key: str) -> None:
    found = steps(key)
    assert 3 <= len(found) <= LIMIT
    assert found[0].labels == ("input",)
    assert found[0].shape == found[-1].shape == "C × H × W"
    assert all(found.index(p) < place for place, step in enumerate(found) for p in step.parents)
    assert {p for step in found for p in step.parents} == set(found[:-1])
    rounded = key == "aa"  # its heads have the width that is left after rounding
    assert rounded or not [step.shape for step in found if "…" in step.shape]


@pytest.mark.parametrize("key", KEYS)
def test_boxes_of_a_diagram_keep_clear_of_each_other(key: str) -> None:
    drawn = ElementTree.fromstring(diagram(key))
    left, top, width, height = map(float, drawn.get("viewBox", "").split())
    boxes = [
        tuple(float(box.get(name, "")) for name in ("x", "y", "width", "height"))
        for box in drawn.iter(f"{SVG}rect")
        if box.get("class") in ("box", "end")
    ]
    assert len(boxes) == len(steps(key))
    for x, y, w, h in boxes:
        assert x >= left
        assert y >= top
        assert x + w <= left + width
        assert y + h <= top + height
    for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    arrows = [path for path in drawn.iter(f"{SVG}path") if path.get("class") == "edge"]
    assert len(arrows) == sum(len(step.parents) for step in steps(key))


# What a position depends on.


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("static", "itself alone"),
        ("spatial", "a window of 7 × 7"),
        ("coord", "its row and its column"),
        ("triplet", "7 rows and 7 columns"),
        ("criss_cross", "all positions"),
        ("lka", "a window of 23 × 23"),
        ("gc", "all positions"),
    ],
)
def test_receptive_fields(key: str, field: str) -> None:
    assert receptive_field(key) == field


# Pages.


@pytest.mark.parametrize("key", KEYS)
def test_page_is_in_step(key: str) -> None:
    folder, hint = ROOT / "docs" / "mechanisms", "python -m foveate.describe writes it again"
    assert (folder / f"{key}.md").read_text() == page(key), hint
    assert (folder / f"{key}.svg").read_text() == diagram(key), hint


def test_list_of_pages_is_in_step() -> None:
    assert (ROOT / "docs" / "mechanisms.md").read_text() == index_page(ROOT)
    assert not stale(ROOT)
    configuration = (ROOT / "mkdocs.yml").read_text()
    assert configuration == with_nav(configuration)
    assert all(f"- {key}: mechanisms/{key}.md\n" in configuration for key in KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_page_names_the_transcription(key: str) -> None:
    name = facts(key).cls.__module__.rpartition(".")[2]
    assert f"`tests/references/{name}.py`" in page(key)
    assert (ROOT / "tests" / "references" / f"{name}.py").exists()


# What was measured.


def benchmark() -> ModuleType:
    path = ROOT / "benchmarks" / "mechanisms.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_mechanisms", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_tables_show_what_the_benchmark_wrote(tmp_path: Path) -> None:
    out = tmp_path / "mechanisms.json"
    words = ["--keys", "se,nl", "--rounds", "3", "--shapes", "2x16x8x6", "--out", str(out)]
    benchmark().main(words)
    (found,) = json.loads(out.read_text())["shapes"].values()
    assert list(found) == ["se", "nl"]
    assert found["se"]["input_bytes"] == 4 * 2 * 16 * 8 * 6
    assert found["nl"]["held_bytes"] > found["se"]["held_bytes"] >= found["se"]["input_bytes"]
    text = measured_tables(out, ["nl", "none", "se"], str.upper)
    assert "2 × 16 × 8 × 6" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| NL", "| SE"]
    found["se"]["copies"] = {"median": 1234.5, "iqr": 0.0678}
    out.write_text(json.dumps({**json.loads(out.read_text()), "shapes": {"1x1": found}}))
    assert "| 1,230 (0.068) |" in measured_tables(out, ["se"], str)


def test_without_measurements_there_is_no_table(tmp_path: Path) -> None:
    assert measured_tables(tmp_path / "none.json", ["se"], str) == ""
