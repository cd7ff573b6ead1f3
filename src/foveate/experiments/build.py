"""The network of a run: a host, its head where the task has one, and attention in them."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.experiments.config import RunConfig
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load import Data
from foveate.experiments.tasks import get_task
from foveate.hosts.folded import give_statistics, is_folded
from foveate.insertion import insert
from foveate.insertion.handle import Handle
from foveate.insertion.places import NAMED_PLACES


@dataclass(frozen=True)
class Network:
    """A network and the handle to its attention, None without attention."""

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
    module = build_bare(config, *sizes, pretrained=config.pretrained)
    host = get_task(config.task).host(module)
    if config.pretrained and is_folded(host):
        give_statistics(host, _some_images(data), within=module)
    torch.manual_seed(derive_seed("attention", config.seed))
    return Network(module, put_attention(module, config, data.in_channels, data.image_size))


def build_bare(
    config: RunConfig,
    num_classes: int,
    in_channels: int,
    image_size: int,
    *,
    pretrained: str | None = None,
) -> nn.Module:
    """The network of a run without attention; the errors of :func:`build_network`."""
    return get_task(config.task).build(
        config,
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        pretrained=pretrained,
    )


def put_attention(
    module: nn.Module, config: RunConfig, in_channels: int, image_size: int
) -> Handle | None:
    """Insert the mechanism of a run, if it has one; the errors of :func:`build_network`.

    It goes into the host, or wherever the run names modules of the whole network.
    """
    chosen = config.mechanism
    if chosen is None:
        return None
    named = chosen.at is not None or chosen.where in NAMED_PLACES
    return insert(
        module if named else get_task(config.task).host(module),
        chosen.key,
        where=chosen.where,
        at=chosen.at,
        init=chosen.init or "identity",
        example=torch.zeros(1, in_channels, image_size, image_size),
        **chosen.options,
    )


def _some_images(data: Data) -> Tensor:
    """One batch of the training split, the same for every seed."""
    count = get_task(data.task).calibration_images
    images, _ = next(batches(data.train, data, batch_size=count, shuffle=True))
    return images


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits that no other parts give.

    Example:
        >>> derive_seed("step", 0, 1) == derive_seed("step", 1, 0)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
