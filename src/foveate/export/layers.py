"""The layers of a network in its ONNX graph: the exporter notes for each node where it is from."""

import ast
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.export.agreement import difference

_SCOPES = "pkg.torch.onnx.name_scopes"


def layers_of(node: Any) -> list[str]:
    """The modules that a node is from, the innermost last."""
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


def first_difference(model: nn.Module, path: Path, images: Tensor, tolerance: float) -> str:
    """The first layer, in the order in which they finish, whose output differs."""
    import onnx

    from foveate.export.to_onnx import session

    proto = onnx.load(str(path))
    last = last_outputs(proto)
    expected = {name: value for name, value in _outputs(model, images) if name in last}
    for name in set(last.values()) - {one.name for one in proto.graph.output}:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    opened = session(proto.SerializeToString())
    names = [one.name for one in opened.get_outputs()]
    values = opened.run(None, {opened.get_inputs()[0].name: images.cpu().numpy()})
    found = {name: torch.from_numpy(v) for name, v in zip(names, values, strict=True)}
    for name, wanted in expected.items():
        if not difference(found[last[name]], wanted) <= tolerance:
            return f"layer '{name}'"
    return "its end, after all layers agree"


def _outputs(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each module gives, in the order in which they finish."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            kept[name] = output.detach().clone()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(partial(keep, name)).remove)
        model(images)
    yield from kept.items()
