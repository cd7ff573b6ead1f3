"""Where a run stands, and its checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.experiments.training import checkpoint
from foveate.experiments.training.checkpoint import Tensors, prefixed, under


@dataclass
class State:
    """Counts of a run; with the tensors beside it, all that resuming needs.

    ``val_accuracies`` are of the metric of the task, whatever it is.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: float = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    wall_seconds: float = 0.0
    joules: float | None = 0.0
    val_losses: list[float] = field(default_factory=list)
    val_accuracies: list[float] = field(default_factory=list)
    journal: int = 0

    @property
    def best_epoch(self) -> int:
        """Index of the epoch with the highest validation score; ties go by loss, then first."""
        scores = zip(self.val_accuracies, self.val_losses, strict=True)
        ranked = [(-accuracy, loss, epoch) for epoch, (accuracy, loss) in enumerate(scores)]
        return min(ranked)[2]

    @property
    def train_score(self) -> float:
        """Share of hits in the epoch so far, in percent."""
        return 100 * self.correct / self.seen

    def count(self, loss_sum: float, correct: float, seen: int) -> None:
        """Add a batch to the epoch."""
        self.loss_sum += loss_sum
        self.correct += correct
        self.seen += seen

    def charge(self, seconds: float, joules: float | None) -> None:
        """Add what was spent since the last time; energy that was once unreadable stays so."""
        self.wall_seconds += seconds
        spent = self.joules
        self.joules = None if spent is None or joules is None else spent + joules

    def begin_epoch(self, epoch: int) -> None:
        """Clear what is counted within one epoch."""
        self.epoch, self.step = epoch, 0
        self.loss_sum, self.correct, self.seen, self.epoch_seconds = 0.0, 0, 0, 0.0


def copies(module: nn.Module) -> Tensors:
    """The state dict of a module as tensors of their own on the CPU."""
    return {name: t.detach().to("cpu", copy=True) for name, t in module.state_dict().items()}


def save_state(
    path: Path,
    state: State,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Mapping[str, object],
    best: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint: counts, weights, the best weights so far, optimizer and loss scaler."""
    moments, values = checkpoint.pack_optimizer(optimizer)
    tensors = {
        **prefixed("model", module.state_dict()),
        **prefixed("best", best),
        **prefixed("optimizer", moments),
    }
    rest = {"run": asdict(state), "optimizer": values, "precision": dict(precision)}
    checkpoint.save(path, tensors, rest)


def load_state(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[State, dict[str, object], Tensors]:
    """Restore a module and its optimizer; returns the counts, loss scaler and best weights."""
    tensors, rest = checkpoint.load(path)
    module.load_state_dict(under("model", tensors))
    checkpoint.unpack_optimizer(optimizer, under("optimizer", tensors), rest["optimizer"])
    return State(**rest["run"]), rest["precision"], under("best", tensors)
