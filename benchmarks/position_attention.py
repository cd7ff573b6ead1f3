"""Attention between positions against textbook forms: time and peak memory of a training step.

One process; all rivals take turns in each round, and have the same weights and results. A step is
a forward pass and the gradients of the input and of all parameters. Its peak is the most that
PyTorch had allocated at a time, the output and the gradients included, the input and the gradient
of the output not, in multiples of the input; working memory of a kernel outside of PyTorch's
allocator is not in it: about 1 MB for each thread.

Usage: python benchmarks/position_attention.py [--only nl,mhsa] [--out FILE]
A partial measurement is written only where --out says so.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import torch
from torch import Tensor, nn

from foveate import create
from gatebench import record
from gatebench.clock import Contender, quartiles, ratios, take_turns
from gatebench.memory import footprint
from gatebench.position_forms import FORMS
from gatebench.rivals import EAGER, FOVEATE, Rival, on_path, step

OUT = record.ROOT / "benchmarks/results/position_attention.json"
SHAPES = {
    "danet_position": (1, 512, 97, 97),
    "criss_cross": (1, 512, 97, 97),
    "nl": (8, 256, 28, 28),
    "mhsa": (8, 256, 28, 28),
    "a2": (8, 256, 56, 56),
    "efficient": (8, 256, 56, 56),
    "external": (8, 256, 56, 56),
}
ROUNDS = (7, 51)
CPU = torch.device("cpu")


def rivals_of(key: str, x: Tensor) -> Iterator[Rival]:
    """Those of foveate, with and without kernels; textbook forms, also compiled; and timm's."""
    torch.manual_seed(0)
    own = create(key, x.shape[1])
    for parameter in own.parameters():  # some start as zeros, or so small that a norm magnifies
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        nn.init.normal_(parameter, std=fan_in**-0.5)
    yield Rival(FOVEATE, own, own)
    yield Rival(EAGER, own, own, "eager")
    for form in FORMS[key]:
        module = form(x.shape[1])
        module.load_state_dict(own.state_dict())
        yield Rival(f"textbook {form.__name__}", module, module)
        compiled = torch.compile(module, dynamic=False)
        yield Rival(f"textbook {form.__name__} compiled", module, compiled)
    if key == "nl":
        from timm.layers import NonLocalAttn

        module = NonLocalAttn(x.shape[1])
        yield Rival("timm NonLocalAttn", module, module)


def check(rivals: Sequence[Rival], x: Tensor) -> None:
    """Refuse rivals that compute something else; timm's has fewer features, so other results."""
    expected = rivals[0].call(x)
    for rival in rivals:
        if not rival.name.startswith("timm"):
            torch.testing.assert_close(
                rival.call(x), expected, rtol=1e-3, atol=1e-3, msg=rival.name
            )


def measure(key: str) -> dict[str, Any]:
    """Quartiles of the milliseconds of each rival, of how much slower it is, and its peak."""
    x = torch.randn(SHAPES[key])
    rivals = list(rivals_of(key, x))
    check(rivals, x)
    contenders = [
        Contender(rival.name, step(rival, x, training=True), lambda rival=rival: on_path(rival))
        for rival in rivals
    ]
    times = take_turns(contenders, CPU, ROUNDS)
    return {
        "mechanism": key,
        "shape": "x".join(map(str, SHAPES[key])),
        "rounds": len(times[FOVEATE]),
        "milliseconds": {name: quartiles(values) for name, values in times.items()},
        "slower": {name: ratios(times, name, FOVEATE) for name in times},
        "memory": {rival.name: footprint(rival, x) for rival in rivals},
    }


def lines(entry: dict[str, Any]) -> Iterator[str]:
    """A table of one measurement."""
    yield f"{entry['mechanism']} {entry['shape']}, forward and backward, {entry['rounds']} rounds"
    for name, (low, median, high) in entry["milliseconds"].items():
        slower, peak = entry["slower"][name][1], entry["memory"][name]["peak"]
        yield (
            f"  {name:38} {median:8.1f} ms ({low:.1f} to {high:.1f})"
            f"  {slower:5.2f}x  peak {peak:5.1f} x input"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"mechanisms, with commas: {','.join(SHAPES)}")
    parser.add_argument("--out", type=Path, help="file of the measurements")
    args = parser.parse_args(arguments)
    keys = list(SHAPES) if args.only is None else args.only.split(",")
    for key in keys:
        if key not in SHAPES:
            parser.error(f"--only takes some of {','.join(SHAPES)}, but got {key!r}")
    result: dict[str, Any] = {"environment": record.environment(CPU), "entries": []}
    for key in keys:
        entry = measure(key)
        result["entries"].append(entry)
        print("\n".join(lines(entry)), flush=True)
    out = OUT if args.only is None and args.out is None else args.out
    if out is not None:
        record.write(result, out)


if __name__ == "__main__":
    main()
