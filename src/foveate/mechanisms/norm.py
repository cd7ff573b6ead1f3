"""Batch normalisation for attention, which sees smaller maps than the rest of a network."""

import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops


class GateNorm(nn.BatchNorm2d):
    """Batch normalisation that also trains on one value per channel.

    The variance of a single value is undefined and ``nn.BatchNorm2d`` refuses it. Here such a
    batch (one image whose map is 1 x 1) takes the running statistics and does not update them.
    Where a backward pass computes it again, it does not update them a second time.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.training and ops.again():
            mean, var = (
                None if t is None else t.clone() for t in (self.running_mean, self.running_var)
            )
            return F.batch_norm(input, mean, var, self.weight, self.bias, True, eps=self.eps)
        return super().forward(input)

    def running(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance that it takes now; None for those of the batch."""
        if self.training or self.running_mean is None or self.running_var is None:
            return None
        return self.running_mean, self.running_var

    def update(self, mean: Tensor, var: Tensor) -> None:
        """Do with the statistics of a batch what a call does in training."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
