"""Tiny networks for the page: one whose positions read each other, one that weighs features."""

import torch
from torch import Tensor, nn

import foveate


class Tiny(nn.Module):
    """A convolution, one mechanism, pooling, a linear layer."""

    def __init__(self, mechanism: str, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.attention = foveate.create(mechanism, 8, init="paper")
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(self.act(self.conv(x))).mean((2, 3)))


def reading(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    torch.manual_seed(0)
    return Tiny("nl", num_classes, in_channels)


def weighing(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    torch.manual_seed(1)
    return Tiny("cbam", num_classes, in_channels)


def plain(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )
