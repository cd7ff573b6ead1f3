"""What each mechanism of a comparison costs, measured side by side."""

import copy
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from foveate.cost import Timing, count_flops, count_parameters, latency, peak_memory, timing
from foveate.experiments.data.load import Data
from foveate.experiments.reporting.results import BASELINE, Cost, RunResult
from foveate.experiments.tasks import get_task
from foveate.modes import in_mode

# Rounds over all networks, so that a slow moment of the machine falls on all of them.
_ROUNDS, _REPEATS = 7, 3


def measure_costs(
    networks: Mapping[str, nn.Module],
    data: Data,
    runs: list[RunResult],
    *,
    batch_size: int,
    device: torch.device,
) -> dict[str, Cost]:
    """Costs by label: latency of one image, memory of one training batch, the rest by counting.

    Args:
        networks: By label, the baseline among them.
        data: Gives the shape of the images.
        runs: Give the speed of training.
        batch_size: Images in a training batch.
        device: Where to measure.
    """
    shape = (data.in_channels, data.image_size, data.image_size)
    image, batch = (torch.rand(size, *shape, device=device) for size in (1, batch_size))
    placed = {label: copy.deepcopy(network).to(device) for label, network in networks.items()}
    task = get_task(data.task)
    times = _latencies(placed, task.inputs(image))
    bare = count_parameters(placed[BASELINE])
    costs = {}
    for label, network in placed.items():
        with in_mode(network, training=False):
            flops = count_flops(network, *task.inputs(image))
        with in_mode(network, training=True):
            memory = peak_memory(network, *task.training_inputs(batch))
        parameters = count_parameters(network)
        costs[label] = Cost(
            parameters=parameters,
            added_parameters=parameters - bare,
            flops=flops,
            latency_ms=times[label].median_ms,
            latency_iqr_ms=times[label].iqr_ms,
            peak_memory_bytes=memory,
            images_per_second=_speed(label, runs),
        )
    return costs


def _latencies(networks: Mapping[str, nn.Module], inputs: tuple[Any, ...]) -> dict[str, Timing]:
    rounds: dict[str, list[float]] = {label: [] for label in networks}
    for _ in range(_ROUNDS):
        for label, network in networks.items():
            with in_mode(network, training=False):
                rounds[label].append(latency(network, *inputs, repeats=_REPEATS).median_ms)
    return {label: timing(times) for label, times in rounds.items()}


def _speed(label: str, runs: list[RunResult]) -> float | None:
    speeds = [run.images_per_second for run in runs if run.mechanism == label]
    known = [speed for speed in speeds if speed is not None]
    return statistics.median(known) if known else None
