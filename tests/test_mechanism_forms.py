"""The two forms of each mechanism: where the paper's starts, and how the identity's grows."""

import copy

import pytest
import torch
from torch import Tensor, nn

import foveate
from cases import CASES, DEFAULTS, Case
from foveate.mechanisms.base import Gate, Mixer, Replacement
from foveate.mechanisms.norm import GateNorm


def random_map(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_identity_form_at_full_strength_is_the_papers(case: Case) -> None:
    channels = case.fit(16)
    identity, paper = (case.randomised(channels, init=init) for init in ("identity", "paper"))
    for name, parameter in identity.named_parameters():
        if name in ("strength", "scale"):
            nn.init.ones_(parameter)
    if hasattr(paper, "scale") and paper.scale is not None:
        nn.init.ones_(paper.scale)
    shared = {n: w for n, w in identity.state_dict().items() if n in paper.state_dict()}
    paper.load_state_dict(shared)
    x = random_map(2, channels, 6, 5).double()
    host = x if isinstance(paper, Replacement) else 0
    torch.testing.assert_close(identity(x) - host, paper(x))


@pytest.mark.parametrize("key", ["nl", "danet_position", "danet_channel", "danet", "criss_cross"])
def test_papers_that_start_as_the_identity(key: str) -> None:
    paper, identity = (foveate.create(key, 16, init=init) for init in ("paper", "identity"))
    assert paper.state_dict().keys() == identity.state_dict().keys()
    x = random_map(2, 16, 6, 5)
    assert torch.equal(paper(x), x)


def test_non_local_starts_as_the_identity_without_its_norm() -> None:
    x = random_map(2, 16, 6, 5)
    assert torch.equal(foveate.create("nl", 16, norm=False)(x), x)


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.id)
def test_identity_form_adds_at_most_one_number(case: Case) -> None:
    paper, identity = (case.create(case.fit(16), init=init) for init in ("paper", "identity"))
    added = identity.state_dict().keys() - paper.state_dict().keys()
    if isinstance(identity, Gate):
        assert added == (set() if identity.published_identity else {"strength"})
    elif isinstance(identity, Mixer):
        published = identity.published_scale is not None or identity.identity_scale is None
        assert added == (set() if published else {"scale"})
    else:
        assert isinstance(identity, Replacement)
        assert added == {"scale"}
    assert all(identity.get_parameter(name) == 0 for name in added)


@pytest.mark.parametrize("key", ["cbam", "spatial"])
def test_paper_form_of_cbam_starts_with_a_spatial_gate_of_one_half(key: str) -> None:
    torch.manual_seed(0)
    module, x = foveate.create(key, 16), random_map(2, 16, 6, 5)
    maps = module.maps(x)
    assert (maps["spatial"] == 0.5).all()
    assert all((p == 0).all() for name, p in module.named_parameters() if name.endswith("bias"))
    identity = foveate.create(key, 16, init="identity")
    assert identity.spatial_gate.bn.weight == 1


def test_spatial_convolution_starts_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    weights = [foveate.create("spatial", 4).spatial_gate.conv.weight for _ in range(40)]
    fan_out = 7 * 7
    torch.testing.assert_close(
        torch.stack(weights).std().item(), (2 / fan_out) ** 0.5, rtol=0.05, atol=0
    )


def test_non_local_starts_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    module = foveate.create("nl", 256)
    for name in ("theta", "phi", "g", "out"):
        conv = module.get_submodule(name)
        torch.testing.assert_close(conv.weight.std().item(), 0.01, rtol=0.05, atol=0)
        assert (conv.bias == 0).all()
    assert (module.bn.weight == 0).all()


def test_spatial_gate_of_the_identity_form_sees_what_the_channel_gate_left() -> None:
    case = next(case for case in CASES if case.id == "cbam")
    module, x = case.randomised(16, init="identity"), random_map(2, 16, 6, 5).double()
    gates = module.gate(x)
    seen = x * (1 + module.strength * (gates["channel"] - 1))
    torch.testing.assert_close(gates["spatial"], module.spatial_gate(seen))
    assert not torch.allclose(gates["spatial"], module.spatial_gate(x * gates["channel"]))


