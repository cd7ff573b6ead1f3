"""What a module costs: parameters, multiply-adds, latency, memory and energy."""

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_Name = TypeVar("_Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range of repeated calls, in milliseconds."""

    median_ms: float
    iqr_ms: float


def count_parameters(module: nn.Module) -> int:
    """Trainable and frozen parameters, a shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_flops(module: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of one forward pass: convolutions, linear layers and matrix products.

    The papers call these FLOPs. Elementwise work, pooling and normalisation are not in it.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2


def meta_cost(build: Callable[[], nn.Module], *shapes: Sequence[int]) -> tuple[int, int]:
    """Parameters and multiply-adds of a module on inputs of these shapes, without computing."""
    with torch.device("meta"):
        module = build().eval()
        return count_parameters(module), count_flops(module, *map(torch.empty, shapes))


def latency(module: nn.Module, *inputs: Any, repeats: int = 20, warmup: int = 3) -> Timing:
    """Time of one forward pass without gradients, after ``warmup`` calls."""
    with torch.inference_mode():
        for _ in range(warmup):
            module(*inputs)
        times = [_milliseconds(module, *inputs) for _ in range(repeats)]
    return timing(times)


def timing(times: Sequence[float]) -> Timing:
    """Summary of at least one measured time."""
    if len(times) < 2:
        return Timing(times[0], 0.0)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, high - low)


def race(
    calls: Mapping[_Name, Callable[[], object]], *, repeats: int = 20, warmup: int = 3
) -> dict[_Name, Timing]:
    """Time of each call; all take turns in each round, in an order that is new in each.

    What slows the machine down for a while is thus shared by all.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[_Name, list[float]] = {name: [] for name in calls}
    order, chance = list(calls), random.Random(0)
    for _ in range(repeats):
        chance.shuffle(order)
        for name in order:
            times[name].append(_milliseconds(calls[name]))
    return {name: timing(found) for name, found in times.items()}


def _milliseconds(call: Callable[..., object], *inputs: Any) -> float:
    start = time.perf_counter()
    call(*inputs)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return 1000 * (time.perf_counter() - start)


def peak_memory(module: nn.Module, *inputs: Any) -> int:
    """Bytes that one forward pass in the module's mode holds for the backward pass.

    Each storage is counted once, the input's too, parameters and buffers not at all. The running
    statistics of normalisation layers are put back.
    """
    owned = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in owned:
            held[pointer] = tensor
        return tensor

    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = module(*inputs)
            total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
        del output
        return total
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


class Energy:
    """Joules that the processor packages drew since the reader was made.

    Read from the kernel's RAPL counters; ``joules()`` is None where they cannot be read.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._root = root
        self._start = self._read()

    def _read(self) -> dict[Path, int]:
        counters = sorted(self._root.glob("intel-rapl:[0-9]*/energy_uj"))
        packages = [path for path in counters if path.parent.name.count(":") == 1]
        try:
            return {path: int(path.read_text()) for path in packages}
        except (OSError, ValueError):
            return {}

    def joules(self) -> float | None:
        now = self._read()
        if not self._start or now.keys() != self._start.keys():
            return None
        used = 0
        for path, start in self._start.items():
            span = now[path] - start
            if span < 0:  # the counter wrapped
                span += int((path.parent / "max_energy_range_uj").read_text())
            used += span
        return used / 1e6


def human(count: float, digits: int = 3) -> str:
    """A count with a unit.

    Example:
        >>> human(25_557_032), human(999_999), human(80)
        ('25.6 M', '1 M', '80')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size * (1 - 0.5 / 10**digits):  # 999,999 is 1 M, not 1e+03 k
            return f"{count / size:.{digits}g} {unit}"
    return f"{count:.{digits}g}"
