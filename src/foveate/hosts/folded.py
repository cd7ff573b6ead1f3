"""Batch norms that were folded into the convolutions before their weights were released."""

import torch
from torch import Tensor, nn

from foveate.modes import in_mode


def is_folded(model: nn.Module) -> bool:
    """Whether all batch norms have means of 0 and variances of 1, as no training leaves them.

    Such a network evaluates as it should. In training mode it would be normalised by statistics
    that its scales and shifts know nothing of, and lose what it has learned.
    """
    norms = _norms(model)
    return bool(norms) and all(
        bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())
        for norm in norms
        if norm.running_mean is not None and norm.running_var is not None
    )


@torch.no_grad()
def give_statistics(model: nn.Module, images: Tensor, *, within: nn.Module | None = None) -> None:
    """Give each batch norm the statistics of ``images``; the evaluated function stays the same.

    Args:
        model: The network.
        images: A normalised batch ``(B, C, H, W)``.
        within: The network to run, if the batch is for one that ``model`` is a part of.
    """
    whole = model if within is None else within

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        var, mean = torch.var_mean(args[0], (0, 2, 3), correction=0)
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_((mean - norm.running_mean) * gain)
        norm.weight.copy_(gain * (var + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)

    handles = [norm.register_forward_pre_hook(measure) for norm in _norms(model)]
    try:
        with in_mode(whole, training=False):
            whole(images)
    finally:
        for handle in handles:
            handle.remove()


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
