"""Batch normalisation for attention, which sees smaller maps than the rest of a network."""

import torch.nn.functional as F
from torch import Tensor, nn


class GateNorm(nn.BatchNorm2d):
    """Batch normalisation that also trains on one value per channel.

    The variance of a single value is undefined and ``nn.BatchNorm2d`` refuses it. Here such a
    batch (one image whose map is 1 x 1) takes the running statistics and does not update them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)
