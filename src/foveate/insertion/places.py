"""Places by meaning: from what a host computed to the modules where attention can act."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from foveate.insertion.trace import Call, Node, Trace, ancestry

CONVOLUTIONS = {"conv2d", "conv_transpose2d"}
_WEIGHTED = CONVOLUTIONS | {"linear"}
_NORMS = {"batch_norm", "group_norm", "instance_norm", "layer_norm"}
_ACTIVATIONS = {
    *("relu", "relu_", "relu6", "silu", "silu_", "hardswish", "hardswish_", "gelu", "mish"),
    *("leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "softplus", "hardtanh"),
    *("hardtanh_", "prelu", "sigmoid", "tanh", "clamp", "clamp_"),
}
_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_SPLITS = {"split", "chunk", "tensor_split", "unbind"}
# A child of these would be run as one of their own layers.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Spot:
    """A value of the host on which attention would act: where it can be had, or why it cannot."""

    node: Node
    call: Call | None
    side: str = "after"
    reason: str = ""
    target: str = ""
    """On a skip: the module in that of ``call`` with which the branch begins."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the mechanism must be built with to fit here."""


@dataclass(frozen=True)
class Residual:
    """An addition ``branch + shortcut``, both computed from ``fork``."""

    addition: Node
    branch: Node
    shortcut: Node
    fork: Node

    def path(self, end: Node) -> list[Node]:
        """The nodes from the fork, exclusive, to ``end``, back to front."""
        found, queue = dict[Node, None](), [end]
        while queue:
            node = queue.pop()
            if node is self.fork or node in found or not node.comes_from(self.fork):
                continue
            found[node] = None
            queue.extend(node.parents)
        return list(found)


