"""Who is measured against whom: modules for one mechanism on one shape."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate import create, kernels, ops
from foveate.registry import get_mechanism
from gatebench.textbook import FORMS

KEYS = (
    *("se", "ese", "eca", "cbam", "spatial", "bam", "coord", "gc", "simam", "triplet"),
    *("gct", "srm", "sge", "scse", "ema", "strip", "ge"),
)
TIMM = ("se", "ese", "eca", "cbam", "coord", "gc", "ge")
GROUPS = {"sge": 64, "ema": 32}
"""Most groups of channels; fewer where they do not divide them."""
COMPILED = ("cbam", "coord", "gc", "se", "eca")
"""Those with a target against timm; each compilation takes seconds."""
FOVEATE = "foveate"
EAGER = "foveate eager"
TIMM_EAGER = "timm eager"
TORCHVISION = "torchvision"
TEXTBOOK = "textbook"
COPY = "copy"
PRODUCTS = ("one product", "one product, kernel")
"""What no gate can do without, by PyTorch and by foveate: the faster is a bound."""
LAYERS = "its layers"
"""What a gate with layers cannot do without beside it: their matrix products."""
ALONE = "its kernels"
"""Those that foveate calls in a step, again on the tensors of that step."""
READING, NEAR = "one reading", "one reading nearby"
"""The sum of the map, and of as much that lies in a cache; what gates read is more than sums."""
BLOCK = 3 << 20
"""Bytes of a map that lie nearby."""

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rival:
    """One way to compute a mechanism."""

    name: str
    module: nn.Module
    call: Layer
    """The module, or its compiled form."""
    path: str | None = None
    """Which kernels of foveate it takes; None to leave it to the environment."""


def compiled(name: str) -> str:
    """The name of a rival's compiled form."""
    return f"{name.removesuffix(' eager')} compiled"


FOVEATE_COMPILED, TIMM_COMPILED = compiled(FOVEATE), compiled(TIMM_EAGER)
NAMES = (FOVEATE, EAGER, FOVEATE_COMPILED, TIMM_EAGER, TIMM_COMPILED, TORCHVISION, TEXTBOOK)


def options(key: str, shape: Sequence[int]) -> dict[str, object]:
    """Keyword arguments of foveate's mechanism: those of timm's counterpart where it has one."""
    cls = get_mechanism(key)
    chosen = dict(cls.timm.get(key, {})) if key in TIMM else {}
    if cls.sized:
        chosen["size"] = tuple(shape[2:])
    if key in GROUPS:
        chosen["num_groups"] = math.gcd(GROUPS[key], shape[1])
    return chosen


def eager_rivals(key: str, shape: Sequence[int]) -> tuple[list[Rival], dict[str, str]]:
    """All rivals but the compiled ones, and why others could not be built, by name."""
    C = shape[1]
    own = create(key, C, **options(key, shape))
    found, missing = [Rival(FOVEATE, own, own), Rival(EAGER, own, own, "eager")], {}
    outside = {TIMM_EAGER: lambda: _timm(key, C)} if key in TIMM else {}
    if key == "se":
        outside[TORCHVISION] = lambda: _torchvision(C)
    for name, build in outside.items():
        try:
            module = build()
        except (ImportError, TypeError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
        else:
            found.append(Rival(name, module, module))
    if key in FORMS:
        module = FORMS[key](C)
        found.append(Rival(TEXTBOOK, module, module))
    return found, missing


def compiled_rivals(rivals: Sequence[Rival]) -> list[Rival]:
    """The modules of foveate and timm again, compiled for one shape."""
    torch.compiler.reset()
    return [
        Rival(compiled(rival.name), rival.module, torch.compile(rival.module, dynamic=False))
        for rival in rivals
        if rival.name in (FOVEATE, TIMM_EAGER)
    ]


class Product(nn.Module):
    """The map times a constant for each channel: the last step of a gate without the others."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.own = name == PRODUCTS[1]
        self.register_buffer("factor", torch.rand(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return ops.scale(ops.fuse(x), self.factor) if self.own else x * self.factor


def products(x: Tensor) -> list[Rival]:
    """The bounds of all gates on a map."""
    modules = {name: Product(name, x.shape[1]).to(x.device, x.dtype) for name in PRODUCTS}
    return [Rival(name, module, module) for name, module in modules.items()]


def readings(x: Tensor) -> dict[str, Callable[[], object]]:
    """Both readings of a map."""
    count = max(1, min(len(x), BLOCK // x[0].nbytes))
    near, turns = x[:count], -(-len(x) // count)

    def again() -> None:
        for _ in range(turns):
            near.sum()

    return {READING: x.sum, NEAR: again}


def vectors(key: str, x: Tensor) -> dict[str, int]:
    """How many vectors each matrix of a mechanism multiplies, by the name of the layer."""
    B, _, H, W = x.shape
    return {
        "se": {"fc1": B, "fc2": B},
        "gc": {"fc1": B, "fc2": B},
        "cbam": {"channel_gate.fc1": 2 * B, "channel_gate.fc2": B},
        "coord": {"conv1": B * (H + W), "conv_h": B * H, "conv_w": B * W},
    }.get(key, {})


def layers(key: str, own: nn.Module, x: Tensor, *, training: bool) -> Callable[[], object] | None:
    """The matrix products of a mechanism and nothing else; None if it has none.

    Into memory that is there: a product for each layer, and two for its gradients in training.
    """
    pairs = []
    for name, count in vectors(key, x).items():
        weight = own.get_submodule(name).weight.detach().flatten(1)
        pairs.append((x.new_ones(count, weight.shape[1]), weight.T))
    return products_of(pairs, training=training) if pairs else None


def products_of(pairs: Sequence[tuple[Tensor, Tensor]], *, training: bool) -> Callable[[], object]:
    """The products of matrices, or of stacks of them, and in training those of both gradients."""
    todo = []
    for a, b in pairs:
        found = a.new_ones(*a.shape[:-1], b.shape[-1])
        todo.append((a, b, found))
        if training:
            todo.append((found, b.mT, torch.empty_like(a)))
            todo.append((a.mT, found, torch.empty_like(b)))

    def multiply() -> None:
        for a, b, to in todo:
            torch.matmul(a, b, out=to)

    return multiply


def step(rival: Rival, x: Tensor, *, training: bool) -> Callable[[], object]:
    """One forward pass without gradients, or one with the gradients of all that it depends on."""
    rival.module.train(training)
    if not training:
        return torch.no_grad()(lambda: rival.call(x))
    x = x.detach().requires_grad_()
    wanted = [x, *rival.module.parameters()]
    grad = torch.randn_like(x)
    return lambda: torch.autograd.grad(rival.call(x), wanted, grad)


def on_path(rival: Rival) -> AbstractContextManager[None]:
    """A context in which the rival takes its own path through foveate."""
    return nullcontext() if rival.path is None else kernels.using(rival.path)


def _timm(key: str, channels: int) -> nn.Module:
    from timm.layers import create_attn

    return create_attn(key, channels)


def _torchvision(channels: int) -> nn.Module:
    from torchvision.ops import SqueezeExcitation

    return SqueezeExcitation(channels, max(1, channels // 16))
