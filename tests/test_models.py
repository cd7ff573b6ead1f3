"""Named models: their names, parts, costs as published, pretrained hosts, and shortcuts."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import foveate
from foveate import models
from foveate.cost import count_flops, count_parameters
from foveate.insertion.hooks import attachments

HOSTS = {
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "resnext50_32x4d": (25_028_904, 4.230),
    "mobilenet_v2": (3_504_872, 0.301),
}
# Parameters to the unit, and multiply-adds in 10^9 with the stride on the 3x3 and on the 1x1.
COUNTS = {
    "se_resnet18": (11_778_592, 1.814, None),
    "se_resnet34": (21_958_868, 3.664, None),
    "se_resnet50": (28_088_024, 4.092, 3.860),
    "se_resnet101": (49_326_872, 7.806, 7.575),
    "cbam_resnet18": (11_779_392, 1.815, None),
    "cbam_resnet34": (21_960_468, 3.665, None),
    "cbam_resnet50": (28_089_624, 4.096, 3.864),
    "cbam_resnet101": (49_330_172, 7.813, 7.581),
    "bam_resnet50": (25_915_099, 4.171, 3.940),
    "eca_resnet18": (11_689_512 + 44, 1.814, None),
    "eca_resnet34": (21_797_672 + 72, 3.664, None),
    "eca_resnet50": (25_557_032 + 80, 4.089, None),
    "eca_mobilenet_v2": (3_504_903, 0.301, None),
    "coord_mobilenet_v2": (3_950_648, 0.307, None),
    "triplet_resnet18": (11_691_912, 1.821, None),
    "triplet_resnet50": (25_561_832, 4.136, None),
    "srm_resnet50": (25_617_448, 4.089, None),
    "gc_resnet50": (28_078_773, None, None),
    "nl_resnet50": (32_915_496, None, None),
    "gct_resnet50": (25_557_032 + 67_593, None, None),
    "fca_resnet50": (28_071_976, 4.092, None),
    "aa_resnet50": (None, None, None),
    "botnet50": (20_852_008, None, None),
    "sknet50": (27_479_784, 4.463, None),
}


def build(name: str, **options: object) -> nn.Module:
    """A model without memory for its weights."""
    with torch.device("meta"):
        return models.create(name, **options).eval()


def giga(model: nn.Module) -> float:
    with torch.device("meta"):
        return count_flops(model, torch.empty(1, 3, 224, 224)) / 1e9


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_are_those_of_the_papers(name: str) -> None:
    with torch.device("meta"):
        host = torchvision.models.get_model(name).eval()
    parameters, flops = HOSTS[name]
    assert count_parameters(host) == parameters
    assert giga(host) == pytest.approx(flops, rel=0.005)


@pytest.mark.parametrize("name", COUNTS)
def test_costs_are_those_of_the_papers(name: str) -> None:
    parameters, flops, flops_v1 = COUNTS[name]
    model = build(name)
    if parameters is not None:
        assert count_parameters(model) == parameters
    if flops is not None:
        assert giga(model) == pytest.approx(flops, rel=0.005)
    if flops_v1 is not None:
        early = build(name, stride_in_1x1=True)
        assert giga(early) == pytest.approx(flops_v1, rel=0.005)
        assert count_parameters(early) == count_parameters(model)


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("se_resnet18", {"bias": False}, 11_776_552),
        ("se_resnet34", {"bias": False}, 21_954_856),
        ("se_resnet50", {"bias": False}, 28_071_976),
        ("se_resnet101", {"bias": False}, 49_292_328),
        ("se_resnet50", {"reduction": 4}, 35_635_688),
        ("se_resnet50", {"reduction": 32}, 26_830_080),
    ],
)
def test_options_are_those_of_the_mechanism(name: str, options: dict, parameters: int) -> None:
    assert count_parameters(build(name, **options)) == parameters


def test_every_name_is_a_mechanism_in_a_host() -> None:
    names = models.list_models()
    assert len(names) == len(set(names))
    assert {"se_resnet18", "criss_cross_wide_resnet50_2", "sknet50", "mobilevit_xxs"} <= set(names)
    assert not any(name.startswith("static_") for name in names)
    assert models.list_models("bam_*") == sorted(f"bam_{host}" for host in models.recipes.HOSTS)


# Depth changes the number of sites and not their kind: each mechanism between bottlenecks, and
# between basic or inverted blocks.
_KEYS = foveate.list_mechanisms()
_HOSTED = {f"{key}_{('resnet18', 'mobilenet_v2')[k % 2]}" for k, key in enumerate(_KEYS)}
SHALLOW = [
    name
    for name in models.list_models()
    if name in _HOSTED or name.endswith("_resnet50") or not name.endswith(models.recipes.HOSTS)
]


@pytest.mark.filterwarnings("error")  # not one place refused
@pytest.mark.parametrize("name", SHALLOW)
def test_every_model_is_built_and_says_where_its_attention_is(name: str) -> None:
    model = build(name, num_classes=7)
    with torch.device("meta"):
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 7)
    thin = ("mobilevit_s", "mobilevit_xs", "mobilevit_xxs", "resnest50")
    assert (name in thin) == (not list(attachments(model)))


@pytest.mark.parametrize("name", ["cbam_resnet18", "se_mobilenet_v2", "bot_resnet18"])
def test_a_pretrained_host_is_not_disturbed(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    host = torchvision.models.get_model(name.partition("_")[2]).eval()
    torch.save(host.state_dict(), tmp_path / "host.pth")
    model = models.create(name, pretrained_host=tmp_path / "host.pth").eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(x), host(x))
    assert {type(module).__name__ for module in model.modules()} > {"Conv2d"}
    other = models.create(name, num_classes=10, pretrained_host=tmp_path / "host.pth")
    assert other.eval()(x).shape == (1, 10)
    assert torch.equal(next(other.parameters()), next(host.parameters()))


def test_tutorials_names_are_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    host = torchvision.models.resnet50()
    weights = host.state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.WeightsEnum.get_state_dict", lambda *args, **kwargs: weights
    )
    model = models.resnet50_cbam(pretrained=True, num_classes=10)
    assert model.fc.weight.shape == (10, 2048)
    attention = model.layer1[0].bn3.attention
    assert isinstance(attention, foveate.mechanisms.CBAM)
    assert attention.strength == 0
    model.fc = host.fc
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), host.eval()(x))


def test_shortcuts_take_either_order() -> None:
    with torch.device("meta"):
        for name in ("se_resnet18", "resnet18_se", "mobilenet_v2_criss_cross"):
            assert getattr(models, name)(num_classes=3)(torch.empty(1, 3, 64, 64)).shape == (1, 3)
    assert "cbam_resnet50" in dir(models)
    with pytest.raises(AttributeError, match="no attribute 'resnet50_nothing'"):
        models.resnet50_nothing  # noqa: B018
    with pytest.raises(TypeError, match="either pretrained= or pretrained_host="):
        models.resnet18_se(pretrained=True, pretrained_host="x")


def test_weights_that_cannot_be_fetched_are_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", fail)
    with pytest.raises(ValueError, match=r"weights of 'resnet18' cannot be fetched \(no network\)"):
        models.create("se_resnet18", pretrained_host=True)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cbm_resnet50", {}, ValueError, "did you mean 'cbam_resnet50'"),
        ("cbam_resnet50", {"num_classes": 0}, ValueError, "num_classes=0"),
        ("cbam_resnet50", {"ratio": 2}, TypeError, "unknown option of cbam 'ratio'"),
        ("cbam_resnet50", {"init": "zero"}, ValueError, "unknown init 'zero'"),
        ("se_resnet18", {"stride_in_1x1": True}, ValueError, "needs a host of bottlenecks"),
        ("resnest50", {"reduction": 2}, TypeError, "takes no options"),
    ],
)
def test_bad_arguments(name: str, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build(name, **options)


def test_selective_kernels_follow_no_normalisation() -> None:
    model = build("sknet50")
    assert all(isinstance(block.bn2, nn.Identity) for block in model.layer1)
    assert isinstance(model.layer1[0].conv2, foveate.get_mechanism("sk"))
    gentle = build("sknet50", init="identity")
    assert not isinstance(gentle.layer1[0].bn2, nn.Identity)


def test_non_local_blocks_follow_every_second_block_of_two_stages() -> None:
    model = build("nl_resnet50")
    owners = {id(owner) for owner, _, _ in attachments(model)}
    names = [name for name, module in model.named_modules() if id(module) in owners]
    assert names == ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]
