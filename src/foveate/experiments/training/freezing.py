"""Training what was added before the host that was there."""

from collections.abc import Iterable, Iterator

from torch import nn

from foveate.errors import InvalidValueError


def freeze(network: nn.Module, learning: Iterable[nn.Parameter]) -> None:
    """Let only the given parameters receive gradients."""
    chosen = {id(parameter) for parameter in learning}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def train_mode(network: nn.Module, *, freezing: bool = False) -> None:
    """Training mode, but frozen normalisation layers keep their statistics.

    Args:
        network: Its parameters say by ``requires_grad`` what is frozen.
        freezing: Take layers without weights for frozen too, unless all around them learns.
    """
    network.train()
    for layer, learns in _norms(network, not freezing):
        if not learns:
            layer.eval()


def find_classifier(
    network: nn.Module, num_classes: int, *, besides: Iterable[nn.Parameter] = ()
) -> nn.Module:
    """The last layer with one output a class whose weight is none of ``besides``.

    Raises:
        ValueError: If there is none.
    """
    others = {id(parameter) for parameter in besides}
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and module.weight.shape[0] == num_classes
        and id(module.weight) not in others
    ]
    if not layers:
        raise InvalidValueError(
            f"the host has no linear or convolution layer with {num_classes} outputs, "
            "so freeze_epochs cannot tell its classifier"
        )
    return layers[-1]


def _norms(module: nn.Module, learns: bool) -> Iterator[tuple[nn.Module, bool]]:
    """The normalisation layers, and whether they learn."""
    own = [weight.requires_grad for weight in module.parameters()]
    if own:
        learns = all(own) or (learns and any(own))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        yield module, learns
    for child in module.children():
        yield from _norms(child, learns)
