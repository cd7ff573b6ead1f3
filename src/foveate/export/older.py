"""ONNX graphs in older operators, which ONNX's own converter leaves out.

A node stays as it is where the older operator takes its inputs and attributes; the others are
rewritten here. Whether the graph still computes the same is seen when it is run.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from foveate.errors import InvalidValueError, require

Constants = Mapping[str, Any]
"""What is known of tensors, as lists of numbers, by name."""
_AXES = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")


def lowered(proto: Any, opset: int) -> Any:
    """The graph in the operators of an older version.

    Raises:
        ValueError: If an operation has no older form; the message names it.
    """
    library = require("onnx", extra="export")
    old = library.ModelProto()
    old.CopyFrom(proto)
    constants = _constants(library, proto)
    nodes = [new for node in proto.graph.node for new in _rewritten(node, constants, opset)]
    for node in nodes:
        _check(library, node, opset)
    del old.graph.node[:]
    old.graph.node.extend(nodes)
    for one in old.opset_import:
        if not one.domain:
            one.version = opset
    old.ir_version = library.helper.find_min_ir_version_for(old.opset_import, True)
    return old


def _constants(library: Any, proto: Any) -> Constants:
    found = {one.name: one for one in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    whole = library.TensorProto.INT64
    return {
        name: library.numpy_helper.to_array(t).tolist()
        for name, t in found.items()
        if t.data_type == whole  # axes and lengths, not weights
    }


def _rewritten(node: Any, constants: Constants, opset: int) -> Iterator[Any]:
    rule = next(
        (rule for until, names, rule in _RULES if opset < until and node.op_type in names), None
    )
    if rule is None:
        yield node
    else:
        yield from rule(node, constants)


def _check(library: Any, node: Any, opset: int) -> None:
    """Refuse what the older operator does not know; what is at its default it need not know."""
    try:
        schema = library.defs.get_schema(node.op_type, opset)
    except library.defs.SchemaError as error:
        raise InvalidValueError(f"{node.op_type} does not exist in opset {opset}") from error
    newest = library.defs.get_schema(node.op_type)
    for attribute in list(node.attribute):
        if attribute.name in schema.attributes:
            continue
        usual = newest.attributes[attribute.name].default_value
        if library.helper.get_attribute_value(attribute) != library.helper.get_attribute_value(
            usual
        ):
            raise InvalidValueError(f"{node.op_type} has no '{attribute.name}' in opset {opset}")
        node.attribute.remove(attribute)
    if len(node.input) > schema.max_input:
        raise InvalidValueError(f"{node.op_type} takes fewer inputs in opset {opset}")


def _with(node: Any, **attributes: Any) -> Any:
    """The node with its first input alone, and the rest as attributes."""
    library = require("onnx", extra="export")
    kept = {one.name: library.helper.get_attribute_value(one) for one in node.attribute}
    kept.pop("noop_with_empty_axes", None)
    new = library.helper.make_node(
        node.op_type, [node.input[0]], list(node.output), name=node.name, **kept, **attributes
    )
    new.metadata_props.extend(node.metadata_props)
    return new


def _inputs_to_attribute(name: str) -> Callable[[Any, Constants], Iterator[Any]]:
    """A rule for operators whose second input was an attribute."""

    def rule(node: Any, constants: Constants) -> Iterator[Any]:
        given = node.input[1] if len(node.input) > 1 else ""
        if not given:
            yield _with(node)
            return
        if given not in constants:
            raise InvalidValueError(f"the {name} of {node.op_type} must be known beforehand")
        value = constants[given]
        yield _with(node, **{name: value if isinstance(value, list) else [value]})

    return rule


def _split(node: Any, constants: Constants) -> Iterator[Any]:
    """Without ``num_outputs``, which older operators take from the outputs."""
    for attribute in [one for one in node.attribute if one.name == "num_outputs"]:
        node.attribute.remove(attribute)
    yield node


def _reshape(node: Any, constants: Constants) -> Iterator[Any]:
    """Without ``allowzero``, which matters for empty maps alone."""
    for attribute in list(node.attribute):
        node.attribute.remove(attribute)
    yield node


def _shape(node: Any, constants: Constants) -> Iterator[Any]:
    """The whole shape, and then a part of it."""
    library = require("onnx", extra="export")
    ends = {one.name: one.i for one in node.attribute}
    whole = f"{node.output[0]}_whole"
    first = library.helper.make_node("Shape", list(node.input), [whole], name=f"{node.name}_whole")
    yield first
    limits = {"start": ends.get("start", 0), "end": ends.get("end", 2**31 - 1)}
    names = []
    for name, value in limits.items():
        names.append(f"{node.output[0]}_{name}")
        yield library.helper.make_node(
            "Constant",
            [],
            [names[-1]],
            value=library.helper.make_tensor(names[-1], library.TensorProto.INT64, [1], [value]),
        )
    yield library.helper.make_node("Slice", [whole, *names], list(node.output), name=node.name)


def _hard_swish(node: Any, constants: Constants) -> Iterator[Any]:
    """The input times its hard sigmoid."""
    library = require("onnx", extra="export")
    gate = f"{node.output[0]}_gate"
    x = node.input[0]
    yield library.helper.make_node("HardSigmoid", [x], [gate], alpha=1 / 6, beta=0.5)
    last = library.helper.make_node("Mul", [x, gate], list(node.output), name=node.name)
    last.metadata_props.extend(node.metadata_props)
    yield last


_RULES: tuple[tuple[int, tuple[str, ...], Callable[[Any, Constants], Iterator[Any]]], ...] = (
    (18, _AXES, _inputs_to_attribute("axes")),
    (13, ("ReduceSum", "Squeeze", "Unsqueeze"), _inputs_to_attribute("axes")),
    (13, ("Split",), _inputs_to_attribute("split")),
    (18, ("Split",), _split),
    (15, ("Shape",), _shape),
    (14, ("Reshape",), _reshape),
    (14, ("HardSwish",), _hard_swish),
)
"""Before which version which operators are rewritten, and how."""
