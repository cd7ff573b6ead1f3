"""What is kept of the parts of a mechanism over many images, in little memory."""

from dataclasses import dataclass, field
from math import log2

import torch
from torch import Tensor

from foveate.errors import InvalidValueError

BINS = 64


@dataclass
class Tally:
    """Sums over images of one gate, or of what is added."""

    over_positions: bool = False
    """Whether the variance inside an image is that over its positions, channel by channel."""
    images: int = 0
    total: Tensor | None = None
    """Sum over the images, ``(1, ...)``."""
    squares: Tensor | None = None
    within: float = 0.0
    """Sum over the images of the variance inside each."""
    at_edge: int = 0
    count: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")
    histogram: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def update(self, part: Tensor, edge: float) -> None:
        """Take in a batch ``(B, ...)``.

        Raises:
            ValueError: If the map has another size than those before.
        """
        values = part.detach().double()
        if self.total is None:
            self.total = torch.zeros_like(values[:1])
            self.squares = torch.zeros_like(values[:1])
        assert self.squares is not None
        if values.shape[1:] != self.total.shape[1:]:
            raise InvalidValueError(
                "images must have one size, and a mechanism stand at one scale, but maps of "
                f"{tuple(self.total.shape[1:])} and {tuple(values.shape[1:])} were met"
            )
        self.images += len(values)
        self.total += values.sum(0, keepdim=True)
        self.squares += values.square().sum(0, keepdim=True)
        parts = values.flatten(2) if self.over_positions else values.flatten(1).unsqueeze(1)
        self.within += float(parts.var(2, correction=0).mean(1).sum())
        self.at_edge += int(((values < edge) | (values > 1 - edge)).sum())
        self.count += values.numel()
        self.lowest = min(self.lowest, float(values.min()))
        self.highest = max(self.highest, float(values.max()))
        self.histogram += torch.histc(values, BINS, 0, 1).cpu()

    @property
    def mean(self) -> Tensor:
        """Over the images, ``(1, ...)``."""
        assert self.total is not None
        return self.total / self.images

    @property
    def size(self) -> float:
        """Root of the mean square of all values."""
        assert self.squares is not None
        return float((self.squares / self.images).mean().sqrt())

    @property
    def bounded(self) -> bool:
        """Whether all values lie between 0 and 1."""
        return self.lowest >= 0 and self.highest <= 1

    @property
    def edge_share(self) -> float:
        """Share of the values that are as good as 0 or 1."""
        return self.at_edge / self.count

    @property
    def spread_within(self) -> float:
        """Standard deviation inside an image."""
        return (self.within / self.images) ** 0.5

    @property
    def spread_between(self) -> float:
        """Standard deviation over the images, of the same channel and position."""
        assert self.squares is not None
        variance = self.squares / self.images - self.mean.square()
        return float(variance.clamp(min=0).mean().sqrt())

    @property
    def entropy(self) -> float:
        """Of the histogram between 0 and 1, in bits: from 0, all in one bin, to 6."""
        share = self.histogram / self.histogram.sum().clamp(min=1)
        bits = float(-(share * share.clamp(min=1e-300).log2()).sum())
        return max(0.0, min(bits, log2(BINS)))
