"""A network that learns: model, optimizer and one step of it, on any device and precision."""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from foveate.experiments.build import Network
from foveate.experiments.config import Recipe
from foveate.experiments.data.load import Data
from foveate.experiments.saved import Trained
from foveate.experiments.tasks import get_task
from foveate.experiments.training.distill import Distillation
from foveate.experiments.training.freezing import freeze, train_mode
from foveate.experiments.training.optimization import build_optimizer, set_learning_rate
from foveate.experiments.training.recompute import recompute_blocks


class Learner:
    """Prepares a network as a recipe says, and takes optimiser steps with it."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        data: Data,
        fabric: Fabric,
        teacher: Trained | None = None,
    ) -> None:
        self.module = network.module
        self._network, self._recipe, self._fabric = network, recipe, fabric
        self._task, self._classes = get_task(data.task), len(data.classes)
        if recipe.channels_last:
            self.module.to(memory_format=torch.channels_last)
        if recipe.checkpointing:
            recompute_blocks(self.module)
        self._learning = {id(p) for p in self.module.parameters() if p.requires_grad}
        self._model = fabric.setup_module(self.module)
        self.optimizer = build_optimizer(recipe, self.module)
        self._stepper: Any = fabric.setup_optimizers(self.optimizer)
        self._distillation: Distillation | None = None
        if teacher is not None and recipe.distill is not None:
            self._distillation = Distillation(self.module, teacher, recipe.distill, data)

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def enter_epoch(self, epoch: int) -> None:
        """Training mode; the host is frozen in the first epochs of the recipe, then thawed."""
        freezing = epoch < self._recipe.freeze_epochs
        if freezing:
            added = self._network.added()
            fresh = self._task.fresh(self.module, self._classes, added)
            # What the host itself keeps from learning stays so.
            freeze(self.module, [p for p in (*added, *fresh) if id(p) in self._learning])
        elif self._recipe.freeze_epochs:
            freeze(self.module, [p for p in self.module.parameters() if id(p) in self._learning])
        if self._recipe.freeze_epochs and self._fabric.world_size > 1:
            # DDP fixes at setup which gradients it reduces.
            self._model = self._fabric.setup_module(self.module)
        train_mode(self.module, freezing=freezing)

    def step(self, images: Tensor, known: Any, rate: float) -> Tensor:
        """One optimiser step; returns the sum of losses, the hits and the images, on the device."""
        set_learning_rate(self.optimizer, rate)
        loss, hits = self._task.loss(self._model, images, known, self._recipe)
        if self._distillation is not None:
            loss = loss + self._distillation.loss(images)
        self._stepper.zero_grad()
        self._fabric.backward(loss)
        if self._recipe.clip_norm is not None:
            self._fabric.clip_gradients(
                self.module,
                self._stepper,
                max_norm=self._recipe.clip_norm,
                error_if_nonfinite=False,  # the loss scaler skips such a step by itself
            )
        self._stepper.step()
        count = torch.full_like(hits, len(images))
        return torch.stack([loss.detach() * len(images), hits, count]).float()

    def share_buffers(self) -> None:
        """Give all processes the running statistics of the first one."""
        if self._fabric.world_size > 1:
            buffers = {name: buffer.cpu() for name, buffer in self.module.named_buffers()}
            self.module.load_state_dict(self._fabric.broadcast(buffers), strict=False)
