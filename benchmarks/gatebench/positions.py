"""Attention between positions against textbook forms: time and peak memory of a training step.

All rivals have the same weights and results.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate import create
from gatebench.clock import Contender, Rounds, quartiles, ratios, take_turns
from gatebench.memory import footprint
from gatebench.position_forms import FORMS
from gatebench.rivals import (
    EAGER,
    FOVEATE,
    TIMM_EAGER,
    Rival,
    compiled,
    on_path,
    products_of,
    step,
)

PROJECTIONS = "its projections"
"""What every form of a mechanism pays for queries, keys and values, forward and backward."""
AFFINITIES = "its products of positions"
"""The same for scores and weighted values, as stacks of matrices in memory that is there."""
BOUNDS = (PROJECTIONS, AFFINITIES)

SHAPES = {
    "danet_position": (1, 512, 97, 97),
    "criss_cross": (1, 512, 97, 97),
    "nl": (8, 256, 28, 28),
    "mhsa": (8, 256, 28, 28),
    "a2": (8, 256, 56, 56),
    "efficient": (8, 256, 56, 56),
    "external": (8, 256, 56, 56),
}
KEYS = tuple(SHAPES)


def measure(keys: Sequence[str], rounds: Rounds, device: torch.device) -> Iterator[dict[str, Any]]:
    """A record for each mechanism: milliseconds, how much slower than foveate, and memory."""
    for key in keys:
        x = torch.randn(SHAPES[key], device=device)
        rivals = list(rivals_of(key, x))
        check(rivals, x)
        contenders = [
            Contender(r.name, step(r, x, training=True), partial(on_path, r)) for r in rivals
        ]
        if key == "criss_cross":
            own = rivals[0].module
            for name, call in zip(BOUNDS, (projections(own, x), affinities(own, x)), strict=True):
                contenders.append(Contender(name, call, nullcontext))
        times = take_turns(contenders, device, rounds)
        yield {
            "mechanism": key,
            "shape": "x".join(map(str, SHAPES[key])),
            "rounds": len(times[FOVEATE]),
            "milliseconds": {name: quartiles(values) for name, values in times.items()},
            "slower": {name: ratios(times, name, FOVEATE) for name in times if name != FOVEATE},
            "memory": {rival.name: footprint(rival, x) for rival in rivals},
        }


def rivals_of(key: str, x: Tensor) -> Iterator[Rival]:
    """Those of foveate, with and without kernels; textbook forms, also compiled; and timm's."""
    torch.manual_seed(0)
    own = create(key, x.shape[1])
    for parameter in own.parameters():  # some start as zeros, or so small that a norm magnifies
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        nn.init.normal_(parameter, std=fan_in**-0.5)
    own.to(x.device)
    yield Rival(FOVEATE, own, own)
    yield Rival(EAGER, own, own, "eager")
    for name, form in FORMS[key].items():
        module = form(x.shape[1]).to(x.device)
        module.load_state_dict(own.state_dict())
        yield Rival(name, module, module)
        yield Rival(compiled(name), module, torch.compile(module, dynamic=False))
    if key == "nl":
        from timm.layers import NonLocalAttn

        module = NonLocalAttn(x.shape[1]).to(x.device)
        yield Rival(TIMM_EAGER, module, module)


def projections(own: nn.Module, x: Tensor) -> Callable[[], object]:
    """The convolutions of criss-cross attention with all their gradients, and nothing else."""
    x = x.detach().requires_grad_()
    parameters = [p for name, p in own.named_parameters() if name.split(".")[0].endswith("_conv")]
    grads: list[Tensor] = []

    def project() -> object:
        found, value = [], x
        for _ in range(own.recurrence):
            found += [own.query_conv(value), own.key_conv(value)]
            value = own.value_conv(value)
        if not grads:
            grads.extend(torch.randn_like(t) for t in (*found, value))
        return torch.autograd.grad([*found, value], [x, *parameters], grads)

    return project


def affinities(own: nn.Module, x: Tensor) -> Callable[[], object]:
    """The products of criss-cross attention along columns and rows, with those of gradients."""
    B, C, H, W = x.shape
    hidden = own.query_conv.out_channels
    pairs = []
    for lines, length in ((B * W, H), (B * H, W)):
        query, value = x.new_ones(lines, length, hidden), x.new_ones(lines, C, length)
        pairs.append((query, torch.ones_like(query).mT))
        pairs.append((value, x.new_ones(lines, length, length)))
    return products_of(pairs * own.recurrence, training=True)


def check(rivals: Sequence[Rival], x: Tensor) -> None:
    """Refuse rivals that compute something else; timm's has fewer features, so other results."""
    expected = rivals[0].call(x)
    for rival in rivals:
        if rival.name != TIMM_EAGER:
            torch.testing.assert_close(
                rival.call(x), expected, rtol=1e-3, atol=1e-3, msg=rival.name
            )