def test_parallel_sum_averages_with_convex_weights() -> None:
    module, x = foveate.create("cbam", 16, order="parallel_sum"), random_map(2, 16, 6, 5)
    gates = module.maps(x)
    torch.testing.assert_close(module(x), x * (gates["channel"] + gates["spatial"]) / 2)
    module.weight_logits.data.copy_(torch.tensor([40.0, -40.0]))
    torch.testing.assert_close(module(x), x * gates["channel"])


@pytest.mark.parametrize("shape", ["channel", "spatial", "both"])
def test_static_is_blind_to_its_input(shape: str) -> None:
    module = foveate.create("static", 16, shape=shape)
    one, other = (module.maps(torch.randn(2, 16, 6, 5)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_gates_multiply_their_input_by_their_maps() -> None:
    for case in CASES:
        module = case.randomised(case.fit(16), init="identity")
        x = random_map(2, case.fit(16), 6, 5).double()
        if type(module).forward is Gate.forward:
            expected = x
            for gate in module.maps(x).values():
                expected = expected * gate
            torch.testing.assert_close(module(x), expected)


def test_mixers_map_the_length_of_what_they_add() -> None:
    for case in CASES:
        module, x = case.randomised(case.fit(16)), random_map(2, case.fit(16), 6, 5).double()
        if isinstance(module, Mixer) and type(module).maps is Mixer.maps:
            lengths = (module(x) - x).square().sum(1, keepdim=True).sqrt()
            torch.testing.assert_close(module.maps(x)["added"], lengths)


class WideMixer(Mixer):
    """Gathers in a wider dtype than that of its input, as sums under autocast do."""

    def mix(self, x: Tensor) -> Tensor:
        return x.double()


@pytest.mark.parametrize("init", ["paper", "identity"])
def test_mixers_keep_the_dtype_of_their_input(init: str) -> None:
    assert WideMixer(3, init=init)(random_map(1, 3, 2, 2)).dtype == torch.float32


def test_danet_maps_are_those_of_its_branches() -> None:
    module = next(case for case in CASES if case.key == "danet").randomised(16)
    x = random_map(2, 16, 6, 5).double()
    maps = module.maps(x)
    for name in ("position", "channel"):
        lengths = module.get_submodule(name).added(x).norm(dim=1, keepdim=True)
        torch.testing.assert_close(maps[name], lengths)


def test_gate_norm_is_batch_norm_where_that_is_defined() -> None:
    norm = GateNorm(3, momentum=0.01)
    theirs = nn.BatchNorm2d(3, momentum=0.01)
    theirs.load_state_dict(norm.state_dict())
    for shape in [(2, 3, 1, 1), (1, 3, 2, 1), (4, 3, 5, 5)]:
        x = random_map(*shape)
        torch.testing.assert_close(norm(x), theirs(x))
    torch.testing.assert_close(norm.state_dict(), theirs.state_dict())


def test_gate_norm_of_one_value_takes_the_running_statistics() -> None:
    norm = GateNorm(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 0.25]))
    before = copy.deepcopy(norm.state_dict())
    y = norm(torch.full((1, 3, 1, 1), 2.0))
    torch.testing.assert_close(y.flatten(), torch.tensor([0.5, 0.0, -2.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("key", ["cbam", "spatial"])
def test_spatial_norm_has_the_momentum_of_the_official_code(key: str) -> None:
    module = foveate.create(key, 16)
    module(random_map(2, 16, 6, 5))
    bn = module.spatial_gate.bn
    assert (bn.momentum, bn.eps, bn.num_batches_tracked) == (0.01, 1e-5, 1)


def test_places_of_the_papers() -> None:
    places = {key: foveate.get_mechanism(key).place for key in foveate.list_mechanisms()}
    residual = {"se", "eca", "spatial", "cbam", "coord", "static"}
    head = {"mhsa", "danet", "danet_position", "danet_channel", "criss_cross"}
    assert {places[key] for key in residual} == {"residual"}
    assert {places[key] for key in head} == {"head"}
    assert places["nl"] == "post"