class Anatomy:
    """What a trace means: residual additions, units, stages, and modules to attach to."""

    def __init__(self, record: Trace) -> None:
        self._all = record.nodes
        self.calls = [call for call in record.calls if not call.ours]
        self.nodes = [n for n in record.nodes if n.call is None or not n.call.ours]
        self._by_output: dict[Node, list[Call]] = defaultdict(list)
        self._by_input: dict[Node, list[Call]] = defaultdict(list)
        for call in self.calls:
            if isinstance(call.module, _CONTAINERS):
                continue
            if call.output is not None:
                self._by_output[call.output].append(call)
            if call.input is not None:
                self._by_input[call.input].append(call)

    # Where a value can be had

    def locate(self, node: Node, prefer: Call | None = None) -> Spot:
        """The module that returns ``node``, or the only one that takes it.

        Elementwise functions between are stepped over towards the input, as in
        ``x + gamma * branch(x)``. Of nested modules that return one value, ``prefer`` is taken,
        else the innermost that computes something.
        """
        at: Node | None = node
        while at is not None:
            makers = self._by_output[at]
            if makers:
                named = [call for call in makers if not isinstance(call.module, nn.Identity)]
                return Spot(at, prefer if prefer in makers else (named or makers)[0])
            takers = [call for call in self._by_input[at] if self._takes_all(call, at)]
            if takers:
                return Spot(at, takers[-1], "before")
            same = [p for p in at.parents if p.shape == at.shape]
            at = same[0] if len(at.parents) == len(same) == 1 else None
        return Spot(node, None, reason=f"the function '{node.function}' makes it, not a module")

    def _takes_all(self, call: Call, node: Node) -> bool:
        return bool(node.children) and all(call.contains(child) for child in node.children)

    # Residual additions

    @cached_property
    def residuals(self) -> list[Residual]:
        """Additions of a branch with weights and the skip around it."""
        found: list[Residual] = []
        for node in self.nodes:
            residual = self._residual(node, found)
            if residual is not None:
                found.append(residual)
        return found

    def _residual(self, node: Node, earlier: list[Residual]) -> Residual | None:
        if node.function not in _ADDITIONS or len(node.parents) != 2 or not node.is_map:
            return None
        a, b = node.parents
        if a.shape != b.shape:
            return None
        common = a.lineage & b.lineage
        if not common:
            return None
        fork = self._all[common.bit_length() - 1]
        if fork is a or fork is b:
            branch, shortcut = (b, a) if fork is a else (a, b)
            residual = Residual(node, branch, shortcut, fork)
            return residual if _weights(residual.path(branch)) else None
        # With a projection on the skip: the branch is the side with more layers. Sums of scales
        # (pyramids, multi-resolution fusion) have whole residual blocks on one of the sides.
        residual = Residual(node, a, b, fork)
        if _depth(residual.path(a)) < _depth(residual.path(b)):
            residual = Residual(node, b, a, fork)
        long, short = residual.path(residual.branch), residual.path(residual.shortcut)
        inner = {other.addition for other in earlier}
        plain = not any(n in inner for n in (*long, *short))
        plain &= not any(n.function in _SPLITS for n in short)  # sums of slices, as in Res2Net
        is_skip = plain and _weights(short) <= 1 and _depth(long) > _depth(short)
        return residual if is_skip else None

    # The places

    def residual(self) -> list[Spot]:
        """At the end of each residual branch; in a chain, after each normalised convolution."""
        if self.residuals:
            return [self.locate(r.branch) for r in self.residuals]
        return [
            self.locate(n)
            for n in self.nodes
            if n.is_map and n.function in _NORMS and n.parents[0].function in CONVOLUTIONS
        ]

    def post(self) -> list[Spot]:
        """After each addition and its activation; in a chain, after each unit's activation."""
        if self.residuals:
            return [self.locate(_activated(r.addition), r.addition.call) for r in self.residuals]
        return [
            self.locate(n)
            for n in self.nodes
            if n.is_map and n.function in _ACTIVATIONS and _follows_convolution(n)
        ]

    def pre(self) -> list[Spot]:
        """Before each residual branch; in a chain, before each convolution."""
        return [self._entry(r) for r in self.residuals] if self.residuals else self.conv()

    def _entry(self, residual: Residual) -> Spot:
        path = set(residual.path(residual.branch))
        side = set(residual.path(residual.shortcut))
        starts = [n for n in residual.fork.children if n in path and n not in side]
        for call in self._by_input[residual.fork]:
            inside = [n for n in residual.fork.children if call.contains(n)]
            if set(inside) == set(starts):
                return Spot(residual.fork, call, "before")
        return Spot(residual.fork, None, reason="no single module takes the input of the branch")

    def shortcut(self) -> list[Spot]:
        """On each skip path: after its module, or else where its block takes the input in."""
        return [
            self._skip(r) if r.shortcut is r.fork else self.locate(r.shortcut)
            for r in self.residuals
        ]

    def _skip(self, residual: Residual) -> Spot:
        entry = self._entry(residual).call
        for call in ancestry(entry.parent if entry else None):
            if call.input is not residual.fork or isinstance(call.module, _CONTAINERS):
                continue
            inside = [n for n in residual.fork.children if call.contains(n)]
            rest = [n for n in inside if entry and not entry.contains(n)]
            if entry and rest == [residual.addition]:
                target = entry.name.removeprefix(call.name).lstrip(".")
                return Spot(residual.fork, call, "skip", target=target)
        reason = "its skip is the input itself, and no module holds just that and the branch"
        return Spot(residual.addition, None, reason=reason)

    def conv(self) -> list[Spot]:
        """Before each convolution of a feature map."""
        return [
            Spot(call.input, call, "before")
            for call in self.calls
            if isinstance(call.module, nn.Conv2d) and call.input is not None and call.input.is_map
        ]

    def conv3x3(self) -> list[Spot]:
        """After the last spatial convolution of each branch; in a chain, after each one."""
        spatial = self._spatial
        if not self.residuals:
            return [Spot(node, call) for node, call in spatial.items()]
        lasts = [self._last_spatial(r)[:1] for r in self.residuals]
        return [Spot(node, spatial[node]) for last in lasts for node in last]

    @cached_property
    def _spatial(self) -> dict[Node, Call]:
        """The spatial convolutions by what they return."""
        return {
            call.output: call
            for call in self.calls
            if isinstance(call.module, nn.Conv2d)
            and max(call.module.kernel_size) > 1
            and call.output is not None
            and call.output.is_map
        }

    def _last_spatial(self, residual: Residual) -> list[Node]:
        """The outputs of the spatial convolutions of a branch, back to front."""
        found = [n for n in residual.path(residual.branch) if n in self._spatial]
        return sorted(found, key=lambda n: n.index, reverse=True)

    def inner(self) -> list[Spot]:
        """After the last activated spatial convolution of each branch; in a chain, as ``post``."""
        if not self.residuals:
            return self.post()
        activated = [[_activation(n) for n in self._last_spatial(r)] for r in self.residuals]
        lasts = [next((n for n in nodes if n is not None), None) for nodes in activated]
        return [self._where_used(node) for node in lasts if node is not None]

    def _where_used(self, node: Node) -> Spot:
        """After the module that returns a value, or before what takes it if that one is shared."""
        makers = {call.module for call in self._by_output[node]}
        if sum(call.module in makers for call in self.calls) > len(makers):
            takers = [call for call in self._by_input[node] if self._takes_all(call, node)]
            if takers:
                return Spot(node, takers[-1], "before")
        return self.locate(node)

    def replace(self) -> list[Spot]:
        """The spatial convolutions of the branches; in a chain, all after the first."""
        branches = {n for r in self.residuals for n in r.path(r.branch)}
        nodes = [n for n in self._spatial if n in branches] or list(self._spatial)[1:]
        return [self._in_place(self._spatial[node]) for node in nodes]

    def _in_place(self, call: Call) -> Spot:
        conv, into, out = call.module, call.input, call.output
        assert isinstance(conv, nn.Conv2d)
        assert out is not None
        if into is None:
            return Spot(out, None, reason="it takes its input by name")
        stride, dilation = conv.stride[0], conv.dilation[0]
        kept = tuple((side - 1) // stride + 1 for side in into.shape[2:])
        if conv.stride != (stride, stride) or conv.dilation != (dilation, dilation):
            return Spot(out, None, reason="its stride or dilation differs between the directions")
        if out.shape[2:] != kept:
            return Spot(out, None, reason="its padding does not keep the size")
        options = {"out_channels": conv.out_channels, "stride": stride, "dilation": dilation}
        return Spot(into, call, "beside", options=options)

    def after(self) -> list[Spot]:
        """After any module that returns a feature map; ``at`` says which."""
        return [Spot(n, c) for n, calls in self._by_output.items() if n.is_map for c in calls]

    def before(self) -> list[Spot]:
        """Before any module that takes a feature map; ``at`` says which."""
        return [
            Spot(n, c, "before") for n, calls in self._by_input.items() if n.is_map for c in calls
        ]

    def stage(self) -> list[Spot]:
        """The last value at each resolution; in a residual host, of those with an addition."""
        made = {n.area for n in self.nodes if n.is_map and n.function in CONVOLUTIONS}
        levels = {r.addition.area for r in self.residuals} or made
        ends = sorted(self.resolutions().items())[::-1]
        return [self._after_block(n) for area, n in ends if area in levels]

    def resolutions(self) -> dict[int, Node]:
        """The last value at each resolution, by its number of positions."""
        ends: dict[int, Node] = {}
        reduced: set[int] = set()
        for node in self.nodes:
            parent = node.parents[0] if node.parents else None
            if parent is not None and parent.is_map and parent.call is not None:
                if node.is_map and node.area < parent.area:
                    end = self._widest_reduction(node, parent)
                elif not node.is_map and not self._has_map_after(node):
                    end = parent
                else:
                    continue
                reduced.add(end.area)
                if end.area not in ends or end.index > ends[end.area].index:
                    ends[end.area] = end
        for residual in self.residuals:  # of a host that never reduces its last level
            end = _activated(residual.addition)
            if ends.get(end.area, end).index <= end.index and end.area not in reduced:
                ends[end.area] = end
        return ends

    def head(self) -> list[Spot]:
        """The last feature map before the global pooling or flattening.

        In a host that predicts maps: after its last residual block.
        """
        ends = [
            node.parents[0]
            for node in self.nodes
            if node.parents and node.parents[0].is_map and not node.is_map
            if node.parents[0].call is not None and not self._has_map_after(node)
        ] or [_activated(r.addition) for r in self.residuals]
        return [self._after_block(max(ends, key=lambda n: n.index))] if ends else []

    def _after_block(self, node: Node) -> Spot:
        makers = self._by_output[node]
        return self.locate(node, makers[-1] if makers else None)

    def _widest_reduction(self, node: Node, parent: Node) -> Node:
        """The input of the outermost module that does the step from ``parent`` to ``node``."""
        end = parent
        for call in ancestry(node.call):
            into, out = call.input, call.output
            if into is None or out is None or not into.is_map or not out.is_map:
                continue
            if (into.area, out.area) == (parent.area, node.area):
                end = into
        return end

    @cached_property
    def _reaches_map(self) -> int:
        """Bit set of the nodes from which a feature map is computed."""
        bits = 0
        for node in self.nodes:
            if node.is_map:
                bits |= node.lineage
        return bits

    def _has_map_after(self, node: Node) -> bool:
        return bool(self._reaches_map >> node.index & 1)


PLACES: dict[str, Callable[[Anatomy], list[Spot]]] = {
    "residual": Anatomy.residual,
    "pre": Anatomy.pre,
    "post": Anatomy.post,
    "shortcut": Anatomy.shortcut,
    "stage": Anatomy.stage,
    "conv": Anatomy.conv,
    "conv3x3": Anatomy.conv3x3,
    "inner": Anatomy.inner,
    "replace": Anatomy.replace,
    "head": Anatomy.head,
}
NAMED_PLACES: dict[str, Callable[[Anatomy], list[Spot]]] = {
    "after": Anatomy.after,
    "before": Anatomy.before,
}
"""Those that mean nothing without the names of modules."""


def _weights(nodes: Iterable[Node]) -> int:
    return sum(_has_weights(node) for node in nodes)


def _has_weights(node: Node) -> bool:
    if node.call is not None and node.call.ours:
        return node.call.stands_in  # attention that was only added is no layer of the host
    return node.function in _WEIGHTED


def _depth(nodes: list[Node]) -> tuple[int, int]:
    return _weights(nodes), len(nodes)


def _activated(node: Node) -> Node:
    """The activation of a value, if that is all that is made of it."""
    only = node.children[0] if len(node.children) == 1 else None
    return only if only is not None and only.function in _ACTIVATIONS else node


def _activation(node: Node) -> Node | None:
    """The activation of a convolution's output, past its normalisation."""
    while len(node.children) == 1 and node.children[0].function in _NORMS:
        node = node.children[0]
    active = _activated(node)
    return None if active is node else active


def _follows_convolution(node: Node) -> bool:
    parent = node.parents[0]
    if parent.function in _NORMS:
        parent = parent.parents[0]
    return parent.function in CONVOLUTIONS
