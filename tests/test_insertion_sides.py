"""The sides on which attention acts beside the output of a module: skips, and convolutions."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn

import foveate
from foveate.cost import count_flops, count_parameters
from foveate.insertion import make_plan
from foveate.mechanisms.base import Replacement
from foveate.registry import _MECHANISMS, register_mechanism
from handmade import HANDMADE, Block


class Mean(Replacement):
    """A weighted mean of the input's channels at each position, in every output channel."""

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        init: str = "paper",
    ) -> None:
        super().__init__(
            channels, out_channels=out_channels, stride=stride, dilation=dilation, init=init
        )
        self.weight = nn.Parameter(torch.linspace(0.1, 0.9, channels))

    def branch(self, x: Tensor) -> Tensor:
        mean = torch.einsum("bchw,c->bhw", x[:, :, :: self.stride, :: self.stride], self.weight)
        return mean.unsqueeze(1).expand(-1, self.out_channels, -1, -1)


@pytest.fixture(autouse=True)
def mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.registry._MECHANISMS", dict(_MECHANISMS))
    register_mechanism("mean")(Mean)


def image() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


def randomise(handle: foveate.insertion.Handle) -> None:
    torch.manual_seed(1)
    for parameter in handle.parameters():
        nn.init.uniform_(parameter, 0.2, 0.8)


def resnet_with(block: object) -> Tensor:
    """What a fresh ResNet-18 makes of the image with its blocks computed by a function."""
    model = resnet18()
    x = model.maxpool(model.relu(model.bn1(model.conv1(image()))))
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for one in layer:
            x = block(one, x)
    return model.fc(model.avgpool(x).flatten(1))


# On the skip of a block


def test_attention_on_skips_leaves_the_branches_alone() -> None:
    model = resnet18()
    handle = foveate.insert(model, "static", where="shortcut", example=image(), init="paper")
    assert len(handle.sites) == 8
    for parameter in handle.parameters():
        nn.init.zeros_(parameter)  # a gate of one half

    def halved(block: nn.Module, x: Tensor) -> Tensor:
        branch = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
        skip = x if block.downsample is None else block.downsample(x)
        return (branch + skip / 2).relu()

    assert torch.equal(model(image()), resnet_with(halved))


def test_attention_on_skips_is_copied_compiled_exported_and_removed() -> None:
    model, x = resnet18(), image()
    bare, names = model(x), [name for name, _ in model.named_modules()]
    randomise(foveate.insert(model, "se", where="shortcut", example=x))
    want = model(x)
    assert not torch.equal(want, bare)
    torch._dynamo.reset()
    # Compiled it takes plain operations, not kernels.
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (x,), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(exported(x[:1].expand(3, -1, -1, -1))[:1], model(x[:1]))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), want)
    foveate.remove(model)
    assert torch.equal(model(x), bare)
    assert [name for name, _ in model.named_modules()] == names
    assert not any("foveate" in name for module in model.modules() for name in vars(module))


def test_residual_blocks_are_still_seen_with_attention_on_their_skips() -> None:
    model, x = resnet18(), image()
    foveate.insert(model, "se", where="shortcut", example=x)
    for where in ("residual", "pre", "shortcut"):
        assert len(make_plan(model, "se", where=where, example=x).sites) == 8


def test_two_mechanisms_share_a_skip() -> None:
    model, x = resnet18(), image()
    first = foveate.insert(model, "static", where="shortcut", example=x, init="paper")
    one = model(x)
    second = foveate.insert(model, "se", where="shortcut", at="layer1.0", example=x, init="paper")
    assert list(second.modules) == ["layer1.0.attention_2"]
    assert second.sites[0].label == "on the skip of layer1.0"
    assert not torch.equal(model(x), one)
    second.remove()
    assert torch.equal(model(x), one)
    first.remove()


def test_a_skip_that_no_module_holds_is_refused() -> None:
    model, x = HANDMADE["functional_add"](), torch.rand(1, 3, 16, 16)
    plan = make_plan(model, "se", where="shortcut", example=x)
    assert any("no module holds just that and the branch" in r.reason for r in plan.refused)


# In place of a convolution, or beside it


def test_the_identity_form_adds_to_the_convolution() -> None:
    model, x = resnet18(), image()
    bare = model(x)
    handle = foveate.insert(model, "mean", example=x)
    assert [site.side for site in handle.sites] == ["beside"] * 16
    assert torch.equal(model(x), bare)
    randomise(handle)
    conv = model.layer2[0].conv1
    y = torch.rand(2, 64, 8, 8)
    plain = nn.functional.conv2d(y, conv.weight, stride=2, padding=1)
    branch = conv.attention.branch(y) * conv.attention.scale
    assert conv.attention.out_channels == 128
    torch.testing.assert_close(conv(y), plain + branch)
    foveate.remove(model)
    assert torch.equal(model(x), bare)


