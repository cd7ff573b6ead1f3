"""The training loop: steps, epochs, and a state that continues to the same numbers."""

import math
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from foveate.cost import Energy
from foveate.experiments.batches import batches
from foveate.experiments.build import Network, derive_seed
from foveate.experiments.checkpoint import Tensors
from foveate.experiments.config import RunConfig
from foveate.experiments.data import Data
from foveate.experiments.evaluate import Evaluation, evaluate
from foveate.experiments.freezing import find_classifier, freeze, train_mode
from foveate.experiments.interrupt import CtrlC, Interrupted
from foveate.experiments.optimization import (
    Schedule,
    build_optimizer,
    plateau_cuts,
    set_learning_rate,
)
from foveate.experiments.progress import Watcher
from foveate.experiments.recompute import recompute_blocks
from foveate.experiments.recorder import Recorder, Silent
from foveate.experiments.state import State, copies, load_state, save_state

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
        save_every: float = 60.0,
    ) -> None:
        self.config, self.data, self.fabric = config, data, fabric
        self._recipe, self._network, self.module = config.recipe, network, network.module
        self._folder, self._watcher, self._save_every = folder, watcher, save_every
        if self._recipe.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._recipe.checkpointing:
            recompute_blocks(self.module)
        self._model = fabric.setup_module(self.module)
        self._bare_optimizer = build_optimizer(self._recipe, self.module)
        self._optimizer = fabric.setup_optimizers(self._bare_optimizer)
        self._batch = self._recipe.batch_size * fabric.world_size
        self.steps_per_epoch = max(1, len(data.train) // self._batch)
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
        self._energy, self._saved_at = Energy(), time.perf_counter()
        self._recorder = self._open_recorder()
        try:
            with CtrlC() as self._ctrl_c:
                while not self._is_over():
                    self._train_epoch()
                    self._end_epoch()
        finally:
            self._recorder.close()

    def test(self) -> Evaluation:
        """Evaluate the best weights on the test split; the network keeps them."""
        self.module.load_state_dict(self._best)
        return self._evaluate_on(self.data.test)

    def _open_recorder(self) -> Recorder:
        if not self.fabric.is_global_zero:
            return Silent()
        return Recorder(self._folder, self.config, self.state, self.done_steps, self._watcher)

    def _is_over(self) -> bool:
        epoch, patience = self.state.epoch, self._recipe.patience
        if epoch == self._recipe.epochs:
            return True
        return bool(epoch and patience) and epoch - 1 - self.state.best_epoch >= (patience or 0)

    def _train_epoch(self) -> None:
        self._enter_phase()
        self._tick = time.perf_counter()
        cuts = plateau_cuts(self.state.val_losses, self._recipe.plateau_patience)
        for images, labels in self._batches():
            self._step(images, labels, self._schedule.at(self.done_steps, cuts))
            self.state.step += 1
            self._after_step()
        self._read()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
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
            drop_last=len(self.data.train) >= self._batch,
            device=self.fabric.device,
            channels_last=self._recipe.channels_last,
        )

    def _enter_phase(self) -> None:
        """Freeze the host in the first epochs of the recipe, and thaw it after them."""
        frozen_epochs = self._recipe.freeze_epochs
        if self.state.epoch < frozen_epochs:
            added = self._network.added()
            head = find_classifier(self.module, len(self.data.classes), besides=added)
            freeze(self.module, [*added, *head.parameters()])
        elif frozen_epochs:
            freeze(self.module, self.module.parameters())
        if frozen_epochs and self.fabric.world_size > 1:  # DDP fixes at setup what it reduces
            self._model = self.fabric.setup_module(self.module)
        train_mode(self.module)

    def _step(self, images: Tensor, labels: Tensor, rate: float) -> None:
        # Dropout depends on nothing before this step: it pairs between mechanisms, and resumes.
        place = (self.config.seed, self.state.epoch, self.state.step, self.fabric.global_rank)
        torch.manual_seed(derive_seed("step", *place))
        set_learning_rate(self._bare_optimizer, rate)
        logits = self._model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self._recipe.label_smoothing)
        self._optimizer.zero_grad()
        self.fabric.backward(loss)
        if self._recipe.clip_norm is not None:
            norm = self._recipe.clip_norm
            self.fabric.clip_gradients(
                self.module, self._optimizer, max_norm=norm, error_if_nonfinite=False
            )
        self._optimizer.step()
        hits = (logits.detach().argmax(1) == labels).sum()
        seen = torch.full_like(hits, len(labels))
        numbers = torch.stack([loss.detach() * len(labels), hits, seen]).float()
        self._unread.append((rate, numbers))

    def _after_step(self) -> None:
        reading = len(self._unread) == _READ_EVERY
        if reading:
            self._read()
        elif self.fabric.world_size > 1:
            return  # the processes must agree, which costs as much as a reading
        due = time.perf_counter() - self._saved_at > self._save_every
        stop, save = self._any(self._ctrl_c.pressed), self._any(due)
        if stop or save:
            self._save()
        if stop:
            raise Interrupted

    def _any(self, wish: bool) -> bool:
        """Whether any process wishes so."""
        if self.fabric.world_size == 1:
            return wish
        wishes = torch.tensor(float(wish), device=self.fabric.device)
        return bool(self.fabric.all_reduce(wishes, reduce_op="sum") > 0)

    def _read(self) -> None:
        """Take the unread losses from the device into the counts and the journal."""
        if not self._unread:
            return
        rates = [rate for rate, _ in self._unread]
        numbers = torch.stack([numbers for _, numbers in self._unread])  # (steps, 3)
        self._unread.clear()
        if self.fabric.world_size > 1:
            numbers = self.fabric.all_reduce(numbers, reduce_op="sum")
        first = self.done_steps - len(rates)
        rows = []
        for step, (rate, (loss, hits, seen)) in enumerate(zip(rates, numbers.tolist()), first):
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {loss} at step {step + 1}")
            self.state.loss_sum += loss
            self.state.correct += int(hits)
            self.state.seen += int(seen)
            rows.append({"step": step + 1, "loss": loss / seen, "lr": rate})
        now = time.perf_counter()
        self.state.epoch_seconds += now - self._tick
        self._tick = now
        self._recorder.steps(rows, self.state)
