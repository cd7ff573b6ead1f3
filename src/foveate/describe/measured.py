"""The measured part of the comparison, from what ``benchmarks/mechanisms.py`` wrote."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate.describe.tables import table

TEXT = """Measured on {device} with torch {torch}, threads: {threads}; {rounds} rounds, in each of
which every mechanism takes its turn right after a copy of its input. A time is the median, with the
interquartile range; in copies it hardly depends on the machine. Held is what a training step keeps
for the backward pass, in multiples of the input, the input itself included.
`python benchmarks/mechanisms.py` repeats it."""


def measured_tables(results: Path, keys: Sequence[str], link: Callable[[str], str]) -> str:
    """A table for each shape; empty if nothing was measured."""
    if not results.exists():
        return ""
    read = json.loads(results.read_text())
    environment = read["environment"]
    parts = [
        TEXT.format(
            device=environment["device"],
            threads=environment["threads"],
            torch=environment["torch"],
            rounds=read["rounds"],
        )
    ]
    for shape, found in read["shapes"].items():
        parts.append(f"### {shape.replace('x', ' × ')}")
        rows = [(link(key), *_cells(found[key])) for key in keys if key in found]
        parts.append(table(("key", "forward, ms", "copies", "held, inputs"), rows))
    return "\n\n".join(parts)


def _cells(one: dict[str, Any]) -> tuple[str, str, str]:
    held = one["held_bytes"] / one["input_bytes"]
    return _with_spread(one["forward_ms"]), _with_spread(one["copies"]), _rounded(held, 3)


def _with_spread(times: dict[str, float]) -> str:
    return f"{_rounded(times['median'], 3)} ({_rounded(times['iqr'], 2)})"


def _rounded(value: float, digits: int) -> str:
    return f"{float(f'{value:.{digits}g}'):,g}"
