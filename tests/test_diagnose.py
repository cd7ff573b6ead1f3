"""Each disease is found where it was planted, and nowhere else."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torchvision
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn

import foveate
from cases import CASES, Case
from foveate.errors import InvalidTypeError, InvalidValueError
from foveate.explain import SiteDiagnosis, Thresholds
from foveate.explain.bypass import effect
from foveate.mechanisms.base import Gate

CHANNELS = 16


class Faint(nn.Module):
    """Adds a millionth part of a branch."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-6 * self.branch(x)


def network(attention: nn.Module, around: Callable[[nn.Module], nn.Module] = nn.Sequential):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 4))
    return nn.Sequential(stem, nn.ReLU(), around(attention), *head).eval()


def lively(key: str, **options: object) -> nn.Module:
    """With weights so large that its gates differ from each other and between images."""
    torch.manual_seed(1)
    module = foveate.create(key, CHANNELS, **options)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=3 * parameter[0].numel() ** -0.5)
        elif name.endswith(("strength", "scale", "weight")):
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.3)
    return module


def batches(model: nn.Module, count: int = 96) -> list[tuple[Tensor, Tensor]]:
    """Images of many contrasts and colours, labelled by the network itself."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 12, 10, generator=generator)
    images = images * (0.5 + 2 * torch.rand(count, 1, 1, 1, generator=generator))
    images = images + torch.randn(count, 3, 1, 1, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return [(images[i : i + 32], labels[i : i + 32]) for i in range(0, count, 32)]


def examine(attention: nn.Module, **options: object) -> SiteDiagnosis:
    model = network(attention)
    return foveate.diagnose(model, batches(model), **options).sites[0]


def found(site: SiteDiagnosis) -> set[str]:
    return {check.disease for check in site.findings}


HEALTHY = {
    "se": {"reduction": 2},
    "cbam": {"reduction": 2},
    "coord": {"reduction": 2},
    "eca": {},
    "gc": {"reduction": 2},
    "nl": {},
    "mhsa": {},
    "danet_position": {},
    "sk": {"num_groups": 4},
}


@pytest.mark.parametrize("key", HEALTHY)
@pytest.mark.parametrize("init", ["paper", "identity"])
def test_healthy_attention_raises_no_alarm(key: str, init: str) -> None:
    site = examine(lively(key, init=init, **HEALTHY[key]))
    assert site.verdict == "healthy", site.findings
    assert site.key == key
    assert all(0 <= bits <= 6 for bits in site.entropy.values())


def se(change: Callable[[nn.Module], None]) -> nn.Module:
    module = lively("se", reduction=2)
    with torch.no_grad():
        change(module)
    return module


def saturate(module: nn.Module) -> None:
    module.fc2.bias += 1e3


def collapse(module: nn.Module) -> None:
    module.fc2.weight.copy_(module.fc2.weight[:1].expand_as(module.fc2.weight))
    module.fc2.bias.zero_()


def fix(module: nn.Module) -> None:
    module.fc1.weight.zero_()
    module.fc1.bias.fill_(1)


def kill(module: nn.Module) -> None:
    module.fc1.bias.fill_(-1e3)


@pytest.mark.parametrize(
    ("plant", "diseases"),
    [
        (saturate, {"saturated", "collapsed", "constant", "redundant", "starved"}),
        (collapse, {"collapsed"}),
        (fix, {"constant"}),
        (kill, {"dead", "constant"}),
    ],
)
def test_planted_diseases_are_found(plant: Callable[[nn.Module], None], diseases: set[str]) -> None:
    assert found(examine(se(plant))) == diseases


@pytest.mark.parametrize("key", ["se", "cbam", "nl", "sk"])
def test_fresh_attention_is_stuck(key: str) -> None:
    options = {"num_groups": 4} if key == "sk" else {}
    site = examine(foveate.create(key, CHANNELS, init="identity", **options))
    assert "stuck" in found(site)
    moved = examine(lively(key, init="identity", **options))
    assert "stuck" not in found(moved)


def test_faint_attention_is_starved_and_redundant() -> None:
    model = network(lively("se", reduction=2), Faint)
    (site,) = foveate.diagnose(model, batches(model)).sites
    assert found(site) == {"starved", "redundant"}


def test_attention_that_asks_nothing_is_collapsed() -> None:
    """Positions that do not ask for anything of their own all get the same."""
    module = lively("nl")
    with torch.no_grad():
        module.theta.weight.zero_()
    assert found(examine(module)) == {"collapsed"}


def test_attention_without_an_input_is_constant() -> None:
    assert "constant" in found(examine(lively("static", shape="both")))


def test_what_the_network_needs_is_lost_with_it() -> None:
    site = examine(lively("se", reduction=2))
    assert set(site.bypass) == {"mean", "shuffled", "identity"}
    for kind, lost in site.bypass.items():
        assert lost.loss > 0, kind
        assert lost.low > 0
        assert not lost.nothing


def test_what_does_nothing_loses_nothing() -> None:
    site = examine(se(fix))
    for kind in ("mean", "shuffled"):
        assert site.bypass[kind].loss == 0
        assert site.bypass[kind].nothing
        assert site.bypass[kind].high < 0.05
    assert site.bypass["identity"].low > 0


def test_thresholds_are_the_users() -> None:
    site = examine(lively("se", reduction=2), thresholds=Thresholds(constant=10.0, dead=0.0))
    assert found(site) == {"constant", "dead"}
    constant = next(check for check in site.findings if check.disease == "constant")
    assert constant.threshold == 10.0


def test_nothing_changes() -> None:
    model = network(lively("cbam", reduction=2)).train()
    model[0].eval()
    model[1].weight = None
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    foveate.diagnose(model, batches(copy.deepcopy(model).eval()))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_modules_of_others_are_diagnosed() -> None:
    module = SEModule(CHANNELS, rd_ratio=0.5)
    own = lively("se", reduction=2)
    with torch.no_grad():
        for one, other in zip(module.parameters(), own.parameters(), strict=True):
            one.copy_(other.view_as(one))
    theirs, ours = examine(module), examine(own)
    assert theirs.bypass == ours.bypass
    assert theirs.entropy == ours.entropy


def test_a_whole_network_is_told_in_a_table_and_in_json() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    foveate.insert(model, "se", where="residual", at="layer[34].*")
    data = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))]
    diagnosis = foveate.diagnose(model, data)
    assert diagnosis.sites[0].name == "layer3.0.bn2.attention"
    text = str(diagnosis)
    assert "4 images" in text
    assert "stuck: check that its parameters are in the optimizer" in text
    read = json.loads(json.dumps(diagnosis.to_dict()))
    assert "stuck" in read["sites"][0]["verdict"]
    assert read["sites"][0]["remedies"]["stuck"]
    assert read["thresholds"]["edge"] == 0.01


def test_a_metric_of_ones_own() -> None:
    model = network(lively("se", reduction=2))

    def margin(output: Tensor, labels: Tensor) -> Tensor:
        return output.gather(1, labels[:, None])[:, 0] - output.mean(1)

    site = foveate.diagnose(model, batches(model), metric=margin).sites[0]
    assert site.bypass["identity"].low < site.bypass["identity"].loss < site.bypass["identity"].high


@pytest.mark.parametrize("order", [(1.0, 1.0, -1.0), (0.0, 0.0, 0.0)])
def test_intervals_of_paired_answers(order: tuple[float, ...]) -> None:
    """Agresti and Min: half a case is added to each cell of the table."""
    losses = torch.tensor(order * 10)
    worse, better, n = int((losses > 0).sum()), int((losses < 0).sum()), len(losses)
    b, c = worse + 0.5, better + 0.5
    middle = (b - c) / (n + 2)
    half = 1.959964 * ((b + c - (b - c) ** 2 / (n + 2)) ** 0.5) / (n + 2)
    assert effect(losses).low == pytest.approx(middle - half)
    assert effect(losses).high == pytest.approx(middle + half)
    assert effect(losses).loss == pytest.approx(float(losses.mean()))


def test_what_cannot_be_diagnosed_is_said() -> None:
    model = network(lively("se"))
    with pytest.raises(InvalidValueError, match=r"two images in each, but got batches of \[1\]"):
        foveate.diagnose(model, [(torch.rand(1, 3, 4, 4), torch.tensor([0]))])
    with pytest.raises(InvalidValueError, match="no attention in this Conv2d"):
        foveate.diagnose(nn.Conv2d(3, 3, 1), [])
    with pytest.raises(InvalidTypeError, match="compiled"):
        foveate.diagnose(torch.compile(model), [])
    sizes = [(torch.rand(2, 3, side, 4), torch.tensor([0, 1])) for side in (4, 5)]
    model = network(lively("cbam"))
    with pytest.raises(InvalidValueError, match="must have one size"):
        foveate.diagnose(model, sizes)


GATES = [case for case in CASES if issubclass(foveate.get_mechanism(case.key), Gate)]


@pytest.mark.parametrize("case", GATES, ids=lambda case: case.id)
@pytest.mark.parametrize("init", ["paper", "identity"])
def test_weighed_by_its_own_gates_it_gives_its_output(case: Case, init: str) -> None:
    channels = case.fit(8)
    module = case.randomised(channels, init=init)
    x = torch.randn(2, channels, 9, 14, dtype=torch.float64)
    torch.testing.assert_close(module.weigh(x, module.gate(x)), module(x))


def test_batches_of_one_image_are_refused_and_a_last_one_is_not_left_alone() -> None:
    model = network(lively("se"))
    torch.manual_seed(0)
    single = [(torch.rand(1, 3, 8, 8), torch.tensor([i % 4])) for i in range(4)]
    with pytest.raises(InvalidValueError, match="at least two images in each, but got batches of"):
        foveate.diagnose(model, [*single, *single])
    whole = [(torch.rand(4, 3, 8, 8), torch.arange(4)), single[0]]
    assert foveate.diagnose(model, whole).images == 5


def test_names_are_no_markup() -> None:
    model = nn.ModuleDict({"[/b]x": lively("se")})
    host = network(nn.Identity())
    host[2] = model["[/b]x"]
    named = nn.Sequential()
    named.add_module("[/b]x", host)
    found = foveate.diagnose(named, [(torch.rand(4, 3, 8, 8), torch.arange(4))])
    assert "[/b]x.2" in "".join(str(found).split())
