"""The page of the documentation, written from the measurements alone."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from foveate.describe.tables import table
from foveate.figures.style import svg
from gatebench import chart, rivals, targets
from gatebench.clock import quartiles
from gatebench.gates import MODES
from gatebench.rivals import EAGER, NAMES, TIMM_EAGER
from gatebench.targets import TIMM

FIGURE = "images/kernels.svg"

INTRODUCTION = """---
hide:
  - navigation
---

# Gates, measured

Written by `make bench` from `benchmarks/results/kernels.json`; nothing here is typed by hand.

On {device}, {threads} threads, torch {torch}, timm {timm}, torchvision {torchvision}, commit
`{commit}`, load before the start {load_before:.2f}. foveate's path: {kernels}. One process; all
rivals take turns in each of {rounds} rounds, their order new in each. Numbers are medians; the file
has the quartiles.

- *Inference* is evaluation mode without gradients; *training* is training mode, one forward pass
  and the gradients of the map and of all parameters.
- A *copy*, the unit of time, is `y.copy_(x)` of the same map.
- A mechanism has the options of timm's counterpart where timm has one.
- Speeds in bold are losses.
"""
MEMORY = """Saved for the backward pass, the input included, parameters not; in brackets the most
that is allocated at a time beyond the input and the gradient of the output. In multiples of the
input."""
BYTES = """How many times as fast as the faster timm a gate could be at most, if it took the time
of the readings and writings of the map that it cannot do without, at the speed of a copy, and
nothing else: a copy for inference; 2.5 for training, 3.5 for `coord` and 4 for `cbam`, which
normalise over all samples. Where the bound lies below a target, no kernel meets it."""
REACH = """The same, if a gate took the time of these alone, all measured in the same rounds:

- the map times a constant for each channel, and backward the gradient times it, each into fresh
  memory, by PyTorch or by foveate's kernel, whichever is faster;
- the matrix products of its layers, forward and backward, by PyTorch into memory that is there;
- a plain sum by PyTorch for each reading that must come before a product can be written: forward
  one of the map, nearby, as it lies in a cache for the product then; backward one of the map from
  memory and one of its gradient nearby. `cbam` reads the map once more forward, and once more
  backward, nearby. What gates read is more than sums.

No call from Python, no gates, no largest values or convolutions, no batch normalisation. The lower
quartiles of these, against the median of the faster timm. It is measured and not proved: of
{rows} rows foveate was faster than its ceiling in {refuted}, where fresh memory came at another
price. The table of targets counts a miss as out of reach where the ceiling misses too, and foveate
was not faster than it. In a host a gate can do better: it takes the sum with the shortcut and the
ReLU along, so that it writes no map of its own."""
KERNELS = """The same again, if a step of foveate were its kernels alone: the calls of them that one
step makes, repeated in the same rounds on the tensors of that step. What the measured speeds lack
to these is memory for outputs and gradients, calls from Python, and autograd; what these lack to
the ceiling above is the kernels' own."""
SAME = """In {rows} rows foveate calls no kernel, and both run the same operations. Half of these
lie between {low:.2f} and {high:.2f}, all of them between {least:.2f} and {most:.2f}: by so much
equal things differ here."""
BETWEEN = """All rivals have the same weights and results, but for timm's, whose queries, keys and
values have an eighth of the channels. Peak memory in multiples of the input. For `criss_cross` also
what every form pays, each measured alone: the convolutions for queries, keys and values with their
gradients, and the products of positions, as stacks of matrices in memory that is there. The lower
quartiles of both are the ceiling in the table of targets."""
HOSTS = """torchvision's ResNet-50 with random weights at 224 px, a gate behind the last
normalisation of each of the 16 residual branches: foveate's by
`insert(where="residual", init="paper")`, timm's by a forward hook in the same places of the same
host, whose weights all share. foveate's take the sum with the shortcut and the ReLU along."""


def write(found: dict[str, dict[str, Any]], docs: Path) -> None:
    """The page and its figure under ``docs``.

    Args:
        found: Results by kind of device: those of ``"cpu"``, and of ``"cuda"`` where they exist.
        docs: Folder of the documentation.
    """
    result = found["cpu"]
    first = result["gates"][0]
    (docs / FIGURE).write_text(svg(chart.copies(result, first["shape"], first["format"])))
    (docs / "kernels_measured.md").write_text("\n\n".join(sections(found)) + "\n")


