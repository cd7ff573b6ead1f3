"""Small hosts of the CIFAR kind, for images from 8 pixels up."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock

from foveate.errors import InvalidValueError


def small_cnn(
    num_classes: int, in_channels: int, image_size: int, *, dropout: float = 0.5
) -> nn.Sequential:
    """Three blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 max-pool; two linear layers.

    Args:
        num_classes: Width of the output.
        in_channels: Channels of the images.
        image_size: Side of the images, at least 8; the first linear layer depends on it.
        dropout: Probability before the last layer.

    Raises:
        ValueError: If the images are too small to be halved three times.
    """
    _check_halved("small_cnn", image_size)
    hidden = 128 * (image_size // 8) ** 2
    return nn.Sequential(
        OrderedDict(
            block1=_conv_block(in_channels, 32),
            block2=_conv_block(32, 64),
            block3=_conv_block(64, 128),
            flatten=nn.Flatten(),
            fc1=nn.Linear(hidden, 512),
            relu=nn.ReLU(inplace=True),
            dropout=nn.Dropout(dropout),
            fc2=nn.Linear(512, num_classes),
        )
    )


def compact_cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Sequential:
    """Three blocks of 64, 128 and 256 channels, as in :func:`small_cnn`; pooling; one linear layer.

    Attention of ``where="post"`` comes after each ReLU, before the block's pooling.

    Args:
        num_classes: Width of the output; 374,282 parameters for CIFAR-10.
        in_channels: Channels of the images.
        image_size: Side of the images, at least 8; nothing else depends on it.

    Raises:
        ValueError: If the images are too small to be halved three times.
    """
    _check_halved("compact_cnn", image_size)
    return nn.Sequential(
        OrderedDict(
            block1=_conv_block(in_channels, 64),
            block2=_conv_block(64, 128),
            block3=_conv_block(128, 256),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(256, num_classes),
        )
    )


def _check_halved(name: str, image_size: int) -> None:
    if image_size < 8:
        raise InvalidValueError(f"{name} needs images of at least 8 pixels, got {image_size=}")


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, 3, padding=1),
            norm=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
        )
    )


def resnet18_cifar(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no max-pool: 11,173,962 parameters for CIFAR-10."""
    model: nn.Module = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


class ResNet20(nn.Module):
    """ResNet-20 of He et al., CVPR 2016 (arXiv:1512.03385), section 4.2, with 1x1 shortcuts.

    Args:
        num_classes: Width of the output; 272,474 parameters for CIFAR-10.
        in_channels: Channels of the images.

    Shape:
        - Input: ``(B, in_channels, H, W)``
        - Output: ``(B, num_classes)``
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (B, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, H/4, W/4)
        return self.fc(self.avgpool(x).flatten(1))  # (B, num_classes)


def _stage(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    shortcut = None
    if stride > 1:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, shortcut),
        BasicBlock(out_channels, out_channels),
        BasicBlock(out_channels, out_channels),
    )
