"""Rivals timed in turns, on a processor or a graphics card."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

Rounds = tuple[int, int]
ROUNDS: Rounds = (5, 51)
"""Fewest and most rounds."""
FEW: Rounds = (5, 5)
SECONDS = 0.25
"""Of one contender, if the fewest rounds do not take longer."""
SAMPLE = 2e-3
"""Calls are repeated until a sample takes this many seconds."""


@dataclass(frozen=True)
class Contender:
    """Something to time."""

    name: str
    call: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]]
    """Entered around a sample, outside its time."""


def take_turns(
    contenders: Sequence[Contender], device: torch.device, rounds: Rounds = ROUNDS
) -> dict[str, list[float]]:
    """Milliseconds of a call of each contender in each round, the order new in each."""
    repeats, longest = {}, 0.0
    for contender in contenders:
        _sample(contender, 1, device)  # compiles, fills caches
        seconds = _sample(contender, 1, device) / 1e3
        repeats[contender.name] = max(1, round(SAMPLE / seconds))
        longest = max(longest, seconds * repeats[contender.name])
    fewest, most = rounds
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(max(fewest, min(most, int(SECONDS / longest)))):
        for contender in random.Random(number).sample(contenders, len(contenders)):
            times[contender.name].append(_sample(contender, repeats[contender.name], device))
    return times


def _sample(contender: Contender, repeats: int, device: torch.device) -> float:
    with contender.context():
        # One call untimed: after another contender the allocator may have to fetch new pages,
        # which the same call again does not.
        contender.call()
        clock = _on_card if device.type == "cuda" else _on_processor
        return clock(contender.call, repeats)


def _on_processor(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start) / repeats


def _on_card(call: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile, to four digits."""
    return [float(f"{q:.4g}") for q in statistics.quantiles(values, n=4, method="inclusive")]


def ratios(times: dict[str, list[float]], of: str, to: str) -> list[float]:
    """Quartiles of how many times as long one took as the other, round by round."""
    return quartiles([a / b for a, b in zip(times[of], times[to], strict=True)])
