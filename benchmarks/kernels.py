"""Attention against every rival: time, memory, and what a ResNet-50 pays.

One process; all rivals take turns in each round. Prints the targets, each met or not, and writes
the measurements as JSON and, from these, a page with a figure.

Usage: python benchmarks/kernels.py [--device cuda] [--only cbam,se] [--quick] [--render]
A quick or partial measurement is written only where --out says so.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import torch

from gatebench import gates, hosts, positions, record, targets
from gatebench.clock import FEW
from gatebench.rivals import KEYS

DOCS = record.ROOT / "docs"
RESULTS = record.ROOT / "benchmarks/results"
MEASURED = (*KEYS, *positions.KEYS)
FILES = {"cpu": RESULTS / "kernels.json", "cuda": RESULTS / "kernels_cuda.json"}


def chosen(args: argparse.Namespace) -> gates.Scope:
    """What the command line asks for."""
    scope = gates.CARD if args.device == "cuda" else gates.FULL
    if args.quick:
        quick = gates.QUICK
        scope = quick if args.device == "cpu" else dataclasses.replace(scope, hosts=(), rounds=FEW)
    if args.only is None:
        return scope
    keys, between = ([key for key in args.only if key in known] for known in (KEYS, positions.KEYS))
    return dataclasses.replace(scope, keys=keys, positions=between, hosts=())


def told(records: Iterable[dict[str, Any]], start: float) -> Iterator[dict[str, Any]]:
    """The records, with a line for each shape, format or gate that is begun."""
    last = None
    for entry in records:
        now = " ".join(str(entry[field]) for field in ("shape", "format") if field in entry)
        if now != last:
            print(f"{time.perf_counter() - start:6.0f} s  {now or entry['mode']}", flush=True)
        last = now
        yield entry


def measure(scope: gates.Scope, device: torch.device, out: Path | None) -> dict[str, Any]:
    """All records. What there is so far is written after each shape, beside the file."""
    start = time.perf_counter()
    result: dict[str, Any] = {"environment": record.environment(device)}
    parts = {
        "gates": gates.times(scope, device),
        "memory": gates.memory(scope, device),
        "positions": positions.measure(scope.positions, scope.rounds, device),
        "hosts": (hosts.measure(case, device) for case in scope.hosts),
    }
    for name, records in parts.items():
        result[name] = []
        for entry in told(records, start):
            result[name].append(entry)
            if out is not None:
                record.write(result, out.with_suffix(".partial"))
    result["seconds"] = round(time.perf_counter() - start)
    if out is not None:
        record.write(result, out)
        out.with_suffix(".partial").unlink()
    return result


def report(result: dict[str, Any]) -> str:
    """The targets as lines of text."""
    lines = [
        (verdict.text, verdict.measured[0], verdict.demand, verdict.target.what, verdict.where)
        for verdict in targets.judge(targets.targets_of(result), result)
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rows = ("  ".join(map(str.ljust, line, (*widths, 0))).rstrip() for line in lines)
    return "\n".join(rows).replace("`", "")


def render() -> None:
    """The page and its figure, from what was measured."""
    from gatebench import page

    found = {kind: json.loads(path.read_text()) for kind, path in FILES.items() if path.exists()}
    if "cpu" not in found:
        raise SystemExit(f"nothing to render: there is no {FILES['cpu']}; measure first")
    page.write(found, DOCS)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(FILES), default="cpu")
    parser.add_argument("--only", type=_keys, help=f"mechanisms, with commas: {','.join(MEASURED)}")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, rounds and rivals")
    parser.add_argument("--render", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--out", type=Path, help="file of the measurements")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a graphics card that torch can use; there is none")
    return args


def _keys(text: str) -> list[str]:
    keys = text.split(",")
    for key in keys:
        if key not in MEASURED:
            raise argparse.ArgumentTypeError(f"no mechanism with kernels is called {key!r}")
    return keys


def main(arguments: Sequence[str] | None = None) -> None:
    args = parsed(arguments)
    if args.render:
        render()
        return
    complete = not args.quick and args.only is None
    out = args.out or (FILES[args.device] if complete else None)
    result = measure(chosen(args), torch.device(args.device), out)
    print(report(result))
    if complete and args.out is None and args.device == "cpu":
        render()


if __name__ == "__main__":
    main()
