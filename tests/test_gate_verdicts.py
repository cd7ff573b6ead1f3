"""What the benchmark of the gates makes of its numbers: verdicts, ceilings, the page."""

import json
from pathlib import Path

import pytest

import gatebench.hosts
import kernels
from gatebench import gates, page, position_forms, positions, rivals, targets
from gatebench.record import write


def times(ratio: float) -> list[float]:
    return [0.9 * ratio, ratio, 1.1 * ratio]


def from_quartile(lower: float) -> list[float]:
    return [lower, 2 * lower, 3 * lower]


def result(eager: float = 2.0, timm: float = 9.0, compiled: float = 9.0) -> dict:
    """An invented measurement in which every gate has the same figures."""
    slower = {
        rivals.EAGER: eager,
        rivals.TIMM_EAGER: timm,
        rivals.TIMM_COMPILED: compiled,
        rivals.TEXTBOOK: 5.0,
    }
    copies = {rivals.FOVEATE: 10.0, **{name: 10 * ratio for name, ratio in slower.items()}}
    entries = [
        {
            **{"mechanism": key, "mode": mode, "shape": shape, "format": "contiguous"},
            "milliseconds": {name: times(value) for name, value in copies.items()},
            "copies": {name: times(value) for name, value in copies.items()},
            "slower": {name: times(value) for name, value in slower.items()},
            "rounds": 7,
            "calls": 2,
            "missing": {"timm eager": "TypeError: no"} if key == "ge" else {},
        }
        for shape in gates.ALL
        for key in rivals.KEYS
        for mode in gates.MODES
    ]
    held = {rivals.FOVEATE: {"saved": 1.05, "held": 0.05, "peak": 2.0}}
    hosts = [
        {
            **{"mode": case.mode, "format": case.layout, "input": [8, 3, 224, 224], "rounds": 7},
            "milliseconds": {name: times(100) for name in ("bare", "foveate cbam", "foveate se")},
            "added_percent": {"foveate cbam": times(5), "foveate se": times(2)},
            "missing": {"timm se": "ImportError: no"},
        }
        for case in gatebench.hosts.ON_PROCESSOR
    ]
    return {
        "environment": {
            **{"kind": "cpu", "device": "a processor", "threads": 2, "torch": "2", "commit": "c"},
            **{"load_before": 0.0, "kernels": "cpu: there"},
        },
        "gates": entries,
        "memory": [{"mechanism": "se", "rivals": held}],
        "positions": [between(key) for key in positions.KEYS],
        "hosts": hosts,
    }


def between(key: str) -> dict:
    """An invented measurement of attention between positions."""
    forms = [form for name in position_forms.FORMS[key] for form in (name, rivals.compiled(name))]
    slower = {rivals.EAGER: 2.0, **dict.fromkeys(forms, 3.0)}
    peaks = {rivals.FOVEATE: 4.0, rivals.EAGER: 9.0, **dict.fromkeys(forms, 10.0)}
    return {
        **{"mechanism": key, "shape": "1x512x97x97", "rounds": 7},
        "milliseconds": {name: times(value) for name, value in {"foveate": 1.0, **slower}.items()},
        "slower": {name: times(value) for name, value in slower.items()},
        "memory": {name: {"peak": value} for name, value in peaks.items()},
    }


def verdicts(found: dict) -> dict[str, targets.Verdict]:
    return {v.demand: v for v in targets.judge(targets.ON_PROCESSOR_TARGETS, found)}


def test_verdicts_follow_the_numbers() -> None:
    assert {v.text for v in verdicts(result()).values()} == {"met"}
    compiled = verdicts(result(compiled=3.0))  # the faster of two rivals counts
    assert compiled["at least 8x"].text == "not met, 1 of 1 miss"
    assert compiled["at least 2.5x"].text == "met"
    assert verdicts(result(eager=0.9))["at least 0.95x"].text == "not met, 272 of 272 miss"
    empty = {**result(), "gates": [], "memory": [], "positions": [], "hosts": []}
    assert {v.text for v in verdicts(empty).values()} == {"not measured"}


def test_attention_between_positions_is_judged_by_its_fastest_form() -> None:
    found = result()
    for entry in found["positions"]:
        entry["slower"][rivals.compiled(position_forms.EINSUM)] = times(1.9)
        entry["slower"][rivals.compiled(rivals.TEXTBOOK)] = times(1.4)
        entry["memory"][rivals.FOVEATE]["peak"] = 6.1
    shown = verdicts(found)
    for demand, value in {
        "at least 2x": 1.9,
        "at least 1.5x": 1.4,
        "at most 6 x input": 6.1,
        "at most 0.5 of einsum's": 0.61,
    }.items():
        assert shown[demand].text == "not met, 1 of 1 miss"
        assert shown[demand].worst.value == pytest.approx(value)


def test_a_form_is_bound_by_the_products_that_it_pays() -> None:
    found = result()
    (entry,) = (e for e in found["positions"] if e["mechanism"] == "criss_cross")
    entry["slower"] |= {name: times(1.4) for name in entry["slower"]}
    assert verdicts(found)["at least 2x"].text == "not met, 1 of 1 miss"
    for name in positions.BOUNDS:
        entry["milliseconds"][name] = from_quartile(1.0)
    shown = verdicts(found)["at least 2x"]
    assert shown.measured == ("1.4x", "", "1.5x")
    assert shown.text == "not met, 1 of 1 miss, 1 of them out of reach"


def test_bytes_bound_what_can_be_reached() -> None:
    found = result(timm=6.0, compiled=4.0)["gates"]
    by_name = {(entry["mechanism"], entry["mode"]): entry for entry in found}
    assert targets.ceiling(by_name["cbam", "training"]) == 40.0 / 4
    assert targets.ceiling(by_name["se", "inference"]) == 40.0
    assert targets.ceiling(by_name["simam", "training"]) is None


