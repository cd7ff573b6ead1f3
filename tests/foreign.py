"""Attention as others wrote it, with the names that their checkpoints have, in a small network."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Build = Callable[[int], dict[str, nn.Module]]
SIZE = (3, 22, 26)


class Block(nn.Module):
    """A residual block that applies further children, in order, to the end of its branch."""

    def __init__(self, inputs: int, outputs: int, stride: int, build: Build) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        attention = build(outputs)
        self.attention_names = list(attention)
        for name, module in attention.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        for name in self.attention_names:
            y = getattr(self, name)(y)
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Net(nn.Module):
    """Two stages of two blocks; the names are those of torchvision's ResNet."""

    def __init__(self, build: Build = lambda channels: {}, num_classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1, build), Block(64, 64, 1, build))
        self.layer2 = nn.Sequential(Block(64, 128, 2, build), Block(128, 128, 1, build))
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.fc(x.mean((2, 3)))


def prepared(model: nn.Module, seed: int = 0) -> nn.Module:
    """In double precision and evaluation mode, with all but fixed filters random."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.double().state_dict().items():
        if tensor.is_floating_point() and "dct_layer" not in name:
            random = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            spread = 2 * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 1.0
            tensor.copy_(random + 0.5 if "running_var" in name else (random - 0.5) * 2 * spread)
    return model.eval()


def images(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *SIZE, generator=generator, dtype=torch.float64)


class Sequence(nn.Sequential):
    """Layers by the names that are given."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def conv(inputs: int, outputs: int, size: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class SELinear(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False),
            nn.ReLU(),
            nn.Linear(channels // 16, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class SEConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = conv(channels, channels // 16), conv(channels // 16, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class ECA(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]


class ChannelGate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // 16),
            nn.ReLU(),
            nn.Linear(channels // 16, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        return x * gate.sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """The maximum comes before the mean."""

    def __init__(self, attribute: str = "spatial") -> None:
        super().__init__()
        self.attribute = attribute
        layers = Sequence(conv=conv(2, 1, 7, bias=False), bn=nn.BatchNorm2d(1))
        self.add_module(attribute, layers)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * getattr(self, self.attribute)(pooled).sigmoid()


def cbam(channels: int) -> nn.Module:
    return Sequence(ChannelGate=ChannelGate(channels), SpatialGate=SpatialGate())


class SmallChannelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            conv(channels, channels // 16, bias=False),
            nn.ReLU(),
            conv(channels // 16, channels, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        pools = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        return x * sum(self.fc(pool) for pool in pools).sigmoid()


class SmallSpatialAttention(nn.Module):
    """The mean comes before the maximum, and nothing is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(2, 1, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv1(pooled).sigmoid()


class BAM(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 16
        norm = nn.BatchNorm2d
        self.channel_att = Sequence(
            gate_c=Sequence(
                flatten=nn.Flatten(),
                gate_c_fc_0=nn.Linear(channels, hidden),
                gate_c_bn_1=nn.BatchNorm1d(hidden),
                gate_c_relu_1=nn.ReLU(),
                gate_c_fc_final=nn.Linear(hidden, channels),
            )
        )
        wide = {"padding": 4, "dilation": 4}
        self.spatial_att = Sequence(
            gate_s=Sequence(
                gate_s_conv_reduce0=conv(channels, hidden),
                gate_s_bn_reduce0=norm(hidden),
                gate_s_relu_reduce0=nn.ReLU(),
                gate_s_conv_di_0=nn.Conv2d(hidden, hidden, 3, **wide),
                gate_s_bn_di_0=norm(hidden),
                gate_s_relu_di_0=nn.ReLU(),
                gate_s_conv_di_1=nn.Conv2d(hidden, hidden, 3, **wide),
                gate_s_bn_di_1=norm(hidden),
                gate_s_relu_di_1=nn.ReLU(),
                gate_s_conv_final=conv(hidden, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel_att(x.mean((2, 3)))[:, :, None, None]
        return x * (1 + (channel * self.spatial_att(x)).sigmoid())


class Triplet(nn.Module):
    def __init__(self, names: tuple[str, str, str], attribute: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, SpatialGate(attribute))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (getattr(self, name) for name in self.names)
        over_rows = first(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        over_columns = second(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1)
        return (over_rows + over_columns + third(x)) / 3


class Coordinate(nn.Module):
    def __init__(self, channels: int, height: str = "conv_h", width: str = "conv_w") -> None:
        super().__init__()
        hidden = max(8, channels // 32)
        self.height, self.width = height, width
        self.conv1, self.bn1 = conv(channels, hidden), nn.BatchNorm2d(hidden)
        self.add_module(height, conv(hidden, channels))
        self.add_module(width, conv(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        strips = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).mT], 2)
        y = self.bn1(self.conv1(strips))
        rows, columns = (y * F.relu6(y + 3) / 6).split([H, W], 2)
        a_h = getattr(self, self.height)(rows).sigmoid()
        return x * getattr(self, self.width)(columns.mT).sigmoid() * a_h


class Context(nn.Module):
    def __init__(self, channels: int, fusion: str) -> None:
        super().__init__()
        hidden = channels // 16
        self.conv_mask, self.fusion = conv(channels, 1), f"channel_{fusion}_conv"
        layers = (conv(channels, hidden), nn.LayerNorm([hidden, 1, 1]), nn.ReLU())
        self.add_module(self.fusion, nn.Sequential(*layers, conv(hidden, channels)))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv_mask(x).flatten(1).softmax(1)
        context = torch.einsum("bcn,bn->bc", x.flatten(2), weights)[:, :, None, None]
        y = getattr(self, self.fusion)(context)
        return x + y if "add" in self.fusion else x * y.sigmoid()


class NonLocal(nn.Module):
    """Pairs of positions, softmax of their products; ``layers`` by the names of one code."""

    def __init__(
        self,
        names: tuple[str, str, str],
        layers: dict[str, nn.Module],
        out: tuple[str, ...],
        scale: float = 1.0,
        pool: bool = False,
        three_dimensional: bool = False,
    ) -> None:
        super().__init__()
        self.names, self.out, self.scale, self.pool = names, out, scale, pool
        self.three_dimensional = three_dimensional
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        wide = x[:, :, None] if self.three_dimensional else x
        small = F.max_pool3d(wide, (1, 2, 2)) if self.pool else wide
        theta, phi, g = (getattr(self, name) for name in self.names)
        q, k, v = theta(wide).flatten(2), phi(small).flatten(2), g(small).flatten(2)
        y = v @ (q.mT @ k * self.scale).softmax(2).mT
        y = y.unflatten(2, wide.shape[2:])
        for name in self.out:
            y = getattr(self, name)(y)
        return x + y.reshape(x.shape)


def nl_alexhex7(channels: int, pool: bool, norm: bool) -> nn.Module:
    hidden = channels // 2
    g, phi, out = conv(channels, hidden), conv(channels, hidden), conv(hidden, channels)
    layers = {
        "g": nn.Sequential(g, nn.MaxPool2d(2)) if pool else g,
        "W": nn.Sequential(out, nn.BatchNorm2d(channels)) if norm else out,
        "theta": conv(channels, hidden),
        "phi": nn.Sequential(phi, nn.MaxPool2d(2)) if pool else phi,
    }
    return NonLocal(("theta", "phi", "g"), layers, ("W",))


def nl_mmcv(channels: int, pool: bool, norm: bool) -> nn.Module:
    hidden = channels // 2
    g = Sequence(conv=conv(channels, hidden))
    phi = Sequence(conv=conv(channels, hidden))
    out = Sequence(conv=conv(hidden, channels, bias=not norm))
    if norm:
        out.add_module("bn", nn.BatchNorm2d(channels))
    layers = {
        "g": nn.Sequential(g, nn.MaxPool2d(2)) if pool else g,
        "conv_out": out,
        "theta": Sequence(conv=conv(channels, hidden)),
        "phi": nn.Sequential(phi, nn.MaxPool2d(2)) if pool else phi,
    }
    return NonLocal(("theta", "phi", "g"), layers, ("conv_out",), scale=hidden**-0.5)


def nl_slowfast(channels: int, pool: bool, norm: str) -> nn.Module:
    hidden = channels // 2
    layers = {
        "conv_theta": nn.Conv3d(channels, hidden, 1),
        "conv_phi": nn.Conv3d(channels, hidden, 1),
        "conv_g": nn.Conv3d(channels, hidden, 1),
        "conv_out": nn.Conv3d(hidden, channels, 1),
        norm: nn.BatchNorm3d(channels),
    }
    names, scale = ("conv_theta", "conv_phi", "conv_g"), hidden**-0.5
    return NonLocal(names, layers, ("conv_out", norm), scale, pool, three_dimensional=True)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Projections(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = (
            conv(channels, channels // 8),
            conv(channels, channels // 8),
        )
        self.value_conv = conv(channels, channels)


class PositionAttention(Projections):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.query_conv, self.key_conv, self.value_conv))
        return x + self.gamma * (v @ (q.mT @ k).softmax(2).mT).unflatten(2, x.shape[2:])


class ChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(2)
        energy = z @ z.mT
        weights = (energy.amax(2, keepdim=True) - energy).softmax(2)
        return x + self.gamma * (weights @ z).unflatten(2, x.shape[2:])


class Dual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sa, self.sc = PositionAttention(channels), ChannelAttention()

    def forward(self, x: Tensor) -> Tensor:
        return self.sa(x) + self.sc(x) - x


class CrissCross(Projections):
    """Twice, with a plain number or a module for the scale."""

    def __init__(self, channels: int, module: bool) -> None:
        super().__init__(channels)
        self.gamma = Scale() if module else nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            mixed = self.mix(x)
            x = x + (self.gamma(mixed) if isinstance(self.gamma, Scale) else self.gamma * mixed)
        return x

    def mix(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        column = torch.einsum("bchw,bcgw->bhwg", q, k)
        column = column.masked_fill(torch.eye(H, dtype=torch.bool)[:, None], -torch.inf)
        row = torch.einsum("bchw,bchg->bhwg", q, k)
        in_column, in_row = torch.cat([column, row], 3).softmax(3).split([H, W], 3)
        return torch.einsum("bcgw,bhwg->bchw", v, in_column) + torch.einsum(
            "bchg,bhwg->bchw", v, in_row
        )


class GCT(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("alpha", "gamma", "beta"):
            self.register_parameter(name, nn.Parameter(torch.ones(1, channels, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        e = (x.square().sum((2, 3), keepdim=True) + 1e-5).sqrt() * self.alpha
        norm = self.gamma / (e.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return x * (1 + (e * norm + self.beta).tanh())


class SGE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 64, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, 64, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        z = x.reshape(B * 64, -1, H, W)
        t = (z * z.mean((2, 3), keepdim=True)).sum(1).flatten(1)
        t = t - t.mean(1, keepdim=True)
        t = (t / (t.std(1, keepdim=True) + 1e-5)).reshape(B, 64, H, W)
        gate = (t * self.weight + self.bias).reshape(B * 64, 1, H, W)
        return (z * gate.sigmoid()).reshape(x.shape)


class SRM(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cfc = nn.Parameter(torch.zeros(channels, 2))
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        std = (x.var((2, 3)) + 1e-5).sqrt()
        z = (torch.stack([x.mean((2, 3)), std], 2) * self.cfc).sum(2)
        return x * self.bn(z[:, :, None, None]).sigmoid()


class Filters(nn.Module):
    """The same filter for each channel of a group; the values matter, not what they are."""

    def __init__(self, channels: int, groups: int, size: int) -> None:
        super().__init__()
        filters = torch.randn(groups, size, size, generator=torch.Generator().manual_seed(3))
        self.register_buffer("weight", filters.repeat_interleave(channels // groups, 0) / size)

    def forward(self, x: Tensor) -> Tensor:
        return (F.adaptive_avg_pool2d(x, self.weight.shape[1:]) * self.weight).sum((2, 3))


class Fca(SELinear):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.dct_layer = Filters(channels, groups=16, size=7)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(self.dct_layer(x))[:, :, None, None]


class Staged(nn.Module):
    """Attention after each stage but the last, as children of the network."""

    def __init__(self, build: Callable[[int], nn.Module]) -> None:
        super().__init__()
        net = Net()
        self.conv1, self.bn1, self.bam1 = net.conv1, net.bn1, build(64)
        self.layer1, self.layer2, self.fc = net.layer1, net.layer2, net.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.bam1(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.fc(self.layer2(x).mean((2, 3)))


def among_blocks(net: Net, stage: str, position: int, module: nn.Module) -> Net:
    """The network with a module between two blocks, which shifts the numbers after it."""
    blocks = list(getattr(net, stage))
    blocks.insert(position, module)
    setattr(net, stage, nn.Sequential(*blocks))
    return net


class FlatBlock(nn.Module):
    """A block of MobileNetV2, its layers in one sequence, attention after the depthwise ones."""

    def __init__(self, block: Any, build: Callable[[int], nn.Module]) -> None:
        super().__init__()
        nested = [list(m) if isinstance(m, nn.Sequential) else [m] for m in block.conv]
        layers = [layer for group in nested for layer in group]
        if len(layers) == 8:
            layers.insert(6, build(layers[0].out_channels))
        self.conv, self.shortcut = nn.Sequential(*layers), block.use_res_connect

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class FlatMobileNet(nn.Module):
    def __init__(self, net: Any, build: Callable[[int], nn.Module]) -> None:
        super().__init__()
        first, *blocks, last = net.features
        flat = [FlatBlock(block, build) for block in blocks]
        self.features, self.conv = nn.Sequential(first, *flat), last
        self.classifier = net.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv(self.features(x)).mean((2, 3)))


class GCTBlock(Block):
    """With attention before each convolution, that of the projection within its sequence."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride, lambda channels: {})
        self.gct1, self.gct2 = GCT(inputs), GCT(outputs)
        if self.downsample is not None:
            self.downsample = nn.Sequential(GCT(inputs), *self.downsample)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(self.gct1(x))).relu()
        y = self.bn2(self.conv2(self.gct2(y)))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def before_each_convolution() -> Net:
    net = Net()
    net.layer1 = nn.Sequential(GCTBlock(64, 64, 1), GCTBlock(64, 64, 1))
    net.layer2 = nn.Sequential(GCTBlock(64, 128, 2), GCTBlock(128, 128, 1))
    return net
