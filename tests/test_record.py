"""A record has the gates that acted, and the network never knows."""

import copy
import os
from collections.abc import Iterator

import pytest
import timm
import torch
import torchvision
from timm.layers.cbam import CbamModule, LightCbamModule
from timm.layers.coord_attn import CoordAttn, EfficientLocalAttn, SimpleCoordAttn, StripAttn
from timm.layers.eca import CecaModule, EcaModule
from timm.layers.gather_excite import GatherExcite
from timm.layers.global_context import GlobalContext
from timm.layers.non_local_attn import BatNonLocalAttn, NonLocalAttn
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

import foveate
from cases import DEFAULTS, Case, fitting
from foveate.errors import InvalidTypeError, InvalidValueError
from foveate.explain.foreign import CLASSES
from foveate.mechanisms.base import Gate

SHAPE = (3, 64, 7, 5)
BY_KEY = {case.key: case for case in DEFAULTS}
every_mechanism = pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.key)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def host(case: Case, **options: object) -> nn.Sequential:
    """A network that changes its maps in place, before and after the mechanism."""
    module = case.create(64, **{**fitting(case.key, 64), **options})
    last = nn.ReLU(inplace=case.key not in ("bot", "external", "mixed_pooling"))  # keep it
    return nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(inplace=True), module, last)


def state_of(model: nn.Module) -> dict[str, object]:
    """All that a call could leave behind."""
    return {
        "tensors": {name: t.clone() for name, t in model.state_dict().items()},
        "gradients": {n: p.grad for n, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
            for m in model.modules()
        ],
    }


def assert_same(left: dict[str, object], right: dict[str, object]) -> None:
    tensors, others = left.pop("tensors"), right.pop("tensors")
    assert left == right
    assert all(torch.equal(t, others[name]) for name, t in tensors.items())


@every_mechanism
@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes(case: Case, training: bool) -> None:
    alone = host(case).train(training)
    model = copy.deepcopy(alone)
    before = state_of(model)
    x = torch.randn(3, 3, 7, 5)
    torch.manual_seed(1)
    with foveate.record(model) as record:
        y = model(x)
        if not training:
            y.sum().backward()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    expected = alone(x)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(y, expected)
    if not training:
        expected.sum().backward()
        before["gradients"] = {name: p.grad for name, p in model.named_parameters()}
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad)
    before["tensors"] = dict(alone.state_dict())
    assert_same(before, state_of(model))
    assert record["2"].key == case.key


@every_mechanism
def test_maps_are_those_of_the_input(case: Case) -> None:
    model = host(case).eval()
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 7, 5)
    with foveate.record(model) as record:
        model(x)
    given = model[:2](x).detach()
    expected = model[2].maps(given)
    assert record["2"].maps.keys() == expected.keys()
    for name, gate in record["2"].maps.items():
        torch.testing.assert_close(gate, expected[name].detach())
        assert not gate.requires_grad


PRODUCTS = [
    case
    for case in DEFAULTS
    if issubclass(foveate.get_mechanism(case.key), Gate)
    and case.key not in ("triplet", "scse", "gc", "sge")
]


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.key)
@pytest.mark.parametrize("init", ["paper", "identity"])
def test_gates_are_those_that_acted(case: Case, init: str) -> None:
    module = case.randomised(64, init=init)
    x = torch.randn(2, 64, 7, 5, dtype=torch.float64)
    with foveate.record(nn.Sequential(module)) as record:
        y = module(x)
    for gate in record["0"].maps.values():
        x = x * gate
    torch.testing.assert_close(x, y)


def test_training_records_what_acts_on_this_batch() -> None:
    model = host(BY_KEY["cbam"], init="paper").train()
    x = torch.randn(2, 3, 7, 5)
    given = model[:2](x).detach()
    with foveate.record(model) as record:
        output = model(x)
    gates = record["2"].maps
    torch.testing.assert_close(output, (given * gates["channel"] * gates["spatial"]).relu())


