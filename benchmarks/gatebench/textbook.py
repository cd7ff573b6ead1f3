"""Gates in the form that tutorials print: one tensor operation after the other.

Each has the parameters of foveate's mechanism of the same key, in the same order, and its output.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SE(nn.Module):
    """Squeeze-and-excitation with linear layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, max(1, channels // 16)),
            nn.ReLU(inplace=True),
            nn.Linear(max(1, channels // 16), channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        B, C = x.shape[:2]
        gate = self.fc(self.pool(x).view(B, C)).view(B, C, 1, 1)
        return x * gate.expand_as(x)


class ECA(nn.Module):
    """Efficient channel attention with its one-dimensional convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = int(abs((math.log2(channels) + 1) / 2))
        width += 1 - width % 2
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pool(x).squeeze(-1).transpose(-1, -2)
        gate = self.conv(z).transpose(-1, -2).unsqueeze(-1).sigmoid()
        return x * gate.expand_as(x)


class SpatialGate(nn.Module):
    """The spatial half of CBAM."""

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        peak, _ = torch.max(x, dim=1, keepdim=True)
        pooled = torch.cat([peak, torch.mean(x, dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))


class CBAM(nn.Module):
    """Channel gate, then spatial gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.mean, self.peak = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)
        )
        self.spatial = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(self.mean(x)) + self.mlp(self.peak(x)))
        return self.spatial(x * gate)


class BAM(nn.Module):
    """Both branches of bottleneck attention, expanded and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        m = max(1, channels // 16)
        self.channel = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, m, 1), nn.BatchNorm2d(m)),
            *(nn.ReLU(), nn.Conv2d(m, channels, 1)),
        )
        self.spatial = nn.Sequential(
            *(nn.Conv2d(channels, m, 1), nn.BatchNorm2d(m), nn.ReLU()),
            *(nn.Conv2d(m, m, 3, padding=4, dilation=4), nn.BatchNorm2d(m), nn.ReLU()),
            *(nn.Conv2d(m, m, 3, padding=4, dilation=4), nn.BatchNorm2d(m), nn.ReLU()),
            nn.Conv2d(m, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.channel(x).expand_as(x) + self.spatial(x).expand_as(x)
        return x * (1 + torch.sigmoid(logits))


class Coord(nn.Module):
    """Coordinate attention with two adaptive poolings."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 32)
        self.rows, self.columns = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv = nn.Conv2d(channels, hidden, 1)
        self.bn = nn.BatchNorm2d(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, channels, 1)
        self.conv_w = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[2:]
        z = torch.cat([self.rows(x), self.columns(x).permute(0, 1, 3, 2)], dim=2)
        z = self.act(self.bn(self.conv(z)))
        rows, columns = torch.split(z, [H, W], dim=2)
        a_w = self.conv_w(columns.permute(0, 1, 3, 2)).sigmoid()
        return x * a_w * self.conv_h(rows).sigmoid()


class GC(nn.Module):
    """With the product and the ratio 8 of timm's ``gc``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 8)
        self.mask = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.LayerNorm([hidden, 1, 1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        attention = torch.softmax(self.mask(x).view(B, 1, H * W), dim=2).unsqueeze(-1)
        context = torch.matmul(x.reshape(B, C, H * W).unsqueeze(1), attention)  # (B, 1, C, 1)
        return x * torch.sigmoid(self.transform(context.view(B, C, 1, 1)))


class SimAM(nn.Module):
    """The parameter-free module, its deviations squared once."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2] * x.shape[3] - 1
        square = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        energy = square / (4 * (square.sum(dim=[2, 3], keepdim=True) / n + 1e-4)) + 0.5
        return x * torch.sigmoid(energy)


class Triplet(nn.Module):
    """Triplet attention by rotated copies of the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width, self.height, self.spatial = SpatialGate(), SpatialGate(), SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        width = self.width(x.permute(0, 2, 1, 3).contiguous()).permute(0, 2, 1, 3).contiguous()
        height = self.height(x.permute(0, 3, 2, 1).contiguous()).permute(0, 3, 2, 1).contiguous()
        return (width + height + self.spatial(x)) / 3


class SCSE(nn.Module):
    """Two gated maps and the larger of each pair of elements."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 2, 1), nn.ReLU()),
            *(nn.Conv2d(channels // 2, channels, 1), nn.Sigmoid()),
        )
        self.spatial = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return torch.max(x * self.channel(x), x * self.spatial(x))


class GCT(nn.Module):
    """Gated channel transformation with the squares of the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        length = (x.pow(2).sum((2, 3), keepdim=True) + 1e-5).pow(0.5) * self.alpha
        norm = self.gamma / (length.pow(2).mean(dim=1, keepdim=True) + 1e-5).pow(0.5)
        return x * (1 + torch.tanh(length * norm + self.beta))


class SRM(nn.Module):
    """Style-based recalibration with its own mean and deviation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cfc = nn.Parameter(torch.zeros(channels, 2))
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C = x.shape[:2]
        flat = x.reshape(B, C, -1)
        mean = flat.mean(dim=2, keepdim=True)
        deviation = (flat.var(dim=2, keepdim=True) + 1e-5).sqrt()
        z = (torch.cat((mean, deviation), dim=2) * self.cfc).sum(dim=2)[:, :, None, None]
        return x * torch.sigmoid(self.bn(z)).expand_as(x)


class SGE(nn.Module):
    """Spatial group-wise enhancement, groups folded into the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = math.gcd(64, channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.weight = nn.Parameter(torch.zeros(1, self.groups, 1, 1))
        self.bias = nn.Parameter(torch.ones(1, self.groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        x = x.reshape(B * self.groups, -1, H, W)
        t = (x * self.pool(x)).sum(dim=1).view(B * self.groups, -1)
        t = t - t.mean(dim=1, keepdim=True)
        t = (t / (t.std(dim=1, keepdim=True) + 1e-5)).view(B, self.groups, H, W)
        t = (t * self.weight + self.bias).view(B * self.groups, 1, H, W)
        return (x * torch.sigmoid(t)).view(B, C, H, W)


class ESE(nn.Module):
    """Effective squeeze-and-excitation with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * (F.relu6(self.fc(self.pool(x)) + 3) / 6)


FORMS: dict[str, type[nn.Module]] = {
    "se": SE,
    "ese": ESE,
    "eca": ECA,
    "cbam": CBAM,
    "spatial": SpatialGate,
    "bam": BAM,
    "coord": Coord,
    "gc": GC,
    "simam": SimAM,
    "triplet": Triplet,
    "gct": GCT,
    "srm": SRM,
    "sge": SGE,
    "scse": SCSE,
}
