"""The page, the table and the numbers that a comparison leaves behind."""

import csv
import html.parser
import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from foveate.experiments.reporting import report
from foveate.experiments.reporting.report import write_report
from foveate.experiments.reporting.results import Results, RunResult
from foveate.experiments.reporting.statistics import compare_to_baseline
from foveate.experiments.reporting.tables import runs_csv, verdict_table
from synthetic_results import describe, realistic, results_of

NAMES = ["none", "static", "se", "eca", "cbam", "coord", "danet_position"]
EVIL = '"><script>alert(1)</script><img src="http://example.com/x.png">'


def compared(results: Results) -> Results:
    results.comparisons = compare_to_baseline(results)
    return results


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page, and whether its tags are balanced."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag, f"{tag} closes something else"
        if tag in ("td", "th", "dt"):
            self.words.append(" ")

    def handle_data(self, data) -> None:
        if "style" not in self.open:
            self.words.append(data)


def page_of(results: Results) -> Page:
    return Page(report.render(compared(results), report.illustrate(results)))


def test_report_writes_its_files_and_nothing_else(tmp_path: Path) -> None:
    results = compared(realistic(NAMES[:3], seeds=3, epochs=3))
    page = write_report(results, tmp_path / "new" / "out")
    assert page == tmp_path / "new" / "out" / "report.html"
    names = ("differences", "accuracy-against-cost", "accuracy-per-epoch", "loss-per-step")
    written = {str(p.relative_to(page.parent)) for p in page.parent.rglob("*") if p.is_file()}
    drawn = {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert written == {"report.html", "results.json", "results.csv", *drawn}
    assert Results.from_json(page.parent / "results.json") == results
    before = page.read_bytes()
    write_report(results, page.parent)
    assert page.read_bytes() == before


def test_page_stands_alone_and_is_small() -> None:
    results = compared(realistic(NAMES, seeds=10, epochs=100, steps=100))
    text = report.render(results, report.illustrate(results))
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) < 3_000_000
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    fetched = [value for key, value in page.attributes if key in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in fetched)
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("svg") == 4


def test_page_answers_first_with_every_verdict() -> None:
    results = compared(realistic(NAMES, seeds=5))
    text = page_of(results).text
    for comparison in results.comparisons:
        assert text.index(comparison.explanation) < text.index("Figures")
    better = [c.mechanism for c in results.comparisons if c.verdict == "better"]
    assert better
    assert f"Better than none: {', '.join(better)}." in text


@pytest.mark.parametrize("name", [EVIL, "花卉与植物园", "زهرة عباد الشمس"])
def test_names_of_users_are_text_and_never_markup(name: str) -> None:
    data = {**describe()["data"], "name": name, "classes": [name], "record": {name: [name]}}
    config, environment = {"data": name}, {"device": name}
    mechanism = name if name.isascii() else "mine"
    results = realistic(
        ["none", "se", mechanism],
        seeds=2,
        epochs=2,
        **{"data": data, "host": name, "config": config, "environment": environment},
        **{"command": name, "foveate": name, "created": name},
    )
    results.runs[-1] = RunResult(mechanism=mechanism, seed=1, status="failed", reason=name)
    results.sites[name] = results.sites["se"]
    page = page_of(results)
    assert {"script", "img"}.isdisjoint(page.tags)
    assert page.open == []
    assert page.text.count(name) >= 14


def test_long_lists_are_cut_and_say_so() -> None:
    record = {"skipped": {f"image{i}.png": "truncated" for i in range(1000)}}
    data = {**describe()["data"], "classes": [f"class {i}" for i in range(500)], "record": record}
    text = page_of(results_of({"none": [90.0]}, data=data)).text
    assert "class 59, and 440 more in results.json" in text
    assert "940 more in results.json" in text
    assert "image60.png" not in text


def test_what_is_empty_is_shown_as_a_dash() -> None:
    data = {"name": "digits", "skipped": {}, "classes": [], "limit": None, "seed": 0}
    text = page_of(results_of({"none": [90.0]}, data=data)).text
    for shown in ("skipped -", "classes -", "limit -", "seed 0"):
        assert shown in text