def test_dropped_features_are_the_same() -> None:
    class Dropping(Gate):
        def gate(self, x: Tensor) -> dict[str, Tensor]:
            return {"channel": nn.functional.dropout(torch.ones_like(x[:, :, :1, :1]))}

    model = nn.Sequential(Dropping(64))
    x = torch.rand(2, 64, 3, 3)
    with foveate.record(model) as record:
        y = model(x)
    assert torch.equal(y, x * record["0"].maps["channel"])
    assert record["0"].key == "Dropping"  # in no registry


def test_an_exception_leaves_no_hooks() -> None:
    model = host(BY_KEY["se"])
    before = state_of(model)
    with pytest.raises(KeyError), foveate.record(model):
        raise KeyError
    with pytest.raises(RuntimeError), foveate.record(model):
        model(torch.rand(1, 4, 3, 3))
    assert_same(before, state_of(model))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_under_autocast_and_no_grad(layout: torch.memory_format) -> None:
    model = host(BY_KEY["nl"]).eval().to(memory_format=layout)
    x = torch.rand(1, 3, 6, 4).to(memory_format=layout)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), foveate.record(model) as record:
        model(x)
    rows = record.affinity("2", [(0, 0), (5, 3)])
    assert rows.shape == (1, 1, 2, 6, 4)
    torch.testing.assert_close(rows.sum((3, 4)), torch.ones(1, 1, 2))
    assert record["2"].maps["added"].shape == (1, 1, 6, 4)


def test_batches_follow_one_another() -> None:
    model = host(BY_KEY["cbam"]).eval()
    x = torch.rand(5, 3, 6, 4)
    with foveate.record(model) as record:
        model(x[:2])
        model(x[2:])
    with foveate.record(model) as whole:
        model(x)
    for name, gate in record["2"].maps.items():
        torch.testing.assert_close(gate, whole["2"].maps[name])
    with foveate.record(model) as record:
        model(x)
        model(x[..., :3])
    assert [len(call["channel"]) for call in record["2"].calls] == [5, 5]
    with pytest.raises(InvalidValueError, match="maps of 2 sizes"):
        _ = record["2"].maps


def test_checkpoints_are_recorded_once() -> None:
    from torch.utils.checkpoint import checkpoint

    model = host(BY_KEY["se"])
    with foveate.record(model) as record:
        y = checkpoint(model, torch.rand(2, 3, 4, 4, requires_grad=True), use_reentrant=False)
        y.sum().backward()
    assert len(record["2"].calls) == 1


@pytest.fixture
def process_group() -> Iterator[None]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29763")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_under_ddp(process_group: None) -> None:
    model = nn.parallel.DistributedDataParallel(host(BY_KEY["cbam"]))
    with foveate.record(model) as record:
        model(torch.rand(2, 3, 6, 4)).sum().backward()
    assert list(record) == ["2"]
    assert record["2"].maps["channel"].shape == (2, 64, 1, 1)


def test_layers_are_found_by_their_block() -> None:
    model = torchvision.models.resnet18(num_classes=2).eval()
    foveate.insert(model, "se", where="residual")
    with foveate.record(model) as record:
        assert str(record)
        model(torch.rand(1, 3, 32, 32))
    assert len(record) == 8
    assert record["layer4.1"].name == "layer4.1.bn2.attention"
    assert record["layer4.1"] is record["layer4.1.bn2.attention"]
    assert "layer4.1.bn2.attention" in str(record)
    with pytest.raises(InvalidValueError, match="several layers"):
        record["layer4"]
    with pytest.raises(InvalidValueError, match=r"layer4\.1\.bn2\.attention"):
        record["layer4.1.bn2.atention"]


def test_what_cannot_be_recorded_is_said() -> None:
    with (
        pytest.raises(InvalidValueError, match="no attention in this Conv2d"),
        foveate.record(nn.Conv2d(3, 3, 1)),
    ):
        pass
    model = host(BY_KEY["se"])
    with pytest.raises(InvalidTypeError, match="compiled"), foveate.record(torch.compile(model)):
        pass
    with foveate.record(model) as record:
        pass
    with pytest.raises(InvalidValueError, match="was not called"):
        _ = record["2"].maps
    with pytest.raises(InvalidValueError, match=r"\(se\) has no affinity"):
        record.affinity("2", [(0, 0)])