def sections(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The parts of the page."""
    result = found["cpu"]
    first = result["gates"][0]
    place = f"{_spaced(first['shape'])}, {_words(first['format'])}"
    yield _introduction(result)
    yield "## Targets\n\n" + _judged(result)
    yield f"## Time in copies, {place}\n\n![Time of each gate in copies of its map]({FIGURE})"
    yield from _times(result, first["shape"])
    yield "## Times as fast as the faster of timm and compiled timm\n\n" + _against(result, TIMM)
    yield f"## What the bytes allow\n\n{BYTES}\n\n" + _grids(result, targets.ceiling)
    if any(targets.reach(entry) is not None for entry in result["gates"]):
        yield "## What products, layers and readings allow\n\n" + _reach(result)
    if any(targets.alone(entry) is not None for entry in result["gates"]):
        yield f"## What the kernels allow\n\n{KERNELS}\n\n" + _grids(result, targets.alone)
    yield "## Times as fast as timm without compilation\n\n" + _against(result, [TIMM_EAGER])
    yield "## Times as fast as foveate without kernels\n\n" + _over_eager(result)
    yield f"## Memory of a training step, {place}\n\n" + _memory(result)
    yield "## Attention between positions\n\n" + _between(result)
    yield "## A ResNet-50\n\n" + _hosts(result)
    yield "## Not measured\n\n" + _missing(result)
    if "cuda" in found:
        card = found["cuda"]
        name, torch = card["environment"]["device"], card["environment"]["torch"]
        yield f"## On a graphics card\n\nOn {name}, bfloat16, channels last, torch {torch}."
        yield _judged(card)
        yield from _times(card, card["gates"][0]["shape"])
        yield _hosts(card)


def _introduction(result: dict[str, Any]) -> str:
    rounds = sorted({entry["rounds"] for entry in result["gates"]})
    spans = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else str(rounds[0])
    known = {"timm": "not installed", "torchvision": "not installed", **result["environment"]}
    return "\n".join([INTRODUCTION.format(**known, rounds=spans).strip(), *_later(result)])


def _later(result: dict[str, Any]) -> Iterator[str]:
    """What was measured once more, in a process of its own."""
    for part in result.get("later", []):
        rows = " and ".join(f"`{name}`" for name in part["rows"])
        yield f"- Rows of {rows} are of a later process, which measured nothing else, on the same"
        yield f"  machine at commit `{part['environment']['commit']}`."


def _judged(result: dict[str, Any]) -> str:
    verdicts = targets.judge(targets.targets_of(result), result)
    rows = [(v.target.what, v.demand, v.text, v.where, *v.measured) for v in verdicts]
    heads = ("what", "target", "verdict", "worst at", "measured", "kernels alone", "ceiling")
    return table(heads, rows)


def _times(result: dict[str, Any], shape: str) -> Iterator[str]:
    """For each mode a table of copies; a cell has all formats."""
    for mode in MODES:
        cells: dict[str, dict[str, list[str]]] = {}
        for entry, _ in targets.entries(result, None, mode, [shape]):
            for name, (_, middle, _) in entry["copies"].items():
                row = cells.setdefault(entry["mechanism"], {})
                row.setdefault(name, []).append(f"{middle:.3g}")
        yield _grid(result, mode, [name for name in NAMES if _in_any(name, cells)], cells)


def _against(result: dict[str, Any], names: Sequence[str]) -> str:
    return _grids(result, lambda entry: targets.speed(entry, names))


def _reach(result: dict[str, Any]) -> str:
    pairs = [(targets.speed(e, TIMM), targets.reach(e)) for e in result["gates"]]
    both = [(own, limit) for own, limit in pairs if own is not None and limit is not None]
    refuted = sum(own > limit for own, limit in both)
    return REACH.format(rows=len(both), refuted=refuted) + "\n\n" + _grids(result, targets.reach)


def _over_eager(result: dict[str, Any]) -> str:
    same = sorted(e["slower"][EAGER][1] for e in result["gates"] if not e["calls"])
    shown = _against(result, [EAGER])
    if len(same) < 2:
        return shown
    low, _, high = quartiles(same)
    told = SAME.format(rows=len(same), low=low, high=high, least=same[0], most=same[-1])
    return f"{told}\n\n{shown}"


def _grids(result: dict[str, Any], value: Callable[[dict[str, Any]], float | None]) -> str:
    """A table for each mode, gates down and shapes across; a cell has all formats, losses bold."""
    parts = []
    for mode in MODES:
        cells: dict[str, dict[str, list[str]]] = {}
        for entry, _ in targets.entries(result, None, mode, None):
            ratio = value(entry)
            if ratio is not None:
                row = cells.setdefault(entry["mechanism"], {})
                row.setdefault(_spaced(entry["shape"]), []).append(_speed(ratio))
        shapes = dict.fromkeys(_spaced(entry["shape"]) for entry in result["gates"])
        parts.append(_grid(result, mode, list(shapes), cells))
    return "\n\n".join(parts)


def _grid(
    result: dict[str, Any], mode: str, heads: Sequence[str], cells: dict[str, dict[str, list[str]]]
) -> str:
    """A table with a row for each gate, under a line that says what its cells are."""
    formats = dict.fromkeys(_words(entry["format"]) for entry in result["gates"])
    rows = [
        (f"`{key}`", *(" / ".join(row.get(head, [])) for head in heads))
        for key, row in cells.items()
    ]
    return f"{mode.capitalize()}, {' / '.join(formats)}:\n\n" + table(("", *heads), rows)


def _in_any(name: str, rows: dict[str, Any]) -> bool:
    return any(name in row for row in rows.values())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _speed(ratio: float) -> str:
    return f"**{ratio:.2f}**" if round(ratio, 2) < 1 else f"{ratio:.2f}"


def _memory(result: dict[str, Any]) -> str:
    found = {entry["mechanism"]: entry["rivals"] for entry in result["memory"]}
    names = [name for name in NAMES if _in_any(name, found)]
    rows = []
    for key, row in found.items():
        cells = (row.get(name) for name in names)
        shown = (f"{c['saved']:.3g} ({c['peak']:.3g})" if c else "" for c in cells)
        rows.append((f"`{key}`", *shown))
    return f"{MEMORY}\n\n" + table(("", *names), rows)


def _between(result: dict[str, Any]) -> str:
    rows = []
    for entry in result["positions"]:
        for name, (low, middle, high) in entry["milliseconds"].items():
            took = f"{_number(middle)} ({_number(low)} to {_number(high)})"
            rows.append((f"`{entry['mechanism']}`, {_spaced(entry['shape'])}", name, took))
            if name in entry["memory"]:  # else it is no rival but a bound
                slower = entry["slower"].get(name)
                peak = f"{entry['memory'][name]['peak']:.3g}"
                rows[-1] += (_speed(slower[1]) if slower else "", peak)
            else:
                rows[-1] += ("", "")
    heads = ("", "rival", "ms of a training step (quartiles)", "times as long as foveate", "peak")
    return f"{BETWEEN}\n\n" + table(heads, rows)


def _hosts(result: dict[str, Any]) -> str:
    rows = []
    for case in result["hosts"]:
        for name, (low, middle, high) in case.get("added_percent", {}).items():
            took = case["milliseconds"][name][1]
            place = f"{case['mode']}, {_words(case['format'])}, batch {case['input'][0]}"
            rows.append((place, name, f"{took:.0f}", f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"))
    return f"{HOSTS}\n\n" + table(("", "host", "ms", "added, % (quartiles)"), rows)


def _missing(result: dict[str, Any]) -> str:
    compiled = ", ".join(f"`{key}`" for key in rivals.COMPILED)
    lines = {
        f"- {name}, `{entry['mechanism']}`: `{why.splitlines()[0]}`"
        for entry in result["gates"]
        for name, why in entry["missing"].items()
    }
    lines |= {
        f"- {name}: `{why}`" for case in result["hosts"] for name, why in case["missing"].items()
    }
    lines.add(f"- Compiled rivals take part for {compiled}, on the shapes of the targets.")
    return "\n".join(sorted(lines))


def _spaced(shape: str) -> str:
    return shape.replace("x", " × ")


def _words(layout: str) -> str:
    return layout.replace("_", " ")
