"""One forward pass of a host, written down: which module and function made which tensor.

Running the host, rather than reading its code, works for any control flow. It runs with its own
weights on its own device, in evaluation mode and without gradients, so a module that keeps what
it computes keeps real values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from foveate.insertion.hooks import follows, inserted, stands_in
from foveate.mechanisms.base import Attention
from foveate.modes import in_mode


@dataclass(eq=False, repr=False)
class Node:
    """One value of one tensor; an in-place function makes a new node of the same tensor."""

    index: int
    function: str
    parents: tuple["Node", ...]
    tensor: Tensor
    shape: torch.Size
    call: "Call | None"
    children: list["Node"] = field(default_factory=list)
    lineage: int = 0
    """Bit set over node indices: this node and everything it was computed from."""
    turned: bool = False
    """Whether its channels lie last, between two permutations."""

    def comes_from(self, other: "Node") -> bool:
        """Whether this is, or was computed from, ``other``."""
        return bool(self.lineage >> other.index & 1)

    @property
    def is_map(self) -> bool:
        """Whether this is a feature map ``(B, C, H, W)`` with more than one position."""
        return len(self.shape) == 4 and not self.turned and self.area > 1

    @property
    def area(self) -> int:
        """Positions of a feature map."""
        return self.shape[2] * self.shape[3]

    @property
    def ends_block(self) -> bool:
        """Whether nothing is made of it but a sum, and of that at once a ReLU."""
        if len(self.children) != 1 or len(self.children[0].children) != 1:
            return False
        total = self.children[0]
        end = total.children[0]
        sums = total.function in ("__add__", "__iadd__", "__radd__", "add", "add_")
        alike = len(total.parents) == 2 and total.parents[0].shape == total.parents[1].shape
        # At once: whatever runs between the two could change what was added.
        return sums and alike and end.function in ("relu", "relu_") and end.index == total.index + 1


@dataclass(eq=False, repr=False)
class Call:
    """One call of a module; ``input`` and ``output`` are None where they are not one tensor."""

    name: str
    module: nn.Module
    parent: "Call | None"
    input: Node | None
    output: Node | None = None
    ours: bool = False

    @property
    def stands_in(self) -> bool:
        """Whether it is of attention that took the place of a part of the host."""
        return self.ours and any(stands_in(call.module) for call in ancestry(self))

    def contains(self, node: Node) -> bool:
        """Whether the node was made during this call."""
        return any(call is self for call in ancestry(node.call))


@dataclass
class Trace:
    """Nodes in the order they were made, calls in the order they ended, multiply-adds."""

    nodes: list[Node]
    calls: list[Call]
    flops: int


def ancestry(call: Call | None) -> Iterator[Call]:
    """A call, the call it was made from, and so on outwards."""
    while call is not None:
        yield call
        call = call.parent


def trace(model: nn.Module, example: Any) -> Trace:
    """Run ``model`` once on ``example`` (a tensor, a tuple of arguments, or a dict of them).

    Modes, buffers, hooks and the state of the random generators are as before afterwards.
    """
    recorder = _Recorder(model)
    args, kwargs = _arguments(example)
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            recorder.add("input", (), leaf)
    counter = FlopCounterMode(display=False)
    with (
        in_mode(model, training=False),
        torch.random.fork_rng(),
        torch.inference_mode(False),
        torch.no_grad(),
        counter,
        recorder.recording(),
    ):
        model(*args, **kwargs)
    return Trace(recorder.nodes, recorder.ended, int(counter.get_total_flops()) // 2)


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


class _Recorder(TorchFunctionMode):
    """Sees each function of torch that runs, and through global hooks each module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.ended: list[Call] = []
        self._names = {module: name for name, module in model.named_modules()}
        self._modules = {name: module for module, name in self._names.items()}
        self._at: dict[int, Node] = {}
        self._running: list[Call] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Watch functions and modules while the host runs."""
        handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def add(self, function: str, parents: tuple[Node, ...], tensor: Tensor) -> Node:
        """Write down a new value."""
        call = self._running[-1] if self._running else None
        node = Node(len(self.nodes), function, parents, tensor, tensor.shape, call)
        node.lineage = 1 << node.index
        node.turned = any(parent.turned for parent in parents) ^ (function == "permute")
        for parent in parents:
            node.lineage |= parent.lineage
            parent.children.append(node)
        self.nodes.append(node)
        self._at[id(tensor)] = node  # the node keeps the tensor, so its id stays its own
        return node

    def _node(self, value: Any) -> Node | None:
        return self._at.get(id(value)) if isinstance(value, Tensor) else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        versions = {id(tensor): _version(tensor) for tensor in inputs}
        result = func(*args, **kwargs)
        parents = tuple(dict.fromkeys(n for t in inputs if (n := self._node(t)) is not None))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and versions.get(id(tensor)) != _version(tensor):
                self.add(_function_name(func), parents, tensor)
        return result

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module in self._names:
            parent = self._running[-1] if self._running else None
            call = Call(self._names[module], module, parent, self._node(args[0] if args else None))
            call.ours = isinstance(module, Attention) or (parent is not None and parent.ours)
            self._running.append(call)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module not in self._names:
            return
        call = self._running.pop()
        call.output = self._node(output)
        self.ended.append(call)
        owner = self._modules.get(call.name.rpartition(".")[0])
        if owner is not None and follows(owner, module):
            # To the host, what attention makes of a module's output is that module's output.
            earlier = next(c for c in reversed(self.ended) if c.module is owner)
            earlier.output = call.output
        if owner is not None and call.name.rpartition(".")[2] in inserted(owner, "skip"):
            # What attention makes of a skip is, to the host, still the input of the block.
            self._take_for(call.input, call)

    def _take_for(self, node: Node | None, call: Call) -> None:
        if node is not None and call.output is not None:
            self._at[id(call.output.tensor)] = node
            node.children = [child for child in node.children if not call.contains(child)]


def _version(tensor: Tensor) -> int:
    """Counts the in-place changes of a tensor; one made in inference mode has no counter."""
    return 0 if tensor.is_inference() else tensor._version


def _function_name(func: Any) -> str:
    name = resolve_name(func) or getattr(func, "__name__", "function")
    return str(name).rpartition(".")[2]
