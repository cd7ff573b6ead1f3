"""Small hand-written networks, one for each way in which hosts differ."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(channels: int, out: int, *, groups: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride, 1, groups=groups, bias=False)


def unit(channels: int, out: int) -> list[nn.Module]:
    return [conv(channels, out), nn.BatchNorm2d(out), nn.ReLU()]


class Classifier(nn.Module):
    """A stem, a body to be filled in, global pooling and a linear layer."""

    def __init__(self, body: nn.Module, channels: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(*unit(3, channels))
        self.body = body
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    """A residual block; ``inplace`` adds with ``+=``, ``groups`` makes its convolutions grouped."""

    def __init__(self, channels: int, *, groups: int = 1, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels, channels, groups=groups), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, groups=groups), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=inplace)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.relu(out)


class Functional(nn.Module):
    """Residual additions written in the forward of the whole model, without block modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.bn0 = conv(3, 32), nn.BatchNorm2d(32)
        self.conv1, self.bn1 = conv(32, 32), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = conv(32, 32, stride=2), nn.BatchNorm2d(32)
        self.skip = nn.Conv2d(32, 32, 1, 2)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        out = self.bn1(self.conv1(x))
        out = out + x
        x = F.relu(out)
        x = F.relu(torch.add(self.bn2(self.conv2(x)), self.skip(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Shared(nn.Module):
    """One block used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


class Skipped(nn.Module):
    """Two blocks, the second of which is skipped at random while training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(32), Block(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.training and torch.rand(()) < 0.5:
            return x
        return self.second(x)


class Pair(nn.Module):
    """A block whose input and output are tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(32, 32), nn.BatchNorm2d(32)

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, memory = pair
        return F.relu(x + self.bn1(self.conv1(x))), memory + 1


class Tuples(nn.Module):
    """Blocks that hand tuples to each other, in a model whose input is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*unit(3, 32))
        self.blocks = nn.Sequential(Pair(), Pair())
        self.fc = nn.Linear(32, 5)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        image, memory = pair
        x, memory = self.blocks((self.stem(image), memory))
        return self.fc(x.mean((2, 3))) + memory.mean()


class Unused(nn.Module):
    """A block that is run, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = Block(32), Block(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def sequential() -> nn.Sequential:
    return nn.Sequential(
        *unit(3, 16),
        nn.MaxPool2d(2),
        *unit(16, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


HANDMADE = {
    "sequential": sequential,
    "functional_add": Functional,
    "out_of_place": lambda: Classifier(nn.Sequential(Block(32), Block(32))),
    "in_place": lambda: Classifier(nn.Sequential(Block(32, inplace=True), Block(32, inplace=True))),
    "shared_block": lambda: Classifier(Shared()),
    "skipped_block": lambda: Classifier(Skipped()),
    "grouped": lambda: Classifier(Block(32, groups=4)),
    "tuples": Tuples,
    "unused_branch": lambda: Classifier(Unused()),
}


def image(name: str, batch: int = 2, size: int = 16) -> object:
    """An input for a hand-written network; the tuple network takes one tuple."""
    x = torch.rand(batch, 3, size, size)
    return ((x, torch.rand(batch, 4)),) if name == "tuples" else (x,)
