"""Weights whose batch norms were folded away: training mode must know what evaluation knows."""

import torch
from torch import nn

from foveate.hosts.folded import give_statistics, is_folded


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    )


def folded(images: torch.Tensor) -> nn.Sequential:
    """A network with shifts that suit its convolutions, as a folded one has."""
    model = network()
    with torch.no_grad():
        for index in (0, 3):
            mean = model[: index + 1].eval()(images).mean((0, 2, 3))
            model[index + 1].bias.copy_(1 - 20 * mean)
            model[index + 1].weight.fill_(20.0)
    return model


def test_evaluation_stays_and_training_agrees_with_it() -> None:
    images = torch.rand(64, 3, 12, 12)
    model = folded(images).double()
    images = images.double()
    assert is_folded(model)
    with torch.no_grad():
        wanted = model.eval()(images)
        trained_before = model.train()(images)
    model = folded(images.float()).double()
    give_statistics(model, images)
    assert not is_folded(model)
    assert not any(module._forward_pre_hooks for module in model)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), wanted)
        torch.testing.assert_close(model.train()(images), wanted)
    assert (trained_before - wanted).abs().max() > 0.1


def test_a_trained_network_is_not_taken_for_a_folded_one() -> None:
    model = network()
    assert is_folded(model)  # as built, it has seen no image
    model.train()(torch.rand(4, 3, 12, 12))
    assert not is_folded(model)
    assert not is_folded(nn.Conv2d(3, 3, 1))
