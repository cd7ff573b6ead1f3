"""The network of a run: a host, and attention in it."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.experiments.config import RunConfig
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data
from foveate.hosts.by_name import build_host
from foveate.hosts.folded import give_statistics, is_folded
from foveate.insertion import insert
from foveate.insertion.handle import Handle


@dataclass(frozen=True)
class Network:
    """A host and the handle to its attention, None without attention."""

    module: nn.Module
    attention: Handle | None

    def added(self) -> list[nn.Parameter]:
        """The parameters of the attention."""
        return list(self.attention.parameters()) if self.attention else []


def build_network(config: RunConfig, data: Data) -> Network:
    """Build the network of a run on the CPU.

    The host's first weights depend on the seed alone, so they are the same for every mechanism.

    Raises:
        ValueError: If the host, the mechanism or its place cannot be had.
    """
    torch.manual_seed(derive_seed("host", config.seed))
    sizes = (len(data.classes), data.in_channels, data.image_size)
    host = build_bare(config, *sizes, pretrained=config.pretrained)
    if config.pretrained and is_folded(host):
        give_statistics(host, _some_images(data))
    torch.manual_seed(derive_seed("attention", config.seed))
    return Network(host, put_attention(host, config, data.in_channels, data.image_size))


def build_bare(
    config: RunConfig,
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    pretrained: str | None = None,
) -> nn.Module:
    """The host of a run; the errors of :func:`build_network`."""
    return build_host(
        config.host,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        pretrained=pretrained,
    )


def put_attention(
    host: nn.Module, config: RunConfig, in_channels: int, image_size: int
) -> Handle | None:
    """Insert the mechanism of a run, if it has one; the errors of :func:`build_network`."""
    chosen = config.mechanism
    if chosen is None:
        return None
    return insert(
        host,
        chosen.key,
        where=chosen.where,
        at=chosen.at,
        init=chosen.init or "identity",
        example=torch.zeros(1, in_channels, image_size, image_size),
        **chosen.options,
    )


def _some_images(data: Data) -> Tensor:
    """One batch of the training split, the same for every seed."""
    images, _ = next(batches(data.train, data, batch_size=256, shuffle=True))
    return images


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits that no other parts give.

    Example:
        >>> derive_seed("step", 0, 1) == derive_seed("step", 1, 0)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
