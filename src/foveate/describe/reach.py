"""Which positions of the input reach one position of the output: measured by its gradient."""

import functools

import torch
from torch import Tensor, nn

from foveate.describe.facts import built

CHANNELS, HEIGHT, WIDTH = 256, 49, 47
DRAWS = 2
"""A rectifier may close a path in one draw of the weights; rarely the same in two."""


@functools.cache
def receptive_field(key: str) -> str:
    """What one position of the output depends on, in words.

    Example:
        >>> receptive_field("se")
        'all positions'
    """
    reached = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for seed in range(DRAWS):
        reached |= _reached(key, torch.Generator().manual_seed(seed))
    return _in_words(reached)


def _reached(key: str, generator: torch.Generator) -> Tensor:
    module = built(key, CHANNELS, HEIGHT, WIDTH).eval()
    _randomise(module, generator)
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=generator).requires_grad_()
    centre = module(x)[0, :, HEIGHT // 2, WIDTH // 2]
    weights = torch.randn(centre.shape, generator=generator)
    (gradient,) = torch.autograd.grad(centre @ weights, x)
    return (gradient[0] != 0).any(0)


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Weights none of which is zero, and so small that no softmax rounds a share to zero."""
    for parameter in module.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            parameter.copy_(0.5 + values.abs())
        else:
            parameter.copy_(values / (2 * parameter[0].numel() ** 0.5))


def _in_words(reached: Tensor) -> str:
    if reached.all():
        return "all positions"
    height, width = _extent(reached.any(1)), _extent(reached.any(0))
    if (height, width) == (1, 1):
        return "itself alone"
    if height < HEIGHT and width < WIDTH:
        share = int(reached.sum()) / (height * width)
        return f"{'' if share == 1 else f'{share:.0%} of '}a window of {height} × {width}"
    rows, columns = reached.all(1), reached.all(0)
    if not torch.equal(reached, rows[:, None] | columns):
        return "positions all over the map"
    bands = [_band(rows, "row"), _band(columns, "column")]
    return " and ".join(band for band in bands if band)


def _extent(lines: Tensor) -> int:
    """From the first to the last."""
    return int(lines.nonzero().max() - lines.nonzero().min()) + 1


def _band(lines: Tensor, name: str) -> str:
    number = int(lines.sum())
    return "" if not number else f"its {name}" if number == 1 else f"{number} {name}s"
