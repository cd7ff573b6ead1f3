"""Every mechanism in every variant that the contract is held against, with its reference."""

import importlib
import pkgutil

import torch
from torch import Tensor, nn

import foveate
import references
from references.variant import Variant


class Case(Variant):
    """A variant that can be built."""

    def create(self, channels: int, **options: object) -> nn.Module:
        """The mechanism as a user gets it."""
        return foveate.create(self.key, channels, **{**self.options, **options})

    def randomised(self, channels: int, *, dtype: torch.dtype = torch.float64, **options: object):
        """The mechanism with random parameters and buffers, none of them near zero for sure."""
        module = self.create(channels, **options).to(torch.float64)
        generator = torch.Generator().manual_seed(channels)
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(random_weight(name, tensor, generator))
        return module.to(dtype).eval()


def random_weight(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Values of the size that training gives: fan-in scaled weights, positive variances."""
    value = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    if name.endswith("running_var") or like.ndim == 0:  # variances, strengths and scales
        return 0.5 + value.abs()
    if like.ndim > 1:
        return value * like[0].numel() ** -0.5
    return 1 + 0.3 * value if name.endswith("weight") else 0.3 * value


def _variants() -> list[Variant]:
    names = sorted(module.name for module in pkgutil.iter_modules(references.__path__))
    modules = [importlib.import_module(f"references.{name}") for name in names]
    return [variant for module in modules for variant in getattr(module, "VARIANTS", [])]


CASES = [Case(**vars(variant)) for variant in _variants()]

DEFAULTS = [case for case in CASES if not case.options]


def fitting(key: str, *channels: int) -> dict[str, object]:
    """Options of the first variant of a mechanism that takes these numbers of channels."""
    return next(
        c.options for c in CASES if c.key == key and not any(n % c.multiple for n in channels)
    )
