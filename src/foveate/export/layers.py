"""Where an exported network begins to differ, layer by layer."""

import ast
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import require
from foveate.export.agreement import difference

_SCOPES = "pkg.torch.onnx.name_scopes"

Layers = dict[str, Tensor]
"""What modules give, by name; the empty name is the whole network."""


def layers_of(node: Any) -> list[str]:
    """The modules that a node of an ONNX graph is from, the innermost last."""
    scopes = {one.key: one.value for one in node.metadata_props}.get(_SCOPES)
    listed: list[str] = ast.literal_eval(scopes) if scopes else []
    return [name for name in listed[:-1] if name]  # the last is the operation's own


def last_outputs(proto: Any) -> dict[str, str]:
    """For each module the name of what the last of its nodes gives."""
    last: dict[str, str] = {}
    for node in proto.graph.node:
        for name in layers_of(node):
            last[name] = node.output[0]
    return last


def opened_up(proto: Any) -> Callable[[list[Any]], Layers]:
    """Make the layers of an ONNX graph outputs of it; what is returned tells them apart."""
    library = require("onnx", extra="export")
    last = last_outputs(proto) | {"": proto.graph.output[0].name}
    for name in sorted(set(last.values()) - {last[""]}):
        proto.graph.output.append(library.ValueInfoProto(name=name))
    places = {one.name: place for place, one in enumerate(proto.graph.output)}

    def told_apart(outputs: list[Any]) -> Layers:
        return {name: torch.as_tensor(outputs[places[value]]) for name, value in last.items()}

    return told_apart


def layers_of_program(program: torch.export.ExportedProgram, images: Tensor) -> Layers:
    """What the layers of a program give."""
    interpreter = _Interpreter(program.module())
    interpreter.found[""] = interpreter.run(images)
    return interpreter.found


class _Interpreter(torch.fx.Interpreter):
    """Keeps for each module what the last of its nodes gives."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.found: Layers = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            for name, _ in n.meta.get("nn_module_stack", {}).values():
                self.found[name] = value
        return value


def first_difference(
    model: nn.Module, layers: Callable[[Tensor], Layers], images: Tensor, tolerance: float
) -> str:
    """The first layer, in the order in which they finish, whose output differs.

    Args:
        model: The original.
        layers: Gives those of the exported network.
        images: An input at which they differ.
        tolerance: Largest relative difference.
    """
    found = layers(images)
    for name, wanted in _outputs(model, images):
        if name in found and not difference(found[name], wanted) <= tolerance:
            return f"layer '{name}'" if name else "its end, after all layers agree"
    return "no layer: where each is read all agree, so the runtime's own changes to the graph do it"


def _outputs(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each module gives, in the order in which they finish."""
    kept: Layers = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            kept[name] = output.detach().clone()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(partial(keep, name)).remove)
        model(images)
    yield from kept.items()