def test_the_papers_form_takes_the_place_of_the_convolution() -> None:
    model, x = resnet18(), image()
    bare, keys = model(x), list(model.state_dict())
    handle = foveate.insert(model, "mean", init="paper", at="layer[34].*", example=x)
    assert [site.side for site in handle.sites] == ["instead"] * 8
    assert list(handle.modules)[:2] == ["layer3.0.conv1", "layer3.0.conv2"]
    assert "instead of layer3.0.conv1" in str(handle.plan)
    assert "layer3.0.conv1.scale" not in model.state_dict()
    assert model.layer3[0].conv1.weight.shape == (128,)
    assert model.layer3[0].conv1(torch.rand(1, 128, 9, 9)).shape == (1, 256, 5, 5)
    assert model(x).shape == bare.shape
    want = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), want)
        foveate.remove(twin)
        assert torch.equal(twin(x), bare)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), want)
    assert len(make_plan(model, "se", where="residual", example=x).sites) == 8
    handle.remove()
    handle.remove()
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), bare)


def test_a_replaced_convolution_comes_back_as_the_model_is_now() -> None:
    model, x = resnet18(), image()
    foveate.insert(model, "mean", init="paper", example=x)
    model.double().train()
    foveate.remove(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_the_plan_counts_what_is_there_afterwards(init: str) -> None:
    model, x = resnet18(), image()
    before = count_parameters(model), count_flops(model, x[:1])
    plan = make_plan(model, "mean", init=init, example=x)
    foveate.insert(model, "mean", init=init, example=x)
    after = count_parameters(model), count_flops(model, x[:1])
    assert (plan.parameters, plan.flops) == (after[0] - before[0], after[1] - before[1])
    assert plan.sites[4].options == {"out_channels": 128, "stride": 2, "dilation": 1}


def test_in_a_chain_all_spatial_convolutions_after_the_first_are_replaced() -> None:
    model = HANDMADE["sequential"]()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    plan = make_plan(model, "mean", example=torch.rand(1, 3, 16, 16))
    assert [site.name for site in plan.sites] == names[1:]


def test_convolutions_that_nothing_can_stand_in_for_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.uneven = nn.Conv2d(8, 8, 3, stride=(2, 1), padding=1)
            self.valid = nn.Conv2d(8, 8, 3)
            self.fit = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fit(self.valid(self.uneven(self.stem(x)))).mean((2, 3))

    plan = make_plan(Odd(), "mean", example=torch.rand(1, 3, 16, 16))
    assert [site.name for site in plan.sites] == ["fit"]
    assert [refusal.reason for refusal in plan.refused] == [
        "its stride or dilation differs between the directions",
        "its padding does not keep the size",
    ]


def test_only_replacements_can_replace() -> None:
    with pytest.raises(ValueError, match=r"SqueezeExcitation cannot stand in .* mean"):
        make_plan(resnet18(), "se", where="replace")


def test_elsewhere_a_replacement_is_a_branch_of_its_own() -> None:
    model, x = resnet18(), image()
    bare = model(x)
    randomise(foveate.insert(model, "mean", where="stage", example=x))
    assert not torch.equal(model(x), bare)
    attention, y = model.layer1[1].attention, torch.rand(1, 64, 5, 5)
    torch.testing.assert_close(attention(y), y + attention.scale * attention.branch(y))


# At modules by name


def test_attention_goes_after_and_before_modules_by_name() -> None:
    model, x = resnet18(), image()
    after = make_plan(model, "se", where="after", at="layer2.*.bn1", example=x)
    assert [f"{s.side} {s.name}" for s in after.sites] == [
        "after layer2.0.bn1",
        "after layer2.1.bn1",
    ]
    before = make_plan(model, "se", where="before", at=r"layer1\.\d+", example=x)
    assert [f"{s.side} {s.name}" for s in before.sites] == ["before layer1.0", "before layer1.1"]


@pytest.mark.parametrize("where", ["after", "before"])
def test_places_by_name_need_names(where: str) -> None:
    with pytest.raises(ValueError, match=f"where='{where}' needs at="):
        make_plan(resnet18(), "se", where=where)


def test_inner_attention_sees_what_the_last_convolution_of_a_bottleneck_sees() -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.resnet50(num_classes=5).eval(), image()
    plan = make_plan(model, "se", where="inner", example=x)
    assert {f"{site.side} {site.name}" for site in plan.sites} == {
        f"before {name}" for name, _ in model.named_modules() if name.endswith("conv3")
    }
    assert plan.sites[0].channels == 64


def test_a_block_with_an_activation_of_its_own_has_attention_after_it() -> None:
    class Bottleneck(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv2(self.relu(self.bn1(self.conv1(x)))) + x

    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Bottleneck(8))
    plan = make_plan(model, "se", where="inner", example=torch.rand(1, 3, 8, 8))
    assert [f"{site.side} {site.name}" for site in plan.sites] == ["after 1.relu"]
