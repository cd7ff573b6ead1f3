"""Deletion and insertion: a map that knows scores, one that does not does not."""

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn

import foveate
from foveate import explain
from foveate.errors import InvalidTypeError, InvalidValueError
from foveate.explain.faithful import _blurred

SIZE = (7, 9)


class Spot(nn.Module):
    """Looks at one pixel of the first channel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([8 * x[:, 0, 2, 6], torch.ones(len(x))], 1)


def images(count: int = 6) -> Tensor:
    torch.manual_seed(0)
    found = 0.2 * torch.randn(count, 3, *SIZE)
    found[:, 0, 2, 6] = 1 + torch.rand(count)
    return found


@torch.no_grad()
def literal(
    model: nn.Module, image: Tensor, found: Tensor, ties: Tensor, steps: int
) -> list[float]:
    """Deletion by sorting pixel by pixel, one image."""
    target = int(model(image[None]).argmax())
    at = [(y, x) for y in range(SIZE[0]) for x in range(SIZE[1])]
    h, w = found.shape
    order = sorted(
        at,
        key=lambda p: (-float(found[p[0] * h // SIZE[0], p[1] * w // SIZE[1]]), float(ties[p])),
    )
    curve, ground = [], _blurred(image[None])[0]
    for step in range(steps + 1):
        changed = image.clone()
        for y, x in order[: int(np.ceil(step / steps * len(at) - 1e-9))]:
            changed[:, y, x] = ground[:, y, x]
        curve.append(float(model(changed[None]).softmax(1)[0, target]))
    return curve


@pytest.mark.parametrize("coarse", [(7, 9), (3, 4), (1, 1)])
def test_deletion_is_the_literal_one(coarse: tuple[int, int]) -> None:
    torch.manual_seed(1)
    head = [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 3)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head).eval()
    given, found = images(3), torch.rand(3, *coarse)
    curves = explain.faithfulness(model, given, {"map": found}, steps=5, seed=4, batch_size=2)
    ties = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4))
    for i in range(3):
        expected = literal(model, given[i], found[i], ties[i], 5)
        np.testing.assert_allclose(curves.curves["deletion"]["map"][i], expected, atol=1e-6)


def test_the_ends_are_the_image_and_its_ground() -> None:
    given, model = images(), Spot()
    curves = explain.faithfulness(model, given, {"map": torch.rand(6, *SIZE)}).curves
    whole, blurred = (model(x).softmax(1)[:, 0] for x in (given, _blurred(given)))
    for found, first, last in (("deletion", whole, blurred), ("insertion", blurred, whole)):
        for curve in curves[found].values():
            torch.testing.assert_close(curve[:, 0], first)
            torch.testing.assert_close(curve[:, -1], last)


def test_who_knows_the_pixel_is_better_than_chance_and_who_hides_it_worse() -> None:
    oracle = torch.zeros(40, *SIZE)
    oracle[:, 2, 6] = 1
    found = explain.faithfulness(Spot(), images(40), {"oracle": oracle, "liar": -oracle}, steps=63)
    for kind in ("deletion", "insertion"):
        gains = found.gains(kind)
        assert list(gains) == ["oracle", "liar", "centre"]
        assert gains["oracle"][1] > 0 > gains["liar"][2]
    best, worst = (found.areas("deletion")[name].mean() for name in ("oracle", "liar"))
    assert best < found.areas("deletion")["random"].mean() < worst
    words = {t.get_text() for t in found.figure().findobj(Text) if isinstance(t, Text)}
    assert {"deletion (lower is better)", "insertion (higher is better)", "oracle"} <= words


def test_a_map_does_not_take_the_name_of_a_control() -> None:
    with pytest.raises(InvalidValueError, match="'random' is the name of a control"):
        explain.faithfulness(Spot(), images(), {"random": torch.rand(6, *SIZE)})


def test_blurring_keeps_the_mean_and_takes_the_details() -> None:
    flat = torch.full((1, 2, *SIZE), 0.7)
    torch.testing.assert_close(_blurred(flat), flat)
    sharp = torch.randn(1, 2, 32, 40)
    soft = _blurred(sharp)
    assert soft.shape == sharp.shape
    assert float(soft.std()) < 0.3 * float(sharp.std())


def test_gates_of_positions_are_those_that_were_recorded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), foveate.create("cbam", 8), foveate.create("coord", 8))
    given = images()
    gates = explain.spatial_gates(model, given)
    assert list(gates) == ["1 spatial"]
    with foveate.record(model) as record:
        model(given)
    torch.testing.assert_close(gates["1 spatial"], record["1"].maps["spatial"][:, 0])


def test_the_mean_of_layers_gives_each_the_same_weight() -> None:
    coarse, fine = torch.tensor([[[0.0, 10.0]]]), torch.tensor([[[0.2, 0.2, 0.2, 0.6]]])
    found = explain.mean_of_layers([coarse, fine], (1, 4))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.0, 0.5, 1.0]]]))


@pytest.mark.parametrize(
    ("found", "count", "options", "message"),
    [
        ((5, 7, 9), 6, {}, r"map 'map' must be \(6, h, w\), but is \(5, 7, 9\)"),
        ((6, 1, 7, 9), 6, {}, r"must be \(6, h, w\), but is \(6, 1, 7, 9\)"),
        ((1, 7, 9), 1, {}, "at least two images, but got 1"),
        ((6, 7, 9), 6, {"steps": 0}, "steps must be at least 1, but got steps=0"),
        ((6, 7, 9), 6, {"batch_size": 0.5}, "batch_size must be a whole number"),
    ],
)
def test_a_mistake_is_one_clear_error(found, count, options, message) -> None:
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        explain.faithfulness(Spot(), images(count), {"map": torch.rand(found)}, **options)
