"""Hosts: exact sizes, every kind of name, and weights from files."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import foveate
from foveate.errors import InvalidTypeError, InvalidValueError
from foveate.hosts import by_name as hosts
from foveate.hosts.by_name import build_host, list_hosts

WEIGHTS = Path(__file__).resolve().parents[2] / "shared/data/mobilenetv2_100.imagenet.safetensors"


def _build(name: str, **options: object) -> nn.Module:
    sizes = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    return build_host(name, **{**sizes, **options})


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


PARAMETERS = {
    "small_cnn": 1_147_914,
    "compact_cnn": 374_282,
    "resnet18_cifar": 11_173_962,
    "resnet20": 272_474,
    "resnet18": 11_181_642,
    "mobilenet_v3_small": 1_528_106,
    "squeezenet1_1": 727_626,
    "timm:resnet18": 11_181_642,
    "mobilenetv2_100": 2_236_682,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_to_the_unit(name: str) -> None:
    assert _count(_build(name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name", ["small_cnn", "compact_cnn", "resnet18_cifar", "resnet20", "resnet18", "googlenet"]
)
@pytest.mark.parametrize("in_channels", [1, 3, 5])
def test_any_channels_and_classes_train(name: str, in_channels: int) -> None:
    host = _build(name, in_channels=in_channels, num_classes=7)
    out = host(torch.rand(2, in_channels, 32, 32))
    assert out.shape == (2, 7)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in host.parameters())


@pytest.mark.parametrize("size", [8, 16, 33])
def test_the_small_cnn_takes_any_size_from_eight(size: int) -> None:
    assert _build("small_cnn", image_size=size)(torch.rand(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("name", ["small_cnn", "compact_cnn"])
def test_images_that_cannot_be_halved_are_refused(name: str) -> None:
    with pytest.raises(InvalidValueError, match=f"{name} needs.*8 pixels, got image_size=7"):
        _build(name, image_size=7)


def test_the_small_cnn_is_the_published_one() -> None:
    host = _build("small_cnn")
    calls: list[str] = []
    for name, module in host.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    host(torch.rand(2, 3, 32, 32))
    block = ["conv", "norm", "relu", "pool"]
    body = [f"block{i}.{part}" for i in (1, 2, 3) for part in block]
    assert calls == [*body, "flatten", "fc1", "relu", "dropout", "fc2"]
    assert host.get_submodule("fc1").in_features == 2048
    assert host.get_submodule("dropout").p == 0.5


def test_the_compact_cnn_takes_attention_between_relu_and_pooling() -> None:
    host = _build("compact_cnn")
    handle = foveate.insert(host, "cbam", where="post", example=torch.rand(1, 3, 32, 32))
    calls: list[str] = []
    for name, module in host.named_modules():
        if not list(module.children()) or name in handle.modules:
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    host(torch.rand(2, 3, 32, 32))
    outer = [name for name in calls if "attention." not in name]
    parts = ["conv", "norm", "relu.attention", "pool"]
    body = [f"block{i}.{part}" for i in (1, 2, 3) for part in parts]
    assert outer == [*body, "avgpool", "flatten", "fc"]
    assert [site.channels for site in handle.sites] == [64, 128, 256]
    assert host(torch.rand(2, 3, 45, 61)).shape == (2, 10)


def test_the_cifar_resnets_keep_their_resolution() -> None:
    shapes = {}
    for name, layers in (
        ("resnet18_cifar", ("layer1", "layer4")),
        ("resnet20", ("layer1", "layer3")),
    ):
        host = _build(name)
        for layer in layers:
            host.get_submodule(layer).register_forward_hook(
                lambda _module, _inputs, out, key=(name, layer): shapes.update({key: out.shape[1:]})
            )
        host(torch.rand(1, 3, 32, 32))
    assert list(shapes.values()) == [(64, 32, 32), (512, 4, 4), (16, 32, 32), (64, 8, 8)]


def test_weights_come_from_the_callers_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(_build("resnet20").state_dict()["layer2.0.conv1.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_options_follow_a_question_mark() -> None:
    assert _build("small_cnn?dropout=0.1").get_submodule("dropout").p == 0.1
    same = _build("timm:mobilenetv2_100?pad_type=same")
    assert type(same.get_submodule("conv_stem")).__name__ == "Conv2dSame"
    with pytest.raises(InvalidValueError, match=r"host 'small_cnn' refuses \{'dropouts': 0.1\}"):
        _build("small_cnn?dropouts=0.1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small_cn", "unknown host 'small_cn'; did you mean 'small_cnn'"),
        ("resnet19", "unknown host 'resnet19'; did you mean 'resnet1"),
        ("timm:resnet1888", "did you mean 'timm:resnet18"),
        ("no_such_module:net", "host 'no_such_module:net' cannot be imported: No module named"),
        ("math:no_net", "cannot be imported: module 'math' has no attribute 'no_net'"),
        (":net", "host ':net' cannot be imported"),
        ("timm:resnet18.nosuchtag", "host 'timm:resnet18.nosuchtag' cannot be built: Invalid pre"),
        ("resnet18?width_per_group=-1", "host 'resnet18' refuses {'width_per_group': -1}: "),
        ("xyz?a=1", "unknown host 'xyz'; Accepted: small_cnn, compact_cnn, resnet18_cifar, resnet"),
    ],
)
def test_unknown_names_help(name: str, message: str) -> None:
    with pytest.raises(InvalidValueError) as error:
        _build(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_of_ones_own_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels, width=4):\n"
        "    return nn.Conv2d(in_channels, num_classes * width, 1)\n"
        "def fixed():\n"
        "    return nn.Conv2d(3, 2, 1)\n"
        "def wrong(**options):\n"
        "    return 5\n"
        "number = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    assert _build("my_nets:net?width=2").weight.shape == (20, 3, 1, 1)
    assert _build("my_nets:fixed").weight.shape == (2, 3, 1, 1)
    with pytest.raises(InvalidTypeError, match="host 'my_nets:wrong' must be a torch module"):
        _build("my_nets:wrong")
    with pytest.raises(InvalidTypeError, match="must be a function or class"):
        _build("my_nets:number")


def test_names_are_listed_by_pattern() -> None:
    assert list_hosts("resnet1*") == ["resnet101", "resnet152", "resnet18", "resnet18_cifar"]
    assert "timm:convnext_atto" in list_hosts("timm:convnext*")
    assert not [name for name in list_hosts() if "rcnn" in name.removeprefix("timm:")]


def _save(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def test_weights_of_other_classes_leave_the_classifier_fresh(tmp_path: Path) -> None:
    source = _build("resnet20", num_classes=100)
    path = _save(tmp_path / "w.safetensors", source.state_dict())
    torch.manual_seed(4)
    host = _build("resnet20", pretrained=path)
    torch.manual_seed(4)
    fresh = _build("resnet20")
    for name, value in host.state_dict().items():
        expected = fresh if name.startswith("fc.") else source
        assert torch.equal(value, expected.state_dict()[name]), name


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_torch_files_are_read_with_or_without_a_wrapper(
    tmp_path: Path, wrapper: str | None
) -> None:
    source = _build("resnet20")
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "w.pth")
    host = _build("resnet20", pretrained=str(tmp_path / "w.pth"))
    assert torch.equal(host.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_half_precision_files_become_single_precision(tmp_path: Path) -> None:
    source = _build("small_cnn").half()
    path = _save(tmp_path / "w.safetensors", source.state_dict())
    host = _build("small_cnn", pretrained=path)
    weight = host.get_submodule("block1.conv").weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.get_submodule("block1.conv").weight.float())


def test_a_colour_stem_answers_grey_images_alike(tmp_path: Path) -> None:
    source = _build("resnet20").eval()
    path = _save(tmp_path / "w.safetensors", source.state_dict())
    grey = torch.rand(2, 1, 16, 16)
    for channels in (1, 4):
        host = _build("resnet20", in_channels=channels, pretrained=path).eval()
        expected = source(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(host(grey.expand(-1, channels, -1, -1)), expected)


def test_weights_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    state = _build("resnet20").state_dict()
    lacking = {name: value for name, value in state.items() if name != "layer1.0.bn1.bias"}
    strange = {**state, "layer9.weight": torch.ones(1)}
    small = _build("small_cnn", image_size=16).state_dict()
    for name, weights, host, message in (
        ("lacking", lacking, "resnet20", "lack 1 of .*layer1.0.bn1.bias"),
        ("strange", strange, "resnet20", "unknown 1 of .*layer9.weight"),
        ("other", small, "small_cnn", r"'fc1.weight' of shape \(512, 512\).*\(512, 2048\)"),
    ):
        path = _save(tmp_path / f"{name}.safetensors", weights)
        with pytest.raises(InvalidValueError, match=message):
            _build(host, pretrained=path)


def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth", "a.txt"):
        (tmp_path / name).write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "object.pt")
    for name, message in (
        ("a.safetensors", "holds no weights that can be read"),
        ("a.pth", "holds no weights that can be read"),
        ("list.pt", "holds no weights that can be read"),
        ("object.pt", "holds no weights that can be read"),
        ("a.txt", "must be 'DEFAULT' or a file that ends in .safetensors, .pt, .pth"),
        ("missing.pth", "there is no file of weights at"),
    ):
        with pytest.raises(InvalidValueError, match=message) as error:
            _build("resnet20", pretrained=tmp_path / name)
        assert "\n" not in str(error.value)


def test_published_weights_need_a_publisher() -> None:
    with pytest.raises(InvalidValueError, match="host 'small_cnn' has no published weights"):
        _build("small_cnn", pretrained="DEFAULT")


def test_published_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(InvalidValueError, match=r"'resnet18' cannot be fetched .*no route"):
        _build("resnet18", pretrained="DEFAULT")


def test_published_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    source = hosts.models.resnet18()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: source.state_dict()
    )
    host = _build("resnet18", pretrained="DEFAULT")
    assert torch.equal(host.state_dict()["layer4.1.bn2.weight"], source.layer4[1].bn2.weight)
    assert torch.equal(host.state_dict()["conv1.weight"], source.conv1.weight)
    assert host.state_dict()["fc.weight"].shape == (10, 512)


@pytest.mark.data
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="no real weights beside the checkout")
def test_real_weights() -> None:
    host = build_host(
        "timm:mobilenetv2_100?pad_type=same",
        num_classes=1000,
        in_channels=3,
        image_size=224,
        pretrained=WEIGHTS,
    )
    state = host.state_dict()
    stored = load_file(WEIGHTS)
    assert stored["conv_stem.weight"].dtype == torch.float16
    assert state["conv_stem.weight"].dtype == torch.float32
    for name, value in stored.items():
        assert torch.equal(state[name], value.to(state[name].dtype)), name
