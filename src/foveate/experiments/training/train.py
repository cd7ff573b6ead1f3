"""The training loop: epochs, validation, and a state that continues to the same numbers."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from foveate.cost import Energy
from foveate.experiments.build import Network, derive_seed
from foveate.experiments.config import RunConfig
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data
from foveate.experiments.saved import Trained
from foveate.experiments.tasks import Evaluation, get_task
from foveate.experiments.training.checkpoint import Tensors
from foveate.experiments.training.evaluate import evaluate
from foveate.experiments.training.interrupt import CtrlC, Interrupted
from foveate.experiments.training.learner import Learner
from foveate.experiments.training.optimization import Schedule, plateau_cuts
from foveate.experiments.training.processes import total
from foveate.experiments.training.progress import Watcher
from foveate.experiments.training.recorder import Recorder, Silent
from foveate.experiments.training.snapshots import IMAGES, Snapshots
from foveate.experiments.training.state import State, copies, load_state, save_state

CHECKPOINT = "checkpoint.safetensors"

# Losses are read from the device this often (in steps), for each reading waits for it.
_READ_EVERY = 10


class DivergedError(RuntimeError):
    """A loss that is no longer a finite number."""


class Trainer:
    """Trains one network in one folder, from the start or from the checkpoint that is there.

    Args:
        config: The run.
        data: Its images.
        network: Built from both.
        folder: Takes the journal, the checkpoint and the tracker's files.
        fabric: Launched.
        watcher: Is told of each reading and epoch.
        teacher: Whose attention is distilled, if the recipe says so.
        save_every: Seconds between checkpoints; there is one after each epoch anyway.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Data,
        network: Network,
        folder: Path,
        fabric: Fabric,
        watcher: Watcher,
        *,
        teacher: Trained | None = None,
        save_every: float = 60.0,
    ) -> None:
        self.config, self.data, self.fabric, self.folder = config, data, fabric, folder
        self._recipe, self._watcher, self._save_every = config.recipe, watcher, save_every
        self._task = get_task(data.task)
        self._learner = Learner(network, config.recipe, data, fabric, teacher)
        self.module = self._learner.module
        share = math.ceil(len(data.train) / fabric.world_size)
        self._drop_last = share >= self._recipe.batch_size
        self.steps_per_epoch = max(1, share // self._recipe.batch_size)
        self._schedule = Schedule(self._recipe, self.steps_per_epoch)
        self.state = State()
        self._best: Tensors = {}
        self._unread: list[tuple[float, Tensor]] = []
        if (folder / CHECKPOINT).exists():
            self._restore()

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole recipe."""
        return self._recipe.epochs * self.steps_per_epoch

    @property
    def done_steps(self) -> int:
        """Optimiser steps so far."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    def run(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: After Ctrl-C, with everything saved.
            DivergedError: When a loss is not finite.
        """
        self._recorder = self._open_recorder()
        self._snapshots = self._open_snapshots()
        self._energy, self._saved_at = Energy(), time.perf_counter()
        try:
            with CtrlC() as self._ctrl_c:
                while not self._is_over():
                    self._train_epoch()
                    self._end_epoch()
                self._snapshot()
        finally:
            self._recorder.close()

    def test(self) -> Evaluation:
        """Evaluate the best weights on the test split; the network keeps them."""
        self.module.load_state_dict(self._best)
        return evaluate(self.module, self.data.test, self.data, self._recipe, self.fabric)

    def _open_recorder(self) -> Recorder:
        if not self.fabric.is_global_zero:
            return Silent()
        return Recorder(self.folder, self.config, self.state, self.done_steps, self._watcher)

    def _open_snapshots(self) -> Snapshots:
        chosen = self.data.val.take(torch.arange(min(len(self.data.val), IMAGES)))
        images, _ = next(batches(chosen, self.data, batch_size=IMAGES, device=self.fabric.device))
        images = images.to(next(self.module.parameters()).dtype)
        return Snapshots(self.module, images, self._recipe.snapshots, self.total_steps)

    def _snapshot(self) -> None:
        """Note the gates, if now is one of the chosen steps."""
        if self.done_steps in self._snapshots.steps:
            self._read()  # all processes together: the journal's lines are in the order of steps
            if self.fabric.is_global_zero:
                self._recorder.snapshot(self.done_steps, self._snapshots.take(self.done_steps))

    def _is_over(self) -> bool:
        epoch, patience = self.state.epoch, self._recipe.patience
        if epoch in (0, self._recipe.epochs) or patience is None:
            return epoch == self._recipe.epochs
        return epoch - 1 - self.state.best_epoch >= patience

    def _train_epoch(self) -> None:
        self._learner.enter_epoch(self.state.epoch)
        self._tick = time.perf_counter()
        cuts = plateau_cuts(self.state.val_losses, self._recipe.plateau_patience)
        for images, known in self._batches():
            # Dropout depends on no earlier step: it pairs between mechanisms, and it resumes.
            place = (self.config.seed, self.state.epoch, self.state.step)
            torch.manual_seed(derive_seed("step", *place, self.fabric.global_rank))
            rate = self._schedule.at(self.done_steps, cuts)
            self._snapshot()
            self._unread.append((rate, self._learner.step(images, known, rate)))
            self.state.step += 1
            self._after_step()
        self._read()

    def _batches(self) -> Iterator[tuple[Tensor, Any]]:
        return batches(
            self.data.train,
            self.data,
            batch_size=self._recipe.batch_size,
            augment=self._recipe.augment,
            seed=self.config.seed,
            epoch=self.state.epoch,
            shuffle=True,
            start=self.state.step,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            workers=self._recipe.workers,
            drop_last=self._drop_last,
            device=self.fabric.device,
            channels_last=self._recipe.channels_last,
        )

    def _after_step(self) -> None:
        if len(self._unread) == _READ_EVERY:
            self._read()
        elif self.fabric.world_size > 1:
            return  # the processes would have to agree, which costs as much as a reading
        stop = self._any(self._ctrl_c.pressed)
        if stop or self._any(time.perf_counter() - self._saved_at > self._save_every):
            self._save()
        if stop:
            raise Interrupted

    def _any(self, wish: bool) -> bool:
        """Whether any process wishes so."""
        if self.fabric.world_size == 1:
            return wish
        return bool(total(self.fabric, torch.tensor(int(wish), device=self.fabric.device)))

    def _read(self) -> None:
        """Take the unread losses from the device into the counts and the journal."""
        if not self._unread:
            return
        rates = [rate for rate, _ in self._unread]
        numbers = torch.stack([numbers for _, numbers in self._unread])  # (steps, 3)
        numbers = total(self.fabric, numbers)
        self._unread.clear()
        rows = []
        step = self.done_steps - len(rates)
        for rate, (loss, hits, seen) in zip(rates, numbers.tolist(), strict=True):
            step += 1
            if not math.isfinite(loss):
                raise DivergedError(f"the training loss became {loss} at step {step}")
            rows.append({"step": step, "loss": loss / seen, "lr": rate})
            self.state.count(loss, hits, int(seen))
        now = time.perf_counter()
        self.state.epoch_seconds += now - self._tick
        self._tick = now
        self._recorder.steps(rows, self.state)

    def _end_epoch(self) -> None:
        """Validate, keep the weights if they are the best, and save."""
        self._learner.share_buffers()
        state = self.state
        result = evaluate(self.module, self.data.val, self.data, self._recipe, self.fabric)
        if not math.isfinite(result.loss):
            raise DivergedError(f"the validation loss became {result.loss} at epoch {state.epoch}")
        state.val_losses.append(result.loss)
        state.val_accuracies.append(result.score)
        if state.best_epoch == state.epoch:
            self._best = copies(self.module)
        self._recorder.epoch(
            {
                "step": self.done_steps,
                "epoch": state.epoch + 1,
                "train_loss": state.loss_sum / state.seen,
                **self._train_score(),
                "val_loss": result.loss,
                f"val_{self._task.metric.key}": result.score,
                "lr": self._learner.rate,
                "images_per_second": state.seen / state.epoch_seconds,
            }
        )
        state.begin_epoch(state.epoch + 1)
        self._save()

    def _train_score(self) -> dict[str, float]:
        """What the steps of the epoch counted, if they count anything."""
        name = self._task.train_metric
        return {} if name is None else {f"train_{name}": self.state.train_score}

    def _save(self) -> None:
        """Write the checkpoint; the journal reaches the disk first."""
        self._read()
        now, joules = time.perf_counter(), self._energy.joules()
        self.state.charge(now - self._saved_at, joules)
        self.state.journal = self._recorder.sync()
        if self.fabric.is_global_zero:
            scaler = self.fabric.strategy.precision.state_dict()
            path, learner = self.folder / CHECKPOINT, self._learner
            save_state(path, self.state, learner.module, learner.optimizer, scaler, self._best)
        self._energy, self._saved_at = Energy(), now
        self._tick = time.perf_counter()

    def _restore(self) -> None:
        path, learner = self.folder / CHECKPOINT, self._learner
        self.state, scaler, self._best = load_state(path, learner.module, learner.optimizer)
        self.fabric.strategy.precision.load_state_dict(scaler)
