"""Laws of insertion over hosts that nobody prepared, places and mechanisms."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import foveate
from cases import fitting
from foveate.errors import InvalidValueError
from foveate.insertion import PLACES, make_plan
from handmade import HANDMADE, image
from zoo import ZOO, batchnorm_buffers, tensors

ZOO_PLACES = ("residual", "post", "stage", "conv3x3", "head", "pre")
# Every mechanism meets several hosts and places; the full product holds on the small hosts.
_CYCLE = dict(
    zip(
        itertools.product(ZOO, ZOO_PLACES),
        itertools.cycle(foveate.list_mechanisms()),
        strict=False,
    )
)


def put(model: nn.Module, *args: object, **options: object) -> foveate.insertion.Handle | None:
    """``insert``; None where the host has no such place, which another test looks at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some places refused, others taken
        try:
            return foveate.insert(model, *args, **options)
        except InvalidValueError:
            return None


def run(model: nn.Module, args: tuple, *, training: bool) -> list[Tensor]:
    model.train(training)
    torch.manual_seed(1)  # the same dropout masks and skipped blocks each time
    with torch.no_grad():
        return tensors(model(*args))


def state(model: nn.Module) -> tuple:
    """All that insertion could leave behind: module tree, hooks, attributes, keys."""
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        [
            (len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
            for m in model.modules()
        ],
        model.state_dict(),
    )


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Bare:
    """What a host computes and holds before anything is inserted."""

    def __init__(self, model: nn.Module, args: tuple) -> None:
        *rest, values = state(model)
        self.args, self.state = args, (*rest, copy.deepcopy(values))
        self.evaluated = run(model, args, training=False)
        self.trained = run(model, args, training=True)
        self.buffers = batchnorm_buffers(model)
        model.load_state_dict(self.state[2])


def check_host(model: nn.Module, bare: Bare, key: str, where: str) -> bool:
    """Insert, compare with the bare host in both modes, remove; False without such a place."""
    before, args = bare.state, bare.args
    model.train()
    handle = put(model, key, where=where, example=args, **fitting(key, 16))
    if handle is None:
        assert_state(state(model), before)
        return False
    assert all(module.training for module in handle.modules.values())

    added = [name for name in model.state_dict() if name not in before[2]]
    assert [name for name in model.state_dict() if name not in added] == list(before[2])
    assert all(".attention" in f".{name}" for name in added)
    loaded = model.load_state_dict(before[2], strict=False)
    assert set(loaded.missing_keys) <= set(added)
    assert not loaded.unexpected_keys

    assert_same(run(model, args, training=False), bare.evaluated)
    assert_same(run(model, args, training=True), bare.trained)
    after = batchnorm_buffers(model)
    assert all(torch.equal(after[name], value) for name, value in bare.buffers.items())

    assert foveate.remove(model) is model
    model.load_state_dict(before[2])
    assert_state(state(model), before)
    assert_same(run(model, args, training=False), bare.evaluated)
    return True


def assert_state(now: tuple, before: tuple) -> None:
    assert now[:2] == before[:2]
    assert list(now[2]) == list(before[2])
    assert all(torch.equal(now[2][name], value) for name, value in before[2].items())


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    torch.manual_seed(0)
    model = ZOO[name]()
    bare = Bare(model, (torch.rand(2, 3, 64, 32),))
    taken = [where for where in ZOO_PLACES if check_host(model, bare, _CYCLE[name, where], where)]
    assert {"stage", "conv3x3", "pre"} <= set(taken)
    assert "residual" in taken or name == "squeezenet1_1"  # it has neither additions nor norms


@pytest.mark.parametrize(
    ("name", "key", "where"),
    [
        ("resnet18", "cbam", "residual"),
        ("mobilenet_v2", "coord", "post"),
        ("densenet121", "se", "stage"),
        ("timm:convnext_atto", "nl", "stage"),
        ("timm:efficientnet_b0", "eca", "pre"),
    ],
)
def test_zoo_copied_compiled_and_exported(name: str, key: str, where: str) -> None:
    torch.manual_seed(0)
    model, x = ZOO[name](), torch.rand(2, 3, 64, 64)
    put(model, key, where=where, example=x, init="paper")
    model.eval()
    with torch.no_grad():
        want = model(x)
        assert torch.equal(copy.deepcopy(model)(x), want)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), want)
        dynamic = ({0: torch.export.Dim("batch")},)
        exported = torch.export.export(model, (x,), dynamic_shapes=dynamic).module()
        other = torch.rand(3, 3, 64, 64)
        torch.testing.assert_close(exported(other), model(other))