def test_one_product_bounds_what_can_be_reached() -> None:
    """At its lower quartile; the rival counts with its median."""
    found = result(timm=6.0, compiled=4.0)
    cbam = [e for e in found["gates"] if (e["mechanism"], e["mode"]) == ("cbam", "training")]
    assert [targets.reach(entry) for entry in cbam] == [None] * len(cbam)
    theirs = targets.median(cbam[0], rivals.TIMM_COMPILED)
    for entry in cbam:
        entry["milliseconds"] |= {
            name: from_quartile(theirs / n) for name, n in zip(rivals.PRODUCTS, (7, 6), strict=True)
        }
    assert targets.reach(cbam[0]) == pytest.approx(7)
    cbam[0]["milliseconds"][rivals.LAYERS] = from_quartile(6 * theirs / 7)
    assert targets.reach(cbam[0]) == pytest.approx(1)
    del cbam[0]["milliseconds"][rivals.LAYERS]
    shown = verdicts(found)
    assert shown["at least 8x"].beyond == shown["at least 8x"].misses == 1
    assert "1 of them out of reach" in shown["at least 8x"].text
    assert shown["at least 8x"].measured[2] == "7x"
    # One reading from memory and four nearby.
    cbam[0]["milliseconds"] |= {
        rivals.READING: from_quartile(5 * theirs / 14),
        rivals.NEAR: from_quartile(theirs / 8),
    }
    assert targets.reach(cbam[0]) == pytest.approx(1)


def test_a_ceiling_that_a_gate_passed_is_none() -> None:
    """The miss is not called out of reach, and the page counts the row."""
    found = result(timm=6.0, compiled=4.0)
    entry = next(e for e, _ in targets.entries(found, ["cbam"], "training", targets.LARGE[:1]))
    theirs = targets.median(entry, rivals.TIMM_COMPILED)
    for times_as_fast, refuted in ((7, 0), (3, 1)):
        entry["milliseconds"][rivals.PRODUCTS[0]] = from_quartile(theirs / times_as_fast)
        verdict = verdicts(found)["at least 8x"]
        assert (verdict.worst.value, verdict.misses) == (4, 1)
        assert verdict.beyond == 1 - refuted
        (text,) = (s for s in page.sections({"cpu": found}) if "layers and readings allow" in s)
        assert f"faster than its ceiling in {refuted}" in " ".join(text.split())


def test_what_the_kernels_alone_would_reach() -> None:
    """Round by round: what the gate reaches, over the share that its kernels have of it."""
    found = result(timm=6.0, compiled=4.0)
    entry = next(e for e, _ in targets.entries(found, ["cbam"], "training", targets.LARGE[:1]))
    assert targets.alone(entry) is None
    entry["slower"][rivals.ALONE] = times(0.5)
    assert targets.alone(entry) == 8
    assert verdicts(found)["at least 8x"].measured == ("4x", "8x", "")
    assert "## What the kernels allow" in "".join(page.sections({"cpu": found}))


def test_operations_against_themselves_are_told_apart() -> None:
    found = result(eager=0.9)
    for entry in found["gates"][:3]:
        entry["calls"] = 0
    text = verdicts(found)["at least 0.95x"].text
    assert text == "not met, 272 of 272 miss, 3 of them the same operations"
    assert "In 3 rows foveate calls no kernel" in "".join(page.sections({"cpu": found}))


def test_a_verdict_names_the_worst() -> None:
    found = result()
    found["gates"][5]["slower"][rivals.EAGER] = times(0.5)
    found["memory"].append(
        {"mechanism": "cbam", "rivals": {rivals.FOVEATE: {"saved": 1.0, "held": 0.7}}}
    )
    shown = verdicts(found)
    entry = found["gates"][5]
    assert shown["at least 0.95x"].where.startswith(f"{entry['mechanism']} {entry['mode']}")
    assert shown["at least 0.95x"].worst.value == 0.5
    assert shown["at most 1.1 x input"].worst == targets.Value(1.7, "cbam")


def test_the_page_shows_losses_and_gaps(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    found = result(eager=0.9)
    found["later"] = [{"rows": ["se", "gc"], "environment": {"commit": "abc"}}]
    page.write({"cpu": found}, tmp_path)
    text = (tmp_path / "kernels_measured.md").read_text()
    assert "- Rows of `se` and `gc` are of a later process" in text
    assert "machine at commit `abc`." in text
    assert "| `se` | **0.90** |" in text
    assert "| `criss_cross`, 1 × 512 × 97 × 97 | einsum | 3 (2.7 to 3.3) | 3.00 | 10 |" in text
    assert "- timm eager, `ge`: `TypeError: no`" in text
    assert "- timm se: `ImportError: no`" in text
    assert "nan" not in text
    figure = (tmp_path / page.FIGURE).read_text()
    assert all(f">{key}<" in figure for key in rivals.KEYS)


def test_measurements_are_rendered(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "images").mkdir()
    write(result(), tmp_path / "all.json")
    monkeypatch.setattr(kernels, "DOCS", tmp_path)
    monkeypatch.setattr(
        kernels, "FILES", {"cpu": tmp_path / "all.json", "cuda": tmp_path / "none.json"}
    )
    kernels.main(["--render"])
    assert (tmp_path / "kernels_measured.md").exists()
    assert (tmp_path / page.FIGURE).exists()


def test_results_are_read_back(tmp_path: Path) -> None:
    found = result()
    write(found, tmp_path / "new" / "found.json")
    assert json.loads((tmp_path / "new" / "found.json").read_text()) == found
