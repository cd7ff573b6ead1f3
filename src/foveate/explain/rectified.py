"""Units behind a ReLU that never fire."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_RELUS = (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu_)


class Rectified:
    """Which units of each ReLU, in the order in which they are called, have fired."""

    def __init__(self) -> None:
        self._fired: list[Tensor] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch one call of a module, in which each ReLU is called once."""
        found: list[Tensor] = []
        with _Watch(found):
            yield
        for place, fired in enumerate(found):
            if place == len(self._fired):
                self._fired.append(fired)
            else:
                self._fired[place] = self._fired[place] | fired

    @property
    def dead_share(self) -> float | None:
        """Of the ReLU with the largest share of units that never fired; None without a ReLU."""
        return max((1 - float(fired.double().mean()) for fired in self._fired), default=None)


class _Watch(TorchFunctionMode):
    def __init__(self, found: list[Tensor]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RELUS and args[0].dim() >= 2:
            x = args[0].detach()
            self.found.append((x > 0).transpose(0, 1).flatten(1).any(1))
        return func(*args, **(kwargs or {}))
