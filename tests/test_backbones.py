"""Backbones: the features of a host by stride, cut after the last, dilated, with attention."""

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import foveate
from foveate import models
from foveate.errors import InvalidTypeError, InvalidValueError
from foveate.models import Backbone

WEIGHTS = Path(__file__).resolve().parents[2] / "shared/data/mobilenetv2_100.imagenet.safetensors"
SAME = "mobilenetv2_100?pad_type=same"
ALL = (4, 8, 16, 32)
RESNET, MOBILENET = (64, 128, 256, 512), (24, 32, 96, 320)


def build(name: str, **options: object) -> Backbone:
    """With the weights of one seed, whatever attention is in it."""
    torch.manual_seed(0)
    return models.backbone(name, **{"image_size": 64, **options}).eval()


def image(*size: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", RESNET),
        ("cbam_resnet18", RESNET),
        ("bam_resnet18", RESNET),
        ("mobilenet_v2", MOBILENET),
        ("eca_mobilenet_v2", MOBILENET),
        ("danet_mobilenet_v2", (*MOBILENET[:3], 1280)),  # its attention follows the wide map
        (SAME, MOBILENET),
        ("timm:resnet18", RESNET),
        ("efficientnet_b0", (24, 40, 112, 320)),
        ("timm:mobilenetv3_small_100", (16, 24, 48, 96)),
    ],
)
def test_features_are_found_by_their_strides(name: str, channels: tuple[int, ...]) -> None:
    body = build(name, strides=ALL)
    assert (body.strides, body.channels) == (ALL, channels)
    for height, width in ((64, 96), (45, 61)):
        features = run(body, image(height, width))
        assert list(features) == ["4", "8", "16", "32"]
        for feature, stride, width_ in zip(features.values(), ALL, channels, strict=True):
            assert feature.shape == (1, width_, -(-height // stride), -(-width // stride))


def test_features_are_those_of_the_stages() -> None:
    x = image(64, 64)
    torch.manual_seed(0)
    net = torchvision.models.resnet18().eval()
    features = run(build("resnet18", strides=ALL), x)
    with torch.no_grad():
        want = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for key, name in zip(features, ("layer1", "layer2", "layer3", "layer4"), strict=True):
            want = net.get_submodule(name)(want)
            assert torch.equal(features[key], want), key
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v2().eval()
    features = run(build("mobilenet_v2", strides=ALL), x)
    with torch.no_grad():
        for key, end in zip(features, (4, 7, 14, 18), strict=True):
            assert torch.equal(features[key], net.features[:end](x)), key


def test_a_map_that_is_enlarged_for_the_classifier_is_no_stage() -> None:
    body = build("vgg11")  # pools to 7 x 7 whatever the map
    assert body.channels == (512, 512, 512)
    assert run(body, image(64, 96))["32"].shape == (1, 512, 2, 3)


def test_features_are_those_that_timm_gives() -> None:
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv2_100", pad_type="same", features_only=True).eval()
    body = build(SAME, strides=ALL)
    body.host.load_state_dict(net.state_dict())
    x = image(64, 45)
    with torch.no_grad():
        want = net(x)[1:]
    for feature, expected in zip(run(body, x).values(), want, strict=True):
        assert torch.equal(feature, expected)


@pytest.mark.parametrize(
    ("name", "strides", "parameters"),
    [
        ("resnet18", (8, 16, 32), 11_689_512 - 513_000),
        ("resnet18", (8, 16), 11_689_512 - 513_000 - 8_393_728),
        ("mobilenet_v2", (8, 16, 32), 3_504_872 - 1_281_000 - (320 * 1280 + 2 * 1280)),
        (SAME, (8, 16, 32), 3_504_872 - 1_281_000 - (320 * 1280 + 2 * 1280)),
        ("compact_cnn", (2, 4, 8), 374_282 - 2_570),
    ],
)
def test_nothing_runs_after_the_last_features(
    name: str, strides: tuple[int, ...], parameters: int
) -> None:
    body = build(name, strides=strides)
    assert sum(p.numel() for p in body.parameters()) == parameters
    body.train()
    sum(feature.square().mean() for feature in body(image(64, 64, batch=2)).values()).backward()
    assert all(parameter.grad is not None for parameter in body.parameters())


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        *(("resnet18", 8), ("resnet18", 16), ("resnet50", 8)),
        *(("mobilenet_v2", 8), ("mobilenet_v2", 16), (SAME, 8), (SAME, 16)),
    ],
)
def test_dilation_computes_the_same_at_more_positions(name: str, output_stride: int) -> None:
    """Each position of the plain features is one of the dilated."""
    x = image(64, 96).double()
    plain = run(build(name, strides=ALL).double(), x)
    body = build(name, strides=ALL, output_stride=output_stride).double()
    dilated = run(body, x)
    assert body.strides == tuple(min(stride, output_stride) for stride in ALL)
    for key, stride in zip(ALL, body.strides, strict=True):
        step = key // stride
        # TensorFlow's padding puts the window of a reduction after its position, not around it.
        first = step - 1 if name == SAME else 0
        assert dilated[str(key)].shape[2:] == (64 // stride, 96 // stride)
        found = dilated[str(key)][:, :, first::step, first::step]
        torch.testing.assert_close(found, plain[str(key)])


def test_attention_acts_in_the_features() -> None:
    x = image(64, 64)
    bare = run(build("resnet18"), x)
    gentle = run(build("cbam_resnet18", init="identity"), x)
    assert all(torch.equal(gentle[key], bare[key]) for key in bare)
    paper = run(build("cbam_resnet18"), x)
    assert not any(torch.equal(paper[key], bare[key]) for key in bare)


def test_attention_inserted_at_the_ends_is_in_the_features() -> None:
    x = image(64, 64)
    body = build("mobilenet_v2")
    bare = run(body, x)
    keys = list(body.state_dict())
    ends = [f"host.{name}" for name in body.ends.values()]
    handle = foveate.insert(body, "se", where="after", at=lambda name, _: name in ends, example=x)
    assert len(handle.sites) == 3
    assert all(torch.equal(run(body, x)[key], bare[key]) for key in bare)
    for module in handle.modules.values():
        nn.init.ones_(module.strength)
    assert not any(torch.equal(run(body, x)[key], bare[key]) for key in bare)
    foveate.remove(body)
    assert list(body.state_dict()) == keys
    assert all(torch.equal(run(body, x)[key], bare[key]) for key in bare)


def test_a_backbone_is_copied_pickled_and_keeps_no_hooks() -> None:
    x = image(64, 64)
    body = build("se_mobilenet_v2")
    want = run(body, x)
    hooks = [len(module._forward_hooks) for module in body.modules()]
    with pytest.raises(RuntimeError):
        body(image(64, 64)[:, :2])
    assert [len(module._forward_hooks) for module in body.modules()] == hooks
    other = build("se_mobilenet_v2")
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(body.state_dict())
    for same in (copy.deepcopy(body), pickle.loads(pickle.dumps(body)), other):
        assert all(torch.equal(run(same, x)[key], want[key]) for key in want)


def test_a_pretrained_host_is_read_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = torchvision.models.resnet18(num_classes=7).eval()
    torch.save(net.state_dict(), tmp_path / "host.pth")
    body = build("cbam_resnet18", pretrained_host=tmp_path / "host.pth")
    bare = build("resnet18", pretrained_host=tmp_path / "host.pth")
    x = image(64, 64)
    assert torch.equal(bare.host.conv1.weight, net.conv1.weight)
    assert all(torch.equal(run(body, x)[key], run(bare, x)[key]) for key in ("8", "16", "32"))


@pytest.mark.data
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no real weights beside the checkout")
def test_real_weights() -> None:
    body = build(SAME, pretrained_host=WEIGHTS, output_stride=8)
    assert run(body, image(70, 90))["32"].shape == (1, 320, 9, 12)
    plain = build(SAME, pretrained_host=WEIGHTS)
    x = image(64, 64)
    found = run(body, x)["32"][:, :, 3::4, 3::4]
    torch.testing.assert_close(found, run(plain, x)["32"], rtol=1e-3, atol=1e-4)


def test_nothing_acts_in_place_on_the_features() -> None:
    """DenseNet ends with a ReLU that is no module, and so is not cut off."""
    x = image(64, 64)
    body = build("densenet121", strides=(8, 16))
    torch.manual_seed(0)
    net = torchvision.models.densenet121().eval()
    with torch.no_grad():
        want = net.features[:9](x)
    assert net.features[8] is net.features.denseblock3
    assert want.min() < 0
    assert torch.equal(run(body, x)["16"], want)


def test_images_of_other_channels() -> None:
    for name in ("se_resnet18", "resnet18"):
        body = build(name, in_channels=5)
        assert run(body, torch.rand(1, 5, 64, 64))["32"].shape == (1, 512, 2, 2)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("cbm_resnet18", {}, InvalidValueError, "did you mean 'cbam_resnet18'?.*named model"),
        ("resnet19", {}, InvalidValueError, "unknown backbone 'resnet19'; did you mean 'resnet1"),
        ("compact_cnn", {}, InvalidValueError, "no features at stride 16, only at: 2, 4, 8"),
        ("resnet18", {"strides": (8, 12)}, InvalidValueError, "stride 12, only at: 2, 4, 8, 16"),
        ("resnet18", {"strides": (16, 8)}, InvalidValueError, r"must ascend.*\(16, 8\)"),
        ("resnet18", {"strides": ()}, InvalidValueError, "must ascend"),
        ("resnet18", {"strides": (0, 8)}, InvalidValueError, "at least 1"),
        ("resnet18", {"output_stride": 4}, InvalidValueError, "8, 16 or 32.*output_stride=4"),
        ("resnet18", {"reduction": 4}, InvalidTypeError, "no attention that could take"),
        ("se_resnet18", {"ratio": 4}, InvalidTypeError, "unknown option of se 'ratio'"),
        ("densenet121", {"output_stride": 8}, InvalidValueError, "'densenet121' cannot be dilated"),
        ("sk_resnet18", {"output_stride": 8}, InvalidValueError, "'sk_resnet18' cannot be dil"),
        ("resnet18", {"image_size": 0}, InvalidValueError, "image_size=0"),
    ],
)
def test_bad_arguments(name: str, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build(name, **options)
    assert "\n" not in str(caught.value)