# A third of the places for each host and mechanism: each mechanism meets each place in three hosts.
_THIRDS = {
    (name, key): [place for p, place in enumerate(PLACES) if (h + k + p) % 3 == 0]
    for h, name in enumerate(HANDMADE)
    for k, key in enumerate(foveate.list_mechanisms())
}


@pytest.mark.parametrize(("name", "key"), _THIRDS)
def test_handmade(name: str, key: str) -> None:
    torch.manual_seed(0)
    model = HANDMADE[name]()
    bare, wanted = Bare(model, image(name)), _THIRDS[name, key]
    taken = {where for where in wanted if check_host(model, bare, key, where)}
    assert {"residual", "pre", "conv", "conv3x3"} & set(wanted) <= taken


@pytest.mark.parametrize(
    ("name", "where", "sites"),
    [
        ("resnet18", "residual", 8),
        ("resnet50", "residual", 16),
        ("resnet50", "conv", 53),  # the count that the paper of gated channel transformation gives
        ("resnet50", "shortcut", 16),
        ("resnet50", "inner", 16),
        ("mobilenet_v2", "inner", 10),
        ("mobilenet_v2", "residual", 10),
        ("vgg11_bn", "post", 8),
        ("densenet121", "stage", 5),
        ("efficientnet_b0", "residual", 9),
        ("convnext_tiny", "residual", 18),
        ("convnext_tiny", "stage", 4),  # between its blocks the channels lie last
        ("timm:convnext_atto", "head", 1),
        ("regnet_y_400mf", "residual", 16),
        ("googlenet", "conv", 57),
        ("fasterrcnn_resnet50_fpn.backbone", "residual", 16),  # not the sums of the pyramid
        ("deeplabv3_resnet50", "residual", 16),
        ("timm:resnetv2_50", "residual", 16),
        ("timm:res2net50_26w_4s", "residual", 16),  # not the sums inside the blocks
        ("timm:hrnet_w18_small", "residual", 23),  # not the fusion of resolutions
        ("timm:darknet53", "residual", 23),
        ("timm:dla34", "residual", 12),
    ],
)
def test_number_of_sites(name: str, where: str, sites: int) -> None:
    plan = make_plan(ZOO[name](), "se", where=where, example=torch.zeros(1, 3, 64, 64))
    assert len(plan.sites) == sites
    assert not plan.refused  # as many additions were seen as there are


def test_sites_of_resnet18() -> None:
    with torch.device("meta"):
        model = ZOO["resnet18"]()
    where = {
        place: make_plan(model, "se", where=place).sites[0]
        for place in ("residual", "pre", "post", "conv", "conv3x3", "inner", "shortcut")
    }
    assert {place: f"{site.side} {site.name}" for place, site in where.items()} == {
        "residual": "after layer1.0.bn2",
        "pre": "before layer1.0.conv1",
        "post": "after layer1.0",
        "conv": "before conv1",
        "conv3x3": "after layer1.0.conv2",
        "inner": "before layer1.0.conv2",  # its activation is one module for both convolutions
        "shortcut": "skip layer1.0",
    }
    stages = [site.name for site in make_plan(model, "se", where="stage").sites]
    assert stages == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert [site.name for site in make_plan(model, "se", where="head").sites] == ["layer4.1"]


# A skip and a replaced convolution have hooks of their own, tested with them.
@pytest.mark.parametrize("where", sorted(set(PLACES) - {"shortcut", "replace"}))
def test_attention_acts_where_the_plan_says(where: str) -> None:
    """A gate of a half at each planned site equals halving there by hand."""
    torch.manual_seed(0)
    model, args = HANDMADE["in_place"](), image("in_place")
    handle = put(model, "static", where=where, example=args, init="paper")
    assert handle is not None
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.zero_()  # a gate of sigmoid(0)
    gated = run(model, args, training=False)
    foveate.remove(model)
    modules = dict(model.named_modules())
    for site in handle.sites:
        if site.side == "after":
            modules[site.name].register_forward_hook(lambda module, args, output: output * 0.5)
        else:
            modules[site.name].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    halved = run(model, args, training=False)
    assert_same(gated, halved)
    for module in modules.values():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    assert not torch.equal(run(model, args, training=False)[0], halved[0])
