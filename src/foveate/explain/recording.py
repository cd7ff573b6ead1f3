"""The gates and affinities of a network, as they were while it ran."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidTypeError, InvalidValueError, unknown
from foveate.explain.acting import Handle, key_of, mechanisms, tap
from foveate.explain.foreign import Foreign, recognise
from foveate.explain.untouched import untouched
from foveate.mechanisms.base import Attention
from foveate.printing import as_text

Maps = dict[str, Tensor]


@dataclass(frozen=True)
class _Input:
    """What a mechanism was given, kept so that its affinities can be asked for."""

    x: Tensor
    autocast: bool
    dtype: torch.dtype


@dataclass
class Layer:
    """One mechanism of a network and what it did, call by call."""

    name: str
    """Full name of the module in the network."""
    key: str
    """Name of the mechanism in the registry; that of its counterpart for foreign modules."""
    module: nn.Module
    calls: list[Maps] = field(default_factory=list)
    """The maps of each call, by name, without gradients."""
    _inputs: list[_Input] = field(default_factory=list, repr=False)
    _affinity: Callable[[Tensor], ops.Affinity | None] | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the map whose positions read others; None if there is no affinity."""
        if not self._inputs:
            return None
        height, width = self._inputs[-1].x.shape[2:]
        return height, width

    @property
    def maps(self) -> Maps:
        """The maps of all calls by name, one after the other along the batch.

        Channels are ``(B, C, 1, 1)``, positions ``(B, 1, H, W)``, rows ``(B, C, H, 1)``, columns
        ``(B, C, 1, W)``, groups ``(B, G, H, W)``.

        Raises:
            ValueError: If the layer was not called, or for maps of several sizes.
        """
        if not self.calls:
            raise InvalidValueError(f"'{self.name}' was not called while it was recorded")
        if len(self.calls) == 1:
            return self.calls[0]
        sizes = {tuple((n, t.shape[1:]) for n, t in call.items()) for call in self.calls}
        if len(sizes) > 1:
            raise InvalidValueError(
                f"'{self.name}' was called with maps of {len(sizes)} sizes; take them from .calls"
            )
        return {name: torch.cat([call[name] for call in self.calls]) for name in self.calls[0]}


