"""The processes that train together, one or several."""

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from foveate.errors import InvalidValueError
from foveate.experiments.config import Recipe

T = TypeVar("T")


def launch(recipe: Recipe) -> Fabric:
    """Fabric on the recipe's device; under ``torchrun`` one of its processes.

    Raises:
        ValueError: If there is no such accelerator here.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        fabric = Fabric(
            accelerator=recipe.accelerator,
            strategy="ddp" if world > 1 else "auto",
            devices=local,
            num_nodes=world // local,
            precision=recipe.precision,
        )
    except (RuntimeError, ValueError) as error:
        where = f"accelerator={recipe.accelerator}, precision={recipe.precision}"
        raise InvalidValueError(f"cannot run on {where}: {error}") from error
    fabric.launch()
    return fabric


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Algorithms that give the same numbers again, also on a GPU, while inside."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def total(fabric: Fabric, numbers: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if fabric.world_size > 1:
        torch.distributed.all_reduce(numbers)
    return numbers


def gathered(fabric: Fabric, mine: T) -> list[T]:
    """What each process has, in their order."""
    if fabric.world_size == 1:
        return [mine]
    shares: list[T] = [mine] * fabric.world_size
    torch.distributed.all_gather_object(shares, mine)
    return shares
