"""Insertion: the handle, stacking, training, copies, compilation and errors."""

import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn

import foveate
from cases import CASES, fitting
from foveate.insertion import make_plan
from handmade import HANDMADE, Block, Classifier, image

KEYS = foveate.list_mechanisms()


def host(name: str = "out_of_place") -> nn.Module:
    torch.manual_seed(0)
    return HANDMADE[name]()


def randomise(handle: foveate.insertion.Handle) -> None:
    """Switch every branch on."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in handle.parameters():
            if parameter.ndim < 2:
                parameter.uniform_(0.2, 0.8)
            else:  # so small that no gate saturates
                parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("where", ["residual", "pre", "post", "head"])
def test_every_parameter_moves_within_two_steps(key: str, where: str) -> None:
    options = fitting(key, 32)
    case = next(case for case in CASES if case.key == key and case.options == options)
    model = host()
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 5
    optimizer = torch.optim.AdamW(model.parameters())
    wide = {"reduction": 2} if key in ("se", "cbam") else options  # a narrow one may be a dead ReLU
    handle = foveate.insert(model, key, where=where, example=x, optimizer=optimizer, **wide)
    assert optimizer.param_groups[1]["params"] == list(handle.parameters())
    start = copy.deepcopy(handle.modules)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    still = {
        parameter
        for name, module in handle.modules.items()
        for (parameter, now), before in zip(
            module.named_parameters(), start[name].parameters(), strict=True
        )
        if torch.equal(now, before)
    }
    assert still <= {*case.constant, *case.constant_in_training}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["in_place", "shared_block", "tuples"])
def test_copies_agree(key: str, name: str) -> None:
    model, args = host(name), image(name)
    handle = foveate.insert(model, key, where="residual", example=args, **fitting(key, 32))
    randomise(handle)
    model.eval()
    want = model(*args)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(buffer, weights_only=False),
    }
    for how, twin in copies.items():
        assert torch.equal(twin(*args), want), how
        bare = foveate.remove(twin)
        assert list(bare.state_dict()) == list(host(name).state_dict()), how
        assert not torch.equal(bare(*args), want), how
    assert torch.equal(model(*args), want)  # the copies were taken apart, not this


# A third of them, since all compile and export by themselves; at both places those whose product
# waits for the end of a block.
_COMPILED = [
    (key, where)
    for k, key in enumerate(KEYS)
    for p, where in enumerate(("residual", "pre"))
    if (k + p) % 6 == 0 or key in ("se", "eca", "cbam")
]


@pytest.mark.parametrize(("key", "where"), _COMPILED)
def test_compile_and_export_agree_with_eager(key: str, where: str) -> None:
    model = host("in_place")
    x = torch.rand(2, 3, 16, 16)
    randomise(foveate.insert(model, key, where=where, example=x, **fitting(key, 32)))
    model.eval()
    want = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), want)  # which may call kernels on smaller maps
    dynamic = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    exported = torch.export.export(model, (x,), dynamic_shapes=dynamic).module()
    for other in (x, torch.rand(3, 3, 12, 20)):
        torch.testing.assert_close(exported(other), model(other))


def test_two_insertions_stack_in_the_order_asked() -> None:
    model, x = host(), torch.rand(2, 3, 16, 16)
    first = foveate.insert(model, "se", where="residual", example=x, init="paper")
    second = foveate.insert(model, "cbam", where="residual", example=x, init="paper")
    randomise(first)
    randomise(second)
    assert list(second.modules) == ["body.0.bn2.attention_2", "body.1.bn2.attention_2"]
    bn2 = model.eval().get_submodule("body.1.bn2")
    y = torch.rand(2, 32, 16, 16)
    with torch.no_grad():
        plain = nn.functional.batch_norm(
            y, bn2.running_mean, bn2.running_var, bn2.weight, bn2.bias, eps=bn2.eps
        )
        assert torch.equal(bn2(y), bn2.attention_2(bn2.attention(plain)))
        assert not torch.equal(bn2(y), bn2.attention(bn2.attention_2(plain)))


def test_a_handle_removes_only_its_own() -> None:
    model, x = host().eval(), torch.rand(2, 3, 16, 16)
    bare = model(x)
    first = foveate.insert(model, "se", where="residual", example=x, init="paper")
    only_first = model(x)
    second = foveate.insert(model, "eca", where="residual", example=x, init="paper")
    both = model(x)
    assert not torch.equal(only_first, both)
    second.remove()
    second.remove()
    assert torch.equal(model(x), only_first)
    second = foveate.insert(model, "eca", where="residual", example=x, init="paper")
    first.remove()
    assert not torch.equal(model(x), only_first)
    assert not torch.equal(model(x), bare)
    assert {name for name in model.state_dict() if "attention" in name} == {
        f"{name}.{key}" for name, module in second.modules.items() for key in module.state_dict()
    }
    second.remove()
    assert torch.equal(model(x), bare)


def test_a_host_with_an_attribute_of_that_name_keeps_it() -> None:
    model, x = host(), torch.rand(2, 3, 16, 16)
    model.get_submodule("body.0.bn2").attention = "mine"
    handle = foveate.insert(model, "se", where="residual", example=x)
    assert list(handle.modules) == ["body.0.bn2.attention_2", "body.1.bn2.attention"]
    foveate.remove(model)
    assert model.get_submodule("body.0.bn2").attention == "mine"


def test_modes_flags_device_and_dtype_are_kept() -> None:
    model = host().to(torch.float64).eval()
    model.body[0].train()
    model.stem.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    rng = torch.get_rng_state()
    handle = foveate.insert(model, "static", where="residual")
    assert torch.equal(torch.get_rng_state(), rng)  # `static` draws nothing
    assert [m.training for n, m in model.named_modules() if "attention" not in n] == modes
    old = [p.requires_grad for n, p in model.named_parameters() if "attention" not in n]
    assert old == flags
    inside, outside = handle.modules.values()
    assert inside.training
    assert not outside.training
    assert {p.dtype for p in handle.parameters()} == {torch.float64}
    with torch.device("meta"):
        blank = HANDMADE["out_of_place"]()
    assert next(foveate.insert(blank, "se").parameters()).device.type == "meta"


def test_finding_sites_draws_no_random_numbers() -> None:
    class Noisy(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand(x.shape))

    state = torch.get_rng_state()
    model = Classifier(Noisy(32))
    torch.set_rng_state(state)
    plan = make_plan(model, "se", where="residual")
    assert plan.sites
    assert torch.equal(torch.get_rng_state(), state)
    assert str(plan).count("body.bn2") == 1


def test_inference_mode_does_not_matter() -> None:
    model = host()
    with torch.inference_mode():
        image = torch.rand(1, 3, 16, 16)
        inside = foveate.insert(model, "se", where="residual", example=image)
    outside = foveate.insert(model, "se", where="residual", example=image)
    assert inside.sites == outside.sites
    assert not any(parameter.is_inference() for parameter in inside.parameters())
    model(torch.rand(2, 3, 16, 16)).sum().backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.*:FutureWarning")
def test_a_compiled_host_is_refused() -> None:
    for compiled in (torch.compile(host(), backend="eager"), torch.jit.script(nn.Conv2d(3, 3, 1))):
        with pytest.raises(TypeError, match="must not be compiled yet"):
            foveate.insert(compiled, "se")


def test_a_failing_forward_leaves_nothing_behind() -> None:
    class Broken(Block):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Classifier(Broken(32)).train()
    keys = list(model.state_dict())
    with pytest.raises(RuntimeError, match="no"):
        foveate.insert(model, "se", example=torch.rand(1, 3, 8, 8))
    assert model.body.training
    assert list(model.state_dict()) == keys
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_user_hooks_stay() -> None:
    model, x = host().eval(), torch.rand(2, 3, 16, 16)
    seen: list[int] = []
    bn2 = model.get_submodule("body.0.bn2")
    bn2.register_forward_hook(lambda *_: seen.append(1))
    foveate.insert(model, "se", where="residual", example=x)
    foveate.remove(model)
    seen.clear()
    model(x)
    assert seen == [1]


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("body.1", ["body.1.bn2"]),
        ("body.1.*", ["body.1.bn2"]),
        (r"body\.[01]\.bn2", ["body.0.bn2", "body.1.bn2"]),
        ("*.0.bn2", ["body.0.bn2"]),
        (lambda name, module: name.startswith("body.0"), ["body.0.bn2"]),
    ],
)
def test_at_narrows(at: object, names: list[str]) -> None:
    assert [s.name for s in make_plan(host(), "se", where="residual", at=at).sites] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mechanism": "cbm"}, "did you mean 'cbam'"),
        ({"where": "residul"}, "did you mean 'residual'"),
        ({"init": "papr"}, "did you mean 'paper'"),
        ({"at": "layer9.*"}, "at='layer9.*' matches none of the sites: body.0.bn2, body.1.bn2"),
        ({"where": "replace"}, "SqueezeExcitation cannot stand in place"),
        ({"where": "after"}, "needs at="),
        ({"reduction": 0}, "reduction=0"),
        ({"mechanism": "mhsa", "num_heads": 5}, "num_heads=5 and channels=32"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    model = host()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        foveate.insert(model, arguments.pop("mechanism", "se"), **{"where": "residual"} | arguments)
    assert list(model.state_dict()) == keys


def test_what_cannot_be_a_host() -> None:
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, but got str"):
        make_plan("resnet18", "se")
    with pytest.raises(ValueError, match="has no 2-D convolution"):
        make_plan(nn.Linear(3, 3), "se")
    with pytest.raises(ValueError, match="SqueezeNet has no place 'residual'; it has: pre"):
        make_plan(torchvision.models.squeezenet1_1(), "se", where="residual")
    with pytest.raises(ValueError, match=r"'body\.unused', which this input never reaches"):
        make_plan(host("unused_branch"), "se", where="residual", at="body.unused")
    flat = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten())
    with pytest.raises(ValueError, match="has no place 'post'"):
        make_plan(flat, "se", where="post", example=torch.rand(1, 3, 4, 4))


def test_a_module_used_in_two_roles_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return x + self.norm(self.conv(x))

    plan = make_plan(Twice(), "se", where="residual", example=torch.rand(1, 8, 4, 4))
    assert not plan.sites
    assert plan.refused[0].name == "norm"
    assert "1 of its 2 calls" in plan.refused[0].reason


def test_a_branch_with_two_entries_has_no_module_before_it() -> None:
    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(torch.cat([self.a(x), self.b(x)], dim=1))

    x = torch.rand(1, 8, 4, 4)
    plan = make_plan(Inception(), "se", where="pre", example=x)
    assert not plan.sites
    assert plan.refused[0].reason == "no single module takes the input of the branch"
    assert [site.name for site in make_plan(Inception(), "se", example=x).sites] == ["norm"]


def test_partly_refused_warns_and_does_the_rest() -> None:
    model = torchvision.models.mobilenet_v2()
    with pytest.warns(UserWarning, match="7 of 10 places refused 'sge': features.3.conv.3: num_gr"):
        handle = foveate.insert(model, "sge", where="residual")
    assert [(site.name, site.channels) for site in handle.sites] == [
        (f"features.{block}.conv.3", 64) for block in (8, 9, 10)
    ]


def test_too_few_channels_names_the_site() -> None:
    plan = make_plan(host("sequential"), "mhsa", where="conv", num_heads=8)
    assert [(r.name, "3" in r.reason and "8" in r.reason) for r in plan.refused] == [("0", True)]
    assert [site.name for site in plan.sites] == ["4"]


PUBLISHED = {  # the totals of the papers' models, one row a depth; bias and no bias for `se`
    "resnet18": (11_778_592, 11_776_552, 11_779_392, 11_689_512 + 44),
    "resnet34": (21_958_868, 21_954_856, 21_960_468, 21_797_672 + 72),
    "resnet50": (28_088_024, 28_071_976, 28_089_624, 25_557_032 + 80),
    "resnet101": (49_326_872, 49_292_328, 49_330_172, None),
}
# The kernels of the released ECA models, by stage; the rule on block widths gives others.
ECA_KERNELS = {"resnet18": (3, 5, 7, 7), "resnet34": (3, 3, 5, 7), "resnet50": (3, 5, 5, 7)}


def total(name: str, *insertions: tuple[str, dict]) -> int:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    for key, options in insertions:
        foveate.insert(model, key, where="residual", init="paper", **options)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_published_models(name: str) -> None:
    se, se_without_bias, cbam, eca = PUBLISHED[name]
    assert total(name, ("se", {})) == se
    assert total(name, ("se", {"bias": False})) == se_without_bias
    assert total(name, ("cbam", {})) == cbam
    if eca is not None:
        stages = enumerate(ECA_KERNELS[name], start=1)
        kernels = [("eca", {"at": f"layer{i}", "kernel_size": k}) for i, k in stages]
        assert total(name, *kernels) == eca
    blocks = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3)}.get(name, (3, 4, 6, 3))
    rule = (5, 5, 5, 7) if name in ("resnet50", "resnet101") else (3, 5, 5, 5)
    host = sum(parameter.numel() for parameter in torchvision.models.get_model(name).parameters())
    by_rule = sum(count * kernel for count, kernel in zip(blocks, rule, strict=True))
    assert total(name, ("eca", {})) == host + by_rule
