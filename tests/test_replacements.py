"""What every stand-in for a spatial convolution keeps of it: size, channels and stride."""

import pytest
import torch
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from foveate.mechanisms.base import Replacement
from tolerances import assert_close

GEOMETRIES = [{"stride": 2}, {"dilation": 2}, {"out_channels": 2}, {"stride": 2, "out_channels": 2}]


def build(case: Case, channels: int, geometry: dict[str, int], init: str) -> Replacement:
    """The mechanism with that geometry, in which ``out_channels`` is a ratio."""
    ratio = {name: n * channels for name, n in geometry.items() if name == "out_channels"}
    return case.randomised(channels, init=init, **{**geometry, **ratio})


def accepts(case: Case, geometry: dict[str, int]) -> bool:
    try:
        build(case, case.fit(4), geometry, "paper")
    except ValueError as error:
        return not str(error).startswith(tuple(geometry))  # another error fails the tests
    return True


BUILDABLE = [
    pytest.param(case, geometry, id=f"{case.id}-{geometry}")
    for case in CASES
    if issubclass(foveate.get_mechanism(case.key), Replacement)
    for geometry in GEOMETRIES
    if accepts(case, geometry)
]
every_geometry = pytest.mark.parametrize(("case", "geometry"), BUILDABLE)


def random_map(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@every_geometry
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)], ids=str)
def test_equals_its_reference_in_every_geometry(
    case: Case, geometry: dict[str, int], size: tuple[int, int]
) -> None:
    channels = case.fit(4)
    module, x = build(case, channels, geometry, "paper"), random_map(2, channels, *size)
    kept = {name: getattr(module, name) for name in geometry}
    assert_close(module(x), case.reference(x, module.state_dict(), **case.options, **kept))


@every_geometry
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)], ids=str)
def test_has_the_shape_of_the_convolution_and_adds_to_it(
    case: Case, geometry: dict[str, int], size: tuple[int, int]
) -> None:
    channels = case.fit(4)
    module, x = build(case, channels, geometry, "identity"), random_map(2, channels, *size)
    conv = nn.Conv2d(
        channels,
        module.out_channels,
        3,
        stride=module.stride,
        padding=module.dilation,
        dilation=module.dilation,
        dtype=torch.float64,
    )
    host = conv(x)
    branch = module.branch(x)
    assert branch.shape == host.shape
    torch.testing.assert_close(module(x, host), host + module.scale * branch)
    module.scale.data.zero_()
    assert torch.equal(module(x, host), host)
