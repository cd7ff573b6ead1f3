"""What a mechanism does, as a few steps: read from a run of its code, not from its source.

The run is on tensors without data, once for each of several sizes of map, so that each side of a
tensor is known as an expression in B, C, H and W.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from foveate.describe.facts import built
from foveate.describe.sides import SIZES, in_letters
from foveate.insertion.trace import Call, Node, Trace, ancestry, trace

LIMIT = 12
"""Most steps of a diagram; a longer chain of steps is drawn as fewer with more in each."""
VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "__get__"),
    *("contiguous", "to", "type_as", "float", "clone", "detach", "expand", "expand_as", "pad"),
    *("unsqueeze", "squeeze", "chunk", "split", "unbind", "__getitem__", "broadcast_to", "t"),
    *("adjoint", "narrow", "select", "tensor_split", "split_with_sizes", "double", "repeat"),
    *("repeat_interleave",),
}
CONSTANTS = {"eye", "arange", "zeros", "ones", "full", "empty", "tensor", "linspace", "ones_like"}
WORDS = {
    **dict.fromkeys(("add", "__add__", "__radd__", "add_"), "add"),
    **dict.fromkeys(("sub", "__sub__", "__rsub__", "rsub"), "subtract"),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), "multiply"),
    **dict.fromkeys(("div", "__truediv__", "__rtruediv__", "true_divide"), "divide"),
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "einsum"), "matrix product"),
    **dict.fromkeys(("pow", "__pow__", "__rpow__", "square"), "power"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "conv"),
    "adaptive_avg_pool2d": "average pool",
    "adaptive_max_pool2d": "maximum pool",
    "amax": "maximum",
    "avg_pool2d": "average pool",
    "cat": "concatenate",
    "hardswish": "h-swish",
    "interpolate": "resize",
    "hardsigmoid": "h-sigmoid",
    "lerp": "blend",
    "linalg_vector_norm": "norm",
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "max_pool2d": "maximum pool",
    "scaled_dot_product_attention": "attention",
    "unfold": "windows",
    "vector_norm": "norm",
}
ALONE = {"multiply": "scale", "divide": "scale", "add": "shift", "subtract": "shift"}
"""How an operation is called whose other operand is a number or a parameter."""

LEADING = ("conv", "grouped", "depthwise", "linear", "matrix", "attention")
"""How the labels of operations begin that always start a step."""


@dataclass(eq=False)
class Step:
    """One box of a diagram: operations one after the other, and the tensor they give."""

    labels: tuple[str, ...]
    shape: str
    parents: list["Step"]
    calls: tuple[Call, ...] = field(default=(), repr=False)
    """The calls of modules that it was made in, the innermost first."""


def steps(key: str) -> list[Step]:
    """The steps of a mechanism in the order they run: the input first, the output last."""
    runs = [_run(key, *size) for size in SIZES]
    run, shapes = runs[0], {}
    for nodes in zip(*(other.nodes for other in runs), strict=True):
        shapes[nodes[0]] = in_letters(*(node.shape for node in nodes))
    found, whole = _joined(_operations(run, shapes, ())), list[type[nn.Module]]()
    while len(found) > LIMIT and (part := _innermost(found, whole)) is not None:
        whole.append(part)
        found = _joined(_operations(run, shapes, whole))
    while len(found) > LIMIT and (pair := _pair(found)) is not None:
        parent, step = pair
        found = _merged(found, {parent, step}, parent.labels + step.labels)
    found[-1].shape = shapes[_output(run)]  # which may be another view of it
    for step in found:
        step.labels = tuple(_counted(step.labels))
    return found


def _run(key: str, batch: int, channels: int, height: int, width: int) -> Trace:
    with torch.device("meta"):
        module = built(key, channels, height, width)
        return trace(module, torch.empty(batch, channels, height, width))


def _operations(
    run: Trace, shapes: dict[Node, str], whole: Iterable[type[nn.Module]]
) -> list[Step]:
    """A step for each operation, and one for each part of the module that is of a given class."""
    found = _accumulated(_live(_without_views(run, shapes)))
    for part in whole:
        found = _as_one(found, part)
    return found


def _output(run: Trace) -> Node:
    output = run.calls[-1].output
    assert output is not None
    return output


def _without_views(run: Trace, shapes: dict[Node, str]) -> list[Step]:
    """A step for each operation; what only looks at a tensor otherwise is that tensor."""
    made: dict[Node, Step] = {}
    same: dict[object, Step] = {}
    for node in run.nodes:
        parents = list(dict.fromkeys(made[parent] for parent in node.parents if parent in made))
        if node.function in CONSTANTS or (node.parents and not parents):
            continue
        if node.function in VIEWS:
            if parents:  # a view of a parameter is the parameter
                made[node] = parents[0]
            continue
        calls = tuple(ancestry(node.call))
        label = _label(node, sum(parent in made for parent in node.parents))
        again = (label, shapes[node], calls[:1] and calls[0].name, tuple(map(id, parents)))
        if node.function == "input":
            made[node] = Step(("input",), shapes[node], [])
        else:
            made[node] = same.setdefault(again, Step((label,), shapes[node], parents, calls))
    last = made[_output(run)]
    return [step for step in dict.fromkeys(made.values()) if step is not last] + [last]


def _label(node: Node, operands: int) -> str:
    module = node.call.module if node.call is not None else None
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return _convolution(module)
    word = WORDS.get(node.function, node.function.strip("_").replace("_", " "))
    return ALONE.get(word, word) if operands < 2 else word


def _convolution(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str:
    kernel = " × ".join(str(side) for side in conv.kernel_size)
    dilation = max(int(step) for step in conv.dilation)
    kind = "depthwise" if 1 < conv.groups == conv.in_channels else "grouped"
    kind = kind if conv.groups > 1 else "conv"
    return f"{kind} {kernel}" + (f", dilation {dilation}" if dilation > 1 else "")


def _live(found: list[Step]) -> list[Step]:
    """Those that the output comes from."""
    live, waiting = set[Step](), [found[-1]]
    while waiting:
        step = waiting.pop()
        if step not in live:
            live.add(step)
            waiting += step.parents
    return [step for step in found if step in live]


def _children(found: Iterable[Step]) -> dict[Step, list[Step]]:
    children: dict[Step, list[Step]] = {step: [] for step in found}
    for step in children:
        for parent in step.parents:
            children[parent].append(step)
    return children


def _accumulated(found: list[Step]) -> list[Step]:
    """A loop that adds to the same tensor again and again is one step."""
    for step in list(found):
        for before in step.parents:
            rest = {parent for parent in step.parents if parent is not before}
            same = step.labels[0] == before.labels[-1] and step.shape == before.shape
            if same and rest <= set(before.parents) and _children(found)[before] == [step]:
                found = _merged(found, {before, step}, before.labels + step.labels)
                break
    return found


def _counted(labels: Iterable[str]) -> Iterator[str]:
    """Labels with long runs of the same one written once."""
    for label, run in itertools.groupby(labels):
        times = len(list(run))
        yield from [f"{label} {times} times"] if times > 2 else times * [label]


def _joined(found: list[Step]) -> list[Step]:
    """Small operations that keep the shape of the one tensor they take join its maker."""
    for step in list(found):
        if len(step.parents) == 1 and step.shape == step.parents[0].shape:
            (parent,) = step.parents
            own = step.labels[0].startswith(LEADING)
            if not own and parent.parents and _children(found)[parent] == [step]:
                found = _merged(found, {parent, step}, parent.labels + step.labels)
    return found


def _merged(found: list[Step], group: set[Step], labels: tuple[str, ...]) -> list[Step]:
    """The steps with a group of them, of which only the last is used outside, made one."""
    last = [step for step in found if step in group][-1]
    parents = [p for step in found if step in group for p in step.parents if p not in group]
    last.parents, last.labels = list(dict.fromkeys(parents)), labels
    return [step for step in found if step is last or step not in group]


def _innermost(found: list[Step], whole: list[type[nn.Module]]) -> type[nn.Module] | None:
    """The class of parts of the module that take several steps: the innermost, then the least."""
    calls = [call for step in found for call in step.calls[:-1]]
    parts = [c for c in calls if calls.count(c) > 1 and type(c.module) not in whole]
    deepest = max(
        parts, key=lambda call: (len(list(ancestry(call))), -calls.count(call)), default=None
    )
    return None if deepest is None else type(deepest.module)


def _as_one(found: list[Step], part: type[nn.Module]) -> list[Step]:
    """Calls of modules of a class as one step each, where only its last result is used."""
    calls = dict.fromkeys(call for step in found for call in step.calls[:-1])
    for call in (call for call in calls if type(call.module) is part):
        children = _children(found)
        group = {step for step in found if call in step.calls}
        used = [step for step in group if not children[step] or set(children[step]) - group]
        if len(used) == 1:
            found = _merged(found, group, (_name(call),))
    return found


def _pair(found: list[Step]) -> tuple[Step, Step] | None:
    """A step and the maker of its tensor, used nowhere else: in a chain if there is one."""
    children = _children(found)
    pairs = [
        (parent, step)
        for step in found
        for parent in step.parents
        if parent.parents and children[parent] == [step]
    ]
    chains = [pair for pair in pairs if len(pair[1].parents) == 1]
    return min(
        chains or pairs,
        key=lambda pair: len(pair[0].labels) + len(pair[1].labels),
        default=None,
    )


def _name(call: Call) -> str:
    """The class of a module in words."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(call.module).__name__)
    return words.lower()
