"""Insertion of attention into a host, and its removal."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from foveate.errors import InvalidValueError
from foveate.insertion.hooks import attach, attachments, detach
from foveate.insertion.planning import At, Plan, Site, make_plan
from foveate.registry import create


@dataclass(frozen=True)
class Handle:
    """What one call of :func:`insert` added to a model."""

    plan: Plan
    modules: dict[str, nn.Module]
    """The mechanisms by their full names in the model, in the order of the sites."""
    _owners: tuple[tuple[nn.Module, str, str], ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the mechanisms are."""
        return self.plan.sites

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that were added."""
        return chain.from_iterable(module.parameters() for module in self.modules.values())

    def remove(self) -> None:
        """Take out what this call added, and only that. A second call does nothing."""
        for owner, name, side in self._owners:
            if getattr(owner, name, None) in self.modules.values():
                detach(owner, name, side)


def insert(
    model: nn.Module,
    mechanism: str,
    *,
    where: str | None = None,
    at: At | None = None,
    init: str = "identity",
    example: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> Handle:
    """Put attention into a network, in place.

    Each mechanism becomes a child named ``attention`` of the module it follows or precedes. No key
    of the host's state dict changes. With ``init="identity"`` the outputs stay the same to the last
    bit until training moves the new parameters. At the place ``"replace"`` that form joins the
    host's convolution as a branch, while ``init="paper"`` puts the mechanism in its stead, whose
    keys are then gone until :func:`remove` brings it back.

    Args:
        model: Any convolutional network.
        mechanism: A key of :func:`foveate.list_mechanisms`.
        where: A place, as in :func:`foveate.plan`; by default that of the mechanism's paper.
        at: Narrows the sites, as in :func:`foveate.plan`.
        init: ``"identity"`` or ``"paper"``.
        example: Input to find the sites with, as in :func:`foveate.plan`.
        optimizer: Takes the new parameters as a parameter group of its own.
        options: Keyword arguments of the mechanism.

    Returns:
        A handle to what was added.

    Raises:
        ValueError: If a name is unknown or no site can take the mechanism; the message says why.
            Nothing has been inserted then.
        TypeError: If the mechanism has no such option.

    Warns:
        UserWarning: If some of the places could not take it; the others have it.
    """
    plan = make_plan(model, mechanism, where=where, at=at, init=init, example=example, **options)
    refused = "; ".join(f"{r.name or 'the model'}: {r.reason}" for r in plan.refused[:4])
    if not plan.sites:
        raise InvalidValueError(
            f"'{mechanism}' cannot be put into {plan.host} at '{plan.where}': {refused}"
        )
    if plan.refused:
        warnings.warn(
            f"{len(plan.refused)} of {len(plan.refused) + len(plan.sites)} places refused "
            f"'{mechanism}': {refused}",
            stacklevel=2,
        )
    hosts = dict(model.named_modules())
    built = [_build(plan, site, hosts[site.name], model) for site in plan.sites]
    modules: dict[str, nn.Module] = {}
    owners = []
    for site, module in zip(plan.sites, built, strict=True):
        around, _, leaf = site.name.rpartition(".")
        place, target = (around, leaf) if site.side == "instead" else (site.name, site.target)
        name = attach(hosts[place], module, site.side, target, ends_block=site.ends_block)
        modules[f"{place}.{name}".lstrip(".")] = module
        owners.append((hosts[place], name, site.side))
    handle = Handle(plan, modules, tuple(owners))
    if optimizer is not None:
        optimizer.add_param_group({"params": list(handle.parameters())})
    return handle


def remove(model: nn.Module) -> nn.Module:
    """Take out all attention that :func:`insert` put into a model; returns the model."""
    for owner, name, side in list(attachments(model)):
        detach(owner, name, side)
    return model


def _build(plan: Plan, site: Site, owner: nn.Module, model: nn.Module) -> nn.Module:
    """The mechanism of a site, on the device, in the dtype and in the mode of its host."""
    tensors = chain(owner.parameters(), owner.buffers(), model.parameters(), model.buffers())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    device = like.device if like is not None else torch.get_default_device()
    with torch.inference_mode(False), torch.device(device):
        module = create(
            plan.mechanism, site.channels, init=plan.init, **site.options, **plan.options
        )
    if like is not None:
        module.to(like.dtype)
    return module.train(owner.training)