def test_page_shows_failures_and_leaves_their_cells_empty() -> None:
    results = realistic(["none", "static", "se"], seeds=3, epochs=2)
    results.runs[-1] = RunResult(mechanism="se", seed=2, status="failed", reason="CUDA ran out")
    text = page_of(results).text
    assert "Failed runs" in text
    assert "se 2 CUDA ran out" in text
    assert "No verdict: se." in text
    assert "Failed runs" not in page_of(realistic(["none", "se"], seeds=2, epochs=2)).text


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ({"none": [97.0, 96.0]}, "Nothing was compared"),
        ({"none": [None], "se": [None]}, "No run has finished"),
        ({"se": [97.0]}, "no seed has a finished run of both se and none"),
        ({"none": [97.0], "se": [98.0]}, "1 seed is too few"),
    ],
)
def test_page_of_a_comparison_that_shows_little(accuracies, said: str, tmp_path: Path) -> None:
    results = compared(results_of(accuracies))
    assert said in Page(write_report(results, tmp_path).read_text(encoding="utf-8")).text


def test_mechanisms_with_the_same_places_share_an_entry() -> None:
    results = realistic(["none", "static", "se"], seeds=2, epochs=1)
    results.sites = {"none": [], "static": results.sites["se"], "se": results.sites["se"]}
    assert [names for names, _ in report.sites(results)] == ["static, se"]


def test_energy_is_shown_only_where_it_was_read() -> None:
    results = realistic(["none", "se"], seeds=3, epochs=1)
    assert "energy" not in page_of(results).text
    for run in results.runs:
        run.energy_joules = 1500.0
    assert "1.50 kJ" in page_of(results).text


def lines(results: Results, width: int) -> list[str]:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(verdict_table(results, width=width))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_verdict_table_fits_the_terminal_whole(width: int) -> None:
    results = compared(realistic(NAMES, seeds=5, epochs=1))
    printed = lines(results, width)
    assert max(cell_len(line.rstrip()) for line in printed) <= width
    text = "\n".join(printed)
    assert "…" not in text
    for comparison in results.comparisons:
        row = next(line for line in printed if line.startswith(f"{comparison.mechanism} "))
        assert comparison.verdict in row
        assert f"{comparison.difference:+.2f}" in row


def test_long_names_of_any_script_leave_the_verdict_readable() -> None:
    long = "通道注意力 with a reduction of 4"
    results = compared(realistic(["none", "se", long], seeds=3, epochs=1))
    for width in range(60, 110):
        printed = lines(results, width)
        assert max(cell_len(line.rstrip()) for line in printed) <= width
        assert any(line.startswith(long) and "not distinguishable" in line for line in printed)
    assert "verdict" in " ".join(lines(results, 40))


def test_narrow_terminals_drop_the_costs_and_wide_ones_show_all() -> None:
    results = compared(realistic(NAMES, seeds=5, epochs=1))
    narrow, usual, wide = (" ".join(lines(results, width)) for width in (80, 100, 200))
    assert "interval" in narrow
    assert "params" not in narrow
    assert "params" in usual
    for title in ("FLOPs", "latency", "memory", "images/s", "time", "needed"):
        assert title in wide


def test_csv_has_a_line_for_each_run_with_plain_numbers() -> None:
    results = realistic(["none", "se"], seeds=2, epochs=1)
    results.runs.append(RunResult(mechanism="se", seed=2, status="failed", reason='a, "b"\nc'))
    read = list(csv.DictReader(io.StringIO(runs_csv(results))))
    assert [(line["mechanism"], line["seed"]) for line in read[-3:]] == [
        ("se", "0"),
        ("se", "1"),
        ("se", "2"),
    ]
    none, se = read[1], read[3]
    gain = float(se["test_accuracy"]) - float(none["test_accuracy"])
    assert float(se["difference_to_none"]) == pytest.approx(gain)
    assert int(se["cost_parameters"]) == results.costs["se"].parameters
    assert (read[-1]["reason"], read[-1]["difference_to_none"]) == ('a, "b"\nc', "")
