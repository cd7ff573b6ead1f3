"""What a network costs, and what part of it each inserted mechanism takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.cost import (
    Timing,
    count_flops,
    count_parameters,
    human,
    latency,
    peak_memory,
)
from foveate.insertion.hooks import attachments
from foveate.modes import in_mode
from foveate.printing import as_text


@dataclass(frozen=True)
class Row:
    """Cost of one module: counts, milliseconds a call, and bytes held for the backward pass."""

    name: str
    parameters: int
    flops: int
    latency: Timing
    memory: int


@dataclass(frozen=True)
class Profile:
    """Cost of a network on one input, and of each mechanism on what it was given there."""

    model: Row
    sites: tuple[Row, ...]
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON-able values."""
        return asdict(self)

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table

        table = Table(title=f"{self.model.name}, batch of {self.batch}", title_justify="left")
        table.add_column("module", overflow="fold")
        for column in ("parameters", "FLOPs", "latency, ms", "saved, MiB"):
            table.add_column(column, justify="right")
        for row in (self.model, *self.sites):
            table.add_row(
                row.name,
                human(row.parameters),
                human(row.flops),
                f"{row.latency.median_ms:.2f} (IQR {row.latency.iqr_ms:.2f})",
                f"{row.memory / 2**20:.1f}",
            )
        yield table
        yield "FLOPs: multiply-adds of the batch; saved: activations held for the backward pass"


def profile(model: nn.Module, images: Tensor, *, repeats: int = 20) -> Profile:
    """Measure a network and each mechanism that was inserted into it.

    Args:
        model: The network; its mode is put back afterwards.
        images: A batch ``(B, C, H, W)`` on the model's device.
        repeats: Timed calls; the first three calls of each module are not timed.

    Returns:
        Parameters, multiply-adds, latency (median and interquartile range, evaluation mode) and
        the memory that training holds for the backward pass.
    """
    with _inputs(model) as seen, in_mode(model, training=False), torch.no_grad():
        model(images)
    sites = tuple(_row(name, module, inputs, repeats) for name, (module, inputs) in seen.items())
    return Profile(_row(type(model).__name__, model, (images,), repeats), sites, len(images))


def _row(name: str, module: nn.Module, inputs: tuple[Tensor, ...], repeats: int) -> Row:
    with in_mode(module, training=False):
        flops, time = count_flops(module, *inputs), latency(module, *inputs, repeats=repeats)
    with in_mode(module, training=True):
        memory = peak_memory(module, *inputs)
    return Row(name, count_parameters(module), flops, time, memory)


@contextmanager
def _inputs(model: nn.Module) -> Iterator[dict[str, tuple[nn.Module, tuple[Tensor, ...]]]]:
    """Collects each mechanism and what it is given, by name, while the model runs."""
    seen: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}
    names = {module: name for name, module in model.named_modules()}
    found = [getattr(owner, name) for owner, name, _ in attachments(model)]

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[names[module]] = (module, args)

    handles = [module.register_forward_pre_hook(keep) for module in found]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
