"""The gradient of a map that is read several times, kept as terms until it can be written once.

A gate reads its map for statistics and then multiplies it. Left to autograd, each reading would
answer with a gradient of the size of the map, to be written, read and added. Here each enters what
it has to say in small tensors, and one pass over the map settles them all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate import kernels

GATES = ("channel", "spatial", "rows", "columns")
"""Kinds of gates: ``(B, C, 1, 1)``, ``(B, G, H, W)``, ``(B, C, H, 1)``, ``(B, C, 1, W)``."""
PAST = range(8 << 20, 32 << 20)
"""Bytes of maps that C++ kernels write past the caches, as ``expect_output`` in ``common.h`` says.

A product with gates of channels is faster there than PyTorch's, and slower on smaller maps.
"""
_SUMMED = ("add", "linear", "add_rows", "add_columns")
_ARGUMENTS = (
    *GATES,
    *_SUMMED,
    *("map", "weight", "map2", "weight2"),
    *("at", "peak"),
    *("channel_at", "channel_peak", "channel_gate"),
    *("rows_at", "rows_peak", "columns_at", "columns_peak"),
)
"""Optional arguments of the kernel ``combine``, in order."""

Term = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A gate that a channel's and a position's value make together, elementwise."""

    kind: int
    """0 for ``1 + a sigmoid(c + p)``; 1 for their product; 2 for whichever makes x larger."""
    channel: Tensor
    position: Tensor
    strength: Tensor | None

    def apply(self, ledger: "Ledger", source: Tensor, x: Tensor, terms: Term) -> Tensor:
        """``source`` times the gate, plus those of the terms that fit in, which are taken out."""
        out = torch.empty_like(source)
        fitting = (terms.pop(name, None) for name in ("add", "map", "weight"))
        values = (self.channel, self.position, self.strength)
        ledger.kernels.pair_gate(source, x, self.kind, *values, *fitting, out)
        return out


class Ledger:
    """What all readings of one map share: the kernels, and in a backward pass the terms."""

    def __init__(self, backend: Any, x: Tensor) -> None:
        self.kernels = backend
        self.format = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        self.wide = torch.promote_types(x.dtype, torch.float32)
        self.weighed = False
        self.begin(None)

    def begin(self, x: Tensor | None, source: Tensor | None = None) -> None:
        """Start a backward pass, whose readings may use the map and enter terms to ``source``."""
        self.x, self.source = x, source
        self.gates: Term = {}
        self.total, self.groups = False, 1
        self.pair: Pair | None = None
        self.terms: list[tuple[Term, int]] = []
        self.task = torch._C._current_graph_task_id()

    def open(self) -> bool:
        """Whether the pass that now runs will settle what is entered."""
        return self.source is not None and self.task == torch._C._current_graph_task_id()

    def enter(self, groups: int = 1, **term: Tensor) -> None:
        """Add a term: arguments of ``combine`` that belong together."""
        self.terms.append((term, groups))

    def settle(self) -> Tensor:
        """The gradient that all terms amount to."""
        source, x, gates, total, groups = self.source, self.x, self.gates, self.total, self.groups
        pair, left = self.pair, self.terms
        self.begin(None)
        assert source is not None
        if pair is not None:
            assert x is not None
            terms, left, groups = _packed({}, left, 1)
            source = pair.apply(self, source, x, terms)
            source = self.combine(source, terms, x=x, groups=groups) if terms else source
        else:
            terms, left, groups = _packed(gates, left, groups)
            source = self.combine(source, gates | terms, x=x, total=total, groups=groups)
        while left:
            terms, left, groups = _packed({}, left, left[0][1])
            source = self.combine(source, terms, x=x, groups=groups)
        return source

    def combine(
        self,
        source: Tensor,
        arguments: Term,
        *,
        x: Tensor | None = None,
        total: bool = False,
        groups: int = 1,
    ) -> Tensor:
        """``source`` times the product, or the sum, of gates, plus terms."""
        plain = arguments.keys() == {"channel"} and source.dtype == self.wide
        past = source.nbytes in PAST and hasattr(self.kernels, "weigh_channels")
        if plain and not past:
            return source * arguments["channel"]  # which nothing is faster than
        out = torch.empty_like(source)
        if plain:
            self.kernels.weigh_channels(source, arguments["channel"], out)
            return out
        named = (arguments.get(name) for name in _ARGUMENTS)
        linear = x if "linear" in arguments else None
        self.kernels.combine(source, linear, total, groups, *named, out)
        return out

    def dense(self, t: Tensor) -> Tensor:
        """A tensor of the shape of the map, laid out as the map is."""
        return t.contiguous(memory_format=self.format)

    def small(self, t: Tensor) -> Tensor:
        """A gate or term as the kernels want it: wide, and laid out as the map is."""
        return t.to(self.wide).contiguous(memory_format=self.format)

    def room(self, x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An empty tensor for a statistic of ``x``."""
        return torch.empty(
            shape, dtype=dtype or self.wide, device=x.device, memory_format=self.format
        )


def _packed(
    gates: Term, terms: list[tuple[Term, int]], groups: int
) -> tuple[Term, list[tuple[Term, int]], int]:
    """What one call can do of the terms, what is left, and the groups of that call."""
    now: Term = {}
    left = []
    for term, own in terms:
        name = next(iter(term))
        if name == "map" and "map" not in now and "spatial" not in gates:
            groups = own
        if name in _SUMMED:
            now[name] = now[name] + term[name] if name in now else term[name]
        elif name == "map" and "map" in now and "map2" not in now and own == groups:
            now |= {"map2": term["map"], "weight2": term["weight"]}
        elif name in now or (name == "map" and own != groups):
            left.append((term, own))
        else:
            now |= term
    return now, left, groups


class _Settle(torch.autograd.Function):
    """The map itself; in the backward pass, after all readings, the gradient they amount to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ledger: Ledger) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.ledger = ledger
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if not ctx.ledger.open():
            return grad, None
        settled = ctx.ledger.settle()
        return settled if grad is None else settled + grad, None


def fuse(x: Tensor, *, plain_inference: bool = False) -> Tensor:
    """Let kernels serve what a gate does with a map, where they can and where it pays.

    The statistics in this package and :func:`foveate.ops.scale` recognise the returned map. They
    save nothing of its size but the map itself, and write its gradient once. Everything else may
    be done with it as well.

    Args:
        x: The map, ``(B, C, H, W)``.
        plain_inference: Whether the plain operations are as fast without a gradient.

    Returns:
        ``x`` itself, or an equal map that kernels serve.

    Raises:
        ValueError: If the path asked for cannot be taken.
    """
    graded = torch.is_grad_enabled()
    backend = None if plain_inference and not graded else kernels.pick(x)
    if backend is None:
        return x
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    ledger = Ledger(backend, x)
    tracked = graded and x.requires_grad
    served: Tensor = _Settle.apply(x, ledger) if tracked else x.detach()
    return with_ledger(served, ledger)


def with_ledger(x: Tensor, ledger: Ledger) -> Tensor:
    """The map, which operations of this package then know to be served."""
    x._foveate_ledger = ledger  # type: ignore[attr-defined]
    return x


def ledger_of(x: Tensor) -> Ledger | None:
    """The ledger of a map that kernels serve; None for any other."""
    if torch.compiler.is_compiling():
        return None
    return getattr(x, "_foveate_ledger", None)


def unweighed(x: Tensor) -> Ledger | None:
    """The ledger of a map that is weighed for the first time: it settles one pass, not two."""
    ledger = ledger_of(x)
    if ledger is None or ledger.weighed:
        return None
    ledger.weighed = True
    return ledger
