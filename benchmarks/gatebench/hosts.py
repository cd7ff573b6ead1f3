"""What gates add to a ResNet-50: a training step, and inference."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate import insert
from gatebench.clock import Contender, quartiles, ratios, take_turns

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
GATES = ("cbam", "se")
BARE = "bare"
ROUNDS = {"training": (11, 51), "inference": (101, 101)}
"""More than of a gate: what is sought is a few percent, and of shorter runs fewer."""


@dataclass(frozen=True)
class Case:
    """One way to run the hosts."""

    mode: str
    layout: str
    batch: int
    side: int = 224


ON_PROCESSOR = (
    Case("training", "contiguous", 8),
    Case("training", "channels_last", 8),
    Case("inference", "channels_last", 8),
)
ON_CARD = (Case("training", "channels_last", 128), Case("inference", "channels_last", 128))


def hosts() -> tuple[dict[str, nn.Module], dict[str, str]]:
    """A ResNet-50, bare and with each gate of each side, and what could not be built.

    It is torchvision's; all have the same random weights, in the same memory: two copies of a host
    differ by several percent for as long as they live. Each gate stands behind the last
    normalisation of a block's residual branch: foveate's by ``insert(where="residual",
    init="paper")``, timm's by a hook.
    """
    try:
        from torchvision.models import resnet50
    except ImportError as error:
        return {}, {"ResNet-50": f"ImportError: {error}"}
    torch.manual_seed(0)
    bare = resnet50()
    found, missing = {BARE: bare}, {}
    weights = {id(t): t for t in (*bare.parameters(), *bare.buffers())}

    def host() -> nn.Module:
        return copy.deepcopy(bare, dict(weights))

    for gate in GATES:
        found[f"foveate {gate}"] = host()
        insert(found[f"foveate {gate}"], gate, where="residual", init="paper")
        try:
            found[f"timm {gate}"] = _hooked(host(), _timm(gate))
        except ImportError as error:
            missing[f"timm {gate}"] = f"ImportError: {error}"
    return found, missing


def _timm(gate: str) -> Callable[[int], nn.Module]:
    from timm.layers import create_attn

    return partial(create_attn, gate)


def _hooked(model: nn.Module, create: Callable[[int], nn.Module]) -> nn.Module:
    for name, norm in list(model.named_modules()):
        if name.endswith(".bn3"):
            norm.attention = create(norm.num_features)
            norm.register_forward_hook(lambda module, _, output: module.attention(output))
    return model


def measure(case: Case, device: torch.device) -> dict[str, object]:
    """Times of all hosts in turns, and what each adds to the bare one, in percent."""
    models, missing = hosts()
    if not models:
        return {"missing": missing}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.randn(case.batch, 3, case.side, case.side, device=device, dtype=dtype)
    x = x.to(memory_format=FORMATS[case.layout])
    contenders = [
        Contender(name, _step(model.to(x.device, dtype), case, x), nullcontext)
        for name, model in models.items()
    ]
    times = take_turns(contenders, device, ROUNDS[case.mode])
    return {
        "mode": case.mode,
        "format": case.layout,
        "input": list(x.shape),
        "milliseconds": {name: quartiles(found) for name, found in times.items()},
        "added_percent": {
            name: [round(100 * (q - 1), 2) for q in ratios(times, name, BARE)]
            for name in times
            if name != BARE
        },
        "rounds": len(times[BARE]),
        "missing": missing,
    }


def _step(model: nn.Module, case: Case, x: Tensor) -> Callable[[], object]:
    model.to(memory_format=FORMATS[case.layout])
    if case.mode == "inference":
        model.eval()
        return torch.no_grad()(lambda: model(x))
    model.train()
    labels = torch.arange(case.batch, device=x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return train