class Record(Mapping[str, Layer]):
    """The layers of a network by name, in the order in which they stand in it.

    A layer is also found by the name of any module that holds no other: ``record["layer4.2"]``.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, name: str) -> Layer:
        if name in self._layers:
            return self._layers[name]
        inside = [layer for full, layer in self._layers.items() if full.startswith(f"{name}.")]
        if len(inside) == 1:
            return inside[0]
        if inside:
            names = ", ".join(layer.name for layer in inside)
            raise InvalidValueError(f"'{name}' holds several layers with attention: {names}")
        raise unknown("layer with attention", name, self._layers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def affinity(self, layer: str, points: Sequence[tuple[int, int]], *, call: int = -1) -> Tensor:
        """With which weights positions read others: the rows of an affinity, and only these.

        Computed when asked for, from the input that the layer was given and its weights as they are
        now.

        Args:
            layer: Name of the layer.
            points: Row and column of each position, in the map that the layer was given.
            call: Which call, if there were several.

        Returns:
            ``(B, heads, P, H', W')``, in at least float32 where it is a softmax. The map that is
            read may be smaller than the one that reads.

        Raises:
            ValueError: If the layer has no affinity or was not called, or a point lies outside.
        """
        found = self[layer]
        affinities, given = found._affinity, found._inputs
        if affinities is None:
            raise InvalidValueError(f"'{found.name}' ({found.key}) has no affinity of positions")
        if not given:
            raise InvalidValueError(f"'{found.name}' was not called while it was recorded")
        kept = given[call]
        device = kept.x.device.type
        with (
            untouched(found.module, kept.x),
            torch.autocast(device, kept.dtype, enabled=kept.autocast),
        ):
            affinity = affinities(kept.x)
            assert affinity is not None
            return affinity.rows(_indices(points, affinity.size).to(kept.x.device))

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        for column in ("layer", "mechanism", "calls", "maps of the last call"):
            table.add_column(column, overflow="fold")
        for layer in self.values():
            shapes = {n: tuple(t.shape) for n, t in layer.calls[-1].items()} if layer.calls else {}
            maps = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            affinity = ["affinity"] if layer._inputs else []
            shown = ", ".join([maps, *affinity] if maps else affinity)
            table.add_row(*map(escape, (layer.name, layer.key, str(len(layer.calls)), shown)))
        yield table


def _indices(points: Sequence[tuple[int, int]], size: Sequence[int]) -> Tensor:
    height, width = size
    for y, x in points:
        if not (0 <= y < height and 0 <= x < width):
            raise InvalidValueError(
                f"a point must lie in the map of {height} rows and {width} columns, "
                f"but got (y, x) = ({y}, {x})"
            )
    return torch.tensor([y * width + x for y, x in points], dtype=torch.long)


@contextmanager
def record(model: nn.Module) -> Iterator[Record]:
    """Keep the gates of all attention in a network while it runs.

    Known are the mechanisms of this library, wherever they stand, and those of torchvision and timm
    with gates or affinities. The network computes what it always computes, in its own mode; nothing
    of it changes, and its hooks are gone when the block ends, also by an exception.

    Args:
        model: The network, before ``torch.compile``.

    Yields:
        The record. What is kept in it has no gradients and stays on the device of the network.

    Raises:
        ValueError: If there is no attention in the network.
        TypeError: For a compiled network, whose modules do not run one by one.

    Example:
        >>> import foveate, torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), foveate.create("cbam", 8))
        >>> with foveate.record(model) as record:
        ...     _ = model(torch.rand(2, 3, 9, 9))
        >>> {name: tuple(gate.shape) for name, gate in record["1"].maps.items()}
        {'channel': (2, 8, 1, 1), 'spatial': (2, 1, 7, 7)}
    """
    if hasattr(model, "_orig_mod"):
        raise InvalidTypeError(
            "a compiled network cannot be recorded; record the one it is made of"
        )
    layers: dict[str, Layer] = {}
    with ExitStack() as stack:
        for name, module in mechanisms(_unwrapped(model)):
            layer, handles = _watch(name, module)
            layers[name] = layer
            for handle in handles:
                stack.callback(handle.remove)
        if not layers:
            raise InvalidValueError(f"there is no attention in this {type(model).__name__}")
        yield Record(layers)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what trains it on several devices, whose names it would prefix."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def _watch(name: str, module: nn.Module) -> tuple[Layer, list[Handle]]:
    foreign = recognise(module)
    if isinstance(module, Attention):
        layer = Layer(name, key_of(module), module)
        if type(module).affinity is not Attention.affinity:
            layer._affinity = module.affinity
        return layer, [module.register_forward_pre_hook(partial(_keep_maps, layer))]
    assert foreign is not None
    layer = Layer(name, foreign.key, module)
    if foreign.affinity is not None:
        layer._affinity = partial(foreign.affinity, module)
    return layer, list(_tapped(layer, foreign))


def _keep_maps(layer: Layer, module: Attention, args: tuple[Tensor, ...]) -> None:
    if _in_backward():
        return
    x = args[0]
    with untouched(module, x):
        maps = module.maps(ops.fuse(x) if module.fused else x)
        layer.calls.append({name: t.detach() for name, t in maps.items()})
    _keep_input(layer, x)


def _keep_input(layer: Layer, x: Tensor) -> None:
    if layer._affinity is None:
        return
    device = x.device.type
    copy = x.detach().clone()  # the network may change it in place
    autocast = torch.is_autocast_enabled(device)
    layer._inputs.append(_Input(copy, autocast, torch.get_autocast_dtype(device)))


def _in_backward() -> bool:
    """Whether a checkpoint computes again what was recorded already."""
    return torch._C._current_graph_task_id() != -1


def _tapped(layer: Layer, foreign: Foreign) -> Iterator[Handle]:
    module = layer.module

    def begin(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not _in_backward():
            layer.calls.append({})
            _keep_input(layer, args[0])

    def end(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if foreign.added and not _in_backward():
            length = torch.linalg.vector_norm(output.detach() - args[0].detach(), dim=1)
            layer.calls[-1]["added"] = length.unsqueeze(1)

    yield module.register_forward_pre_hook(begin)
    yield module.register_forward_hook(end)
    yield from tap(module, foreign, lambda: {} if _in_backward() else layer.calls[-1])