@pytest.mark.parametrize("point", [(7, 0), (0, 5), (-1, 0)])
def test_points_outside_are_refused(point: tuple[int, int]) -> None:
    model = host(BY_KEY["nl"])
    with foveate.record(model) as record:
        with pytest.raises(InvalidValueError, match="was not called"):
            record.affinity("2", [(0, 0)])
        model(torch.rand(1, 3, 7, 5))
    with pytest.raises(InvalidValueError, match="7 rows and 5 columns, but got"):
        record.affinity("2", [(0, 0), point])


def name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


FOREIGN = {
    "torchvision.ops.misc.SqueezeExcitation": torchvision.ops.SqueezeExcitation(64, 4),
    "timm.models._efficientnet_blocks.SqueezeExcite": SqueezeExcite(64),
    name_of(GatherExcite): GatherExcite(64, use_mlp=False),
    **{
        name_of(cls): cls(64)
        for cls in (
            *(SEModule, EffectiveSEModule, EcaModule, CecaModule, CbamModule, LightCbamModule),
            *(CoordAttn, SimpleCoordAttn, EfficientLocalAttn, StripAttn),
        )
    },
}


@pytest.mark.parametrize("name", FOREIGN)
def test_gates_of_other_libraries(name: str) -> None:
    module = FOREIGN[name].double().eval()
    x = torch.randn(2, 64, 7, 5, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(64, 64, 1).double(), module)
    given = model[0](x).detach()
    with foveate.record(model) as record:
        y = model(x)
    (layer,) = record.values()
    assert layer.key in foveate.list_mechanisms()
    for gate in layer.maps.values():
        given = given * gate
    torch.testing.assert_close(given, y)


@pytest.mark.parametrize("fusion", ["scale", "add", "both"])
def test_global_context_of_timm(fusion: str) -> None:
    scale, add = fusion != "add", fusion != "scale"
    module = GlobalContext(64, fuse_scale=scale, fuse_add=add).double().eval()
    x = torch.randn(2, 64, 7, 5, dtype=torch.float64)
    with foveate.record(nn.Sequential(module)) as record:
        y = module(x)
    maps = record["0"].maps
    torch.testing.assert_close(maps["attention"].sum((2, 3)), torch.ones(2, 1).double())
    expected = x * maps["channel"] if scale else x
    torch.testing.assert_close(y, expected + maps["shift"] if add else expected)


def test_non_local_attention_of_timm() -> None:
    module = NonLocalAttn(16).double().eval()
    nn.init.normal_(module.norm.weight)
    x = torch.randn(2, 16, 5, 3, dtype=torch.float64)
    with foveate.record(nn.Sequential(module)) as record:
        y = module(x)
    torch.testing.assert_close(record["0"].maps["added"], (y - x).norm(dim=1, keepdim=True))
    rows = record.affinity("0", [(i // 3, i % 3) for i in range(15)]).flatten(3)[:, 0]
    values = module.g(x).flatten(2).mT
    mixed = (rows @ values).mT.unflatten(2, (5, 3))
    torch.testing.assert_close(x + module.norm(module.z(mixed)), y)


def test_every_known_class_exists_and_is_tried() -> None:
    tried = {
        *FOREIGN,
        *map(name_of, (GlobalContext, NonLocalAttn, BatNonLocalAttn)),
    }
    assert tried == set(CLASSES)


def test_named_networks_of_others_are_read() -> None:
    for model, count in (
        (torchvision.models.mobilenet_v3_small(), 9),
        (timm.create_model("efficientnet_b0"), 16),
        (timm.create_model("gcresnet50t"), 16),
    ):
        with foveate.record(model.eval()) as record:
            model(torch.rand(1, 3, 64, 64))
        assert len(record) == count
        assert all(layer.maps for layer in record.values())


def test_the_peak_of_a_record_is_small() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), foveate.create("cbam", 64)).eval()
    x = torch.rand(2, 3, 32, 32)
    with foveate.record(model) as record:
        model(x)
    kept = sum(t.nbytes for t in record["1"].maps.values())
    assert kept < 0.05 * 2 * 64 * 32 * 32 * 4
