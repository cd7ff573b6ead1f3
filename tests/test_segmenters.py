"""Segmentation networks: shapes, heads against literal references, slots, losses, export."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foveate
from cases import random_weight
from foveate import models
from foveate.errors import InvalidTypeError, InvalidValueError
from foveate.models.decoders import CCNetHead, DANetHead
from segmentation_heads import ccnet_head, danet_head
from tolerances import assert_close

SLOTS = {
    "unet": ["stages.0.attention", "stages.1.attention", "stages.2.attention"],
    "deeplabv3plus": ["attention"],
    "psp": ["attention"],
    "danet": ["position.attention", "channel.attention"],
    "ccnet": ["branch.attention"],
}
OUTPUTS = {
    "unet": {"out"},
    "deeplabv3plus": {"out"},
    "psp": {"out", "aux"},
    "danet": {"out", "position", "channel"},
    "ccnet": {"out", "aux"},
}
FREE = ("unet", "deeplabv3plus", "psp")
HOSTS = ("resnet18", "mobilenet_v2", "mobilenetv2_100?pad_type=same")


def build(kind: str, backbone: str = "resnet18", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.segmenter(kind, backbone, **{"num_classes": 5, "image_size": 64, **options})


def image(*size: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("backbone", HOSTS)
@pytest.mark.parametrize("kind", SLOTS)
def test_scores_have_the_size_of_the_image(kind: str, backbone: str) -> None:
    model = build(kind, backbone)
    assert run(model, image(45, 61)).shape == (1, 5, 45, 61)
    outputs = model.train()(image(33, 50))  # one image: some maps are a single position
    assert set(outputs) == OUTPUTS[kind]
    assert {tuple(scores.shape) for scores in outputs.values()} == {(1, 5, 33, 50)}


@pytest.mark.parametrize("kind", ["psp", "danet", "ccnet"])
def test_heads_that_compare_positions_see_an_eighth(kind: str) -> None:
    assert build(kind).backbone.strides == (8, 8)


@pytest.mark.parametrize(("output_stride", "rates"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
def test_the_rates_of_deeplab_follow_the_stride(output_stride: int, rates: list[int]) -> None:
    body = models.backbone("resnet18", strides=(4, 32), image_size=64, output_stride=output_stride)
    model = build("deeplabv3plus", body)
    assert [branch[0].dilation[0] for branch in model.decoder.branches] == [1, *rates]
    assert build("deeplabv3plus").backbone.strides == (4, 16, 16)


@pytest.mark.parametrize("kind", SLOTS)
def test_training_moves_every_parameter(kind: str) -> None:
    """In three steps: some scales start at zero, and so the gradient of what they weigh."""
    options = {"attention": "se"} if kind in FREE else {}
    model = build(kind, "eca_mobilenet_v2", **options).train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    target = torch.randint(5, (2, 64, 64), generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        optimizer.zero_grad()
        models.segmentation_loss(model(image(64, 64, batch=2)), target).backward()
        optimizer.step()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert not still


def body(channels: int) -> SimpleNamespace:
    """What a decoder reads of a backbone."""
    return SimpleNamespace(ends={"32": "layer4"}, channels=(channels,), strides=(8,))


def randomised(head: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    head = head.double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(random_weight(name, tensor, generator))
    return head, head.state_dict()


def map64(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, 4, 5, generator=generator, dtype=torch.float64)


def test_the_danet_head_equals_its_reference() -> None:
    keys = ("danet_position", "danet_channel")
    slots = [partial(foveate.create, key) for key in keys]
    head, weights = randomised(DANetHead(body(32), 3, *slots))
    x = map64(32)
    assert_close(head({"32": x})["out"], danet_head(x, weights)["out"])
    assert set(head({"32": x})) == {"out"}
    head.training = True  # its parts still evaluate
    outputs, expected = head({"32": x}), danet_head(x, weights)
    assert set(outputs) == set(expected)
    for name, scores in expected.items():
        assert_close(outputs[name], scores)


@pytest.mark.parametrize("recurrence", [1, 2])
def test_the_ccnet_head_equals_its_reference(recurrence: int) -> None:
    head, weights = randomised(
        CCNetHead(body(32), 3, lambda c: foveate.create("criss_cross", c, recurrence=recurrence))
    )
    x = map64(32)
    assert_close(head({"32": x})["out"], ccnet_head(x, weights, recurrence))


def test_ccnet_passes_twice_unless_told() -> None:
    assert build("ccnet").decoder.branch.attention.recurrence == 2
    assert build("ccnet", recurrence=1).decoder.branch.attention.recurrence == 1


def layer(into: int, out: int, kernel: int = 3) -> int:
    """Convolution without bias and batch norm."""
    return into * out * kernel**2 + 2 * out


def test_parameters_by_formula() -> None:
    position = 2 * (128 * 16 + 16) + 128 * 128 + 128 + 1
    stages = [(512, 256, 256), (256, 128, 128), (128, 64, 64)]
    expected = {
        "unet": sum(i * o * 4 + o + layer(o + skip, o) + layer(o, o) for i, skip, o in stages)
        + 64 * 5
        + 5,
        "deeplabv3plus": 2 * layer(512, 256, 1)
        + 3 * layer(512, 256)
        + layer(5 * 256, 256, 1)
        + layer(64, 48, 1)
        + layer(256 + 48, 256)
        + layer(256, 256)
        + 256 * 5
        + 5,
        "psp": 4 * layer(512, 128, 1) + layer(1024, 128) + 128 * 5 + 5,
        "danet": 2 * (layer(512, 128) + layer(128, 128)) + position + 1 + 3 * (128 * 5 + 5),
        "ccnet": layer(512, 128) + layer(128, 128) + position + layer(640, 128) + 128 * 5 + 5,
    }
    for kind, count in expected.items():
        model = build(kind)
        assert sum(p.numel() for p in model.decoder.parameters()) == count, kind
        assert sum(p.numel() for p in model.backbone.parameters()) == 11_176_512
        if kind in ("psp", "ccnet"):
            auxiliary = sum(p.numel() for p in model.auxiliary.parameters())
            assert auxiliary == layer(256, 64) + 64 * 5 + 5


@pytest.mark.parametrize("kind", SLOTS)
def test_slots_are_named_and_filled(kind: str) -> None:
    model = build(kind, "se_resnet18")
    slots = {
        name: module for name, module in model.decoder.named_modules() if name.endswith("attention")
    }
    assert list(slots) == SLOTS[kind]
    if kind not in FREE:
        with pytest.raises(InvalidTypeError, match=f"'{kind}' has its own attention"):
            build(kind, attention="cbam")
        return
    assert all(type(slot) is nn.Identity for slot in slots.values())
    filled = build(kind, attention="cbam", reduction=4, init="identity")
    kinds = [filled.decoder.get_submodule(name) for name in SLOTS[kind]]
    assert all(isinstance(m, foveate.get_mechanism("cbam")) for m in kinds)
    assert all((m.reduction, m.init) == (4, "identity") for m in kinds)


@pytest.mark.parametrize("kind", FREE)
def test_insertion_finds_the_slots_and_changes_nothing(kind: str) -> None:
    model, x = build(kind, "se_resnet18"), image(64, 64)
    want = run(model, x)
    keys = list(model.state_dict())
    handle = foveate.insert(model, "cbam", where="after", at="*attention", example=x)
    assert [site.name for site in handle.sites] == [f"decoder.{name}" for name in SLOTS[kind]]
    assert torch.equal(run(model, x), want)
    for module in handle.modules.values():
        nn.init.ones_(module.strength)
    assert not torch.equal(run(model, x), want)
    handle.remove()
    assert list(model.state_dict()) == keys
    assert torch.equal(run(model, x), want)


@pytest.mark.parametrize("kind", ["unet", "danet"])
def test_copies_and_weights_give_the_same(kind: str) -> None:
    model, x = build(kind, "se_resnet18"), image(40, 50)
    want = run(model, x)
    other = build(kind, "se_resnet18")
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other, x), want)
    assert torch.equal(run(copy.deepcopy(model), x), want)


@pytest.mark.parametrize("kind", SLOTS)
def test_export_with_dynamic_sizes(kind: str) -> None:
    model = build(kind).eval()
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        exported = torch.export.export(model, (image(64, 80),), dynamic_shapes=(sizes,)).module()
        for size in ((64, 80), (96, 72), (45, 61)):
            x = image(*size)
            torch.testing.assert_close(exported(x), model(x), rtol=1e-3, atol=1e-4)


def test_the_auxiliary_classifier_is_a_choice() -> None:
    assert set(build("unet", auxiliary=True).train()(image(64, 64, batch=2))) == {"out", "aux"}
    assert build("psp", auxiliary=False).auxiliary is None
    single = models.backbone("resnet18", strides=(32,), image_size=64)
    with pytest.raises(InvalidValueError, match="auxiliary needs features before the last"):
        build("psp", single)
    assert run(build("psp", single, auxiliary=False), image(45, 60)).shape == (1, 5, 45, 60)


def test_a_backbone_can_be_given() -> None:
    body = models.backbone("compact_cnn", strides=(2, 4, 8), image_size=64)
    model = build("unet", body)
    assert model.backbone is body
    assert len(model.decoder.stages) == 3
    assert run(model, image(20, 31)).shape == (1, 5, 20, 31)


def test_images_of_other_channels() -> None:
    model = build("unet", in_channels=1)
    assert run(model, torch.rand(1, 1, 40, 40)).shape == (1, 5, 40, 40)


def test_the_loss_is_the_mean_over_pixels_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = {
        name: torch.randn(2, 5, 6, 7, generator=generator, requires_grad=True)
        for name in ("out", "aux", "position")
    }
    target = torch.randint(5, (2, 6, 7), generator=generator)
    target[0, :3] = 4
    one = {name: F.cross_entropy(scores, target) for name, scores in outputs.items()}
    loss = models.segmentation_loss
    torch.testing.assert_close(loss(outputs["out"], target), one["out"])
    everything = one["out"] + 0.4 * one["aux"] + one["position"]
    torch.testing.assert_close(loss(outputs, target), everything)
    torch.testing.assert_close(loss(outputs, target, aux_weight=0.0), one["out"] + one["position"])
    counted = F.cross_entropy(outputs["out"], target, ignore_index=4)
    torch.testing.assert_close(loss(outputs["out"], target, void=4), counted)
    nothing = loss(outputs["out"], torch.full_like(target, 11), void=11)
    nothing.backward()
    assert nothing == 0
    assert not outputs["out"].grad.any()


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("unnet", {}, InvalidValueError, "did you mean 'unet'.*ccnet, danet, deeplabv3plus, psp"),
        ("unet", {"num_classes": 0}, InvalidValueError, "num_classes=0"),
        ("unet", {"attention": "cbm"}, InvalidValueError, "unknown mechanism 'cbm'"),
        ("unet", {"attention": "se", "ratio": 2}, InvalidTypeError, "unknown option of se"),
        ("unet", {"reduction": 2}, InvalidTypeError, "without attention= nothing takes"),
        ("danet", {"reduction": 2}, InvalidTypeError, "unknown option of danet_position"),
        ("unet", {"backbone": "resnet19"}, InvalidValueError, "unknown backbone 'resnet19'"),
        ("psp", {"backbone": "densenet121"}, InvalidValueError, "cannot be dilated"),
        ("unet", {"init": "zero", "attention": "se"}, InvalidValueError, "unknown init 'zero'"),
    ],
)
def test_bad_arguments(kind: str, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build(kind, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "where"),
    [("Unet", "residual"), ("FPN", "stage"), ("DeepLabV3Plus", "conv3x3"), ("PSPNet", "residual")],
)
def test_insertion_into_segmentation_models(architecture: str, where: str) -> None:
    torch.manual_seed(0)
    model = getattr(smp, architecture)("resnet18", encoder_weights=None, classes=3).eval()
    x = image(64, 64)
    want = run(model, x)
    keys = list(model.state_dict())
    handle = foveate.insert(model, "cbam", where=where, example=x)
    assert torch.equal(run(model, x), want)
    assert len(handle.sites) >= 4
    if architecture == "Unet":
        assert len(handle.sites) == 8  # the blocks of its encoder
    for module in handle.modules.values():
        nn.init.ones_(module.strength)
    assert not torch.equal(run(model, x), want)
    foveate.remove(model)
    assert list(model.state_dict()) == keys
    assert torch.equal(run(model, x), want)
