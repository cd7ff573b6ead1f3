"""What checkpoints come in, and what is refused before anything has changed."""

import argparse
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.layers import NonLocalAttn
from torch import nn

import foreign
import foveate
from foreign import Net, prepared
from foveate.errors import MissingExtraError
from foveate.weights import Loaded
from test_weights import EXAMPLE, assert_same, ours

Tensors = dict[str, torch.Tensor]


def cbam_net(**options: Any) -> nn.Module:
    return Net(lambda channels: {"cbam": foreign.cbam(channels)}, **options)


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    return prepared(cbam_net())


@pytest.fixture
def model() -> nn.Module:
    return ours("cbam")


def parallel(tensors: Tensors) -> Tensors:
    return OrderedDict((f"module.{name}", tensor) for name, tensor in tensors.items())


NESTS: dict[str, Callable[[Tensors], dict[str, Any]]] = {
    "bare": dict,
    "parallel": parallel,
    "compiled": lambda t: parallel({f"_orig_mod.{name}": tensor for name, tensor in t.items()}),
    "script": lambda t: {"epoch": 3, "arch": "cbam", "state_dict": parallel(t), "best": 71.5},
    "model": lambda t: {"model": t, "optimizer": {"state": {}}},
    "options": lambda t: {"state_dict": t, "args": argparse.Namespace(lr=0.1)},
    "average": lambda t: {
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in t.items()},
        "state_dict_ema": t,
    },
    "deep": lambda t: {"model": {"state_dict": t}},
    "old": lambda t: {n: tensor for n, tensor in t.items() if "num_batches_tracked" not in n},
}


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("kind", ["mapping", "zip", "pickle"])
def test_nests_and_files(
    nest: str, kind: str, theirs: nn.Module, model: nn.Module, tmp_path: Path
) -> None:
    weights: Any = NESTS[nest](theirs.state_dict())
    if kind != "mapping":
        torch.save(weights, tmp_path / "a.tar", _use_new_zipfile_serialization=kind == "zip")
        weights = tmp_path / "a.tar"
    loaded = foveate.load_weights(model, weights)
    assert (loaded.missing, loaded.unexpected) == ((), ())
    assert_same(theirs, model)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_safetensors_by_name_or_content(
    name: str, theirs: nn.Module, model: nn.Module, tmp_path: Path
) -> None:
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / name)
    foveate.load_weights(model, str(tmp_path / name))
    assert_same(theirs, model)


def test_safetensors_not_installed(model: nn.Module, tmp_path: Path, monkeypatch: Any) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtraError, match=r"foveate\[hosts\]"):
        foveate.load_weights(model, tmp_path / "a.safetensors")


def test_half_precision_is_taken_in_the_precision_of_the_model(model: nn.Module) -> None:
    half = prepared(cbam_net()).half().state_dict()
    foveate.load_weights(model, half)
    assert model.conv1.weight.dtype == torch.float64
    assert torch.equal(model.conv1.weight, half["conv1.weight"].double())


class Attack:
    """Runs a function when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def contents(path: Path, theirs: nn.Module) -> dict[str, Callable[[], Any]]:
    """Ways to write a file that is refused."""
    whole = path.with_name("whole.pt")
    torch.save(theirs.state_dict(), whole)
    return {
        "attack": lambda: torch.save({"a": Attack(path.with_name("touched"))}, path),
        "plain attack": lambda: path.write_bytes(
            pickle.dumps(Attack(path.with_name("touched")), 2)
        ),
        "module": lambda: torch.save(theirs, path),
        "truncated": lambda: path.write_bytes(whole.read_bytes()[:-2000]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("<html>404 not found</html>"),
        "list": lambda: torch.save([torch.zeros(1)], path),
        "nothing": lambda: torch.save({"epoch": 1}, path),
        "cut header": lambda: path.write_bytes(b"\xff\0\0\0\0\0\0\0{"),
    }


KINDS = {
    "attack": r"it holds code \(\S+\), none of which was run",
    "plain attack": r"it holds code \(\S+\), none of which was run",
    "module": r"it holds code \(foreign\.Net\), none of which was run",
    "truncated": "be read: PytorchStreamReader failed",
    **dict.fromkeys(("empty", "text"), "neither a safetensors file nor one of torch.save"),
    **dict.fromkeys(("list", "nothing"), "be read: no tensors by name"),
    "cut header": "be read: Error while deserializing header",
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_refused(
    kind: str, theirs: nn.Module, model: nn.Module, tmp_path: Path
) -> None:
    contents(tmp_path / "a.pth", theirs)[kind]()
    before = model.state_dict(), {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=KINDS[kind]) as caught:
        foveate.load_weights(model, tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "touched").exists()
    assert all(torch.equal(before[0][name], tensor) for name, tensor in before[1].items())


def test_a_path_without_file_and_an_object_that_is_none(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file of weights at"):
        foveate.load_weights(model, tmp_path / "none.pt")
    with pytest.raises(TypeError, match="must be a path or a state dict, but got Net"):
        foveate.load_weights(model, Net())  # type: ignore[arg-type]


def refused(model: nn.Module, weights: Any, **options: Any) -> str:
    """The message of a refusal that has changed nothing."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r".") as caught:
        foveate.load_weights(model, weights, **options)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    return str(caught.value)


def test_names_of_layouts(theirs: nn.Module, model: nn.Module) -> None:
    tensors = theirs.state_dict()
    assert foveate.load_weights(model, tensors, layout="official").layouts == {"cbam": "official"}
    assert "did you mean 'luuuyi'?" in refused(model, tensors, layout="luuyi")
    wrong = refused(model, tensors, layout="luuuyi")
    assert "known for it are cbam: foveate, official, luuuyi, timm" in wrong
    assert "no attention with the names" in refused(model, tensors, layout="moskomule")
    assert "unknown head 'keep'" in refused(model, tensors, head="keep")


def test_a_classifier_of_other_classes(theirs: nn.Module) -> None:
    model = ours("cbam", num_classes=7)
    message = refused(model, theirs.state_dict())
    assert (
        "'fc.weight' has shape (7, 128), but the checkpoint's 'fc.weight' has (5, 128)" in message
    )
    assert message.endswith("head='skip' leaves 'fc' as it is")
    fresh = model.fc.weight.clone()
    loaded = foveate.load_weights(model, theirs.state_dict(), head="skip")
    assert loaded.skipped == ("fc.weight", "fc.bias")
    assert torch.equal(model.fc.weight, fresh)
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)
    whole = foveate.load_weights(ours("cbam"), theirs.state_dict(), head="skip")
    assert whole.skipped == ()  # a classifier that fits is loaded


def test_a_backbone_without_classifier(theirs: nn.Module, model: nn.Module) -> None:
    tensors = {n: t for n, t in theirs.state_dict().items() if not n.startswith("fc.")}
    assert "lacks 2 tensors of the model (fc.weight, fc.bias)" in refused(model, tensors)
    assert foveate.load_weights(model, tensors, head="skip").skipped == ("fc.weight", "fc.bias")


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"reduction": 8}, "insert it with reduction=16, as"),
        ({"kernel_size": 3}, "insert it with kernel_size=7, as"),
        ({"norm": False}, "insert it with norm=True, as"),
        ({"norm": False, "reduction": 4}, "insert it with reduction=16, norm=True, as"),
    ],
)
def test_options_that_do_not_fit_are_named(
    theirs: nn.Module, options: dict[str, Any], advice: str
) -> None:
    message = refused(ours("cbam", **options), theirs.state_dict())
    assert advice in message
    assert "'layer1.0.bn2.attention' is CBAM(64, " in message
    assert message.endswith("; and 2 more")


def test_both_shapes_are_named(theirs: nn.Module) -> None:
    message = refused(ours("cbam", reduction=8), theirs.state_dict())
    assert "its channel_gate.fc1.weight is (8, 64, 1, 1) and the checkpoint's (4, 64)" in message


def test_widths_that_no_option_gives() -> None:
    theirs = Net(lambda c: {"nl": NonLocalAttn(c)})
    assert "no options of it give the shapes" in refused(ours("nl"), theirs.state_dict())


def test_options_that_no_tensor_shows() -> None:
    pooled = Net(lambda c: {"nl": foreign.nl_alexhex7(c, pool=True, norm=True)})
    message = refused(ours("nl"), pooled.state_dict())
    assert "insert it with sub_sample=True, pool_position='after', scaled=False" in message
    bam = Net(lambda c: {"bam": foreign.BAM(c)})
    assert "insert it with combine='mul'" in refused(ours("bam"), bam.state_dict())


def test_filters_of_other_frequencies_are_not_mixed() -> None:
    model = ours("fca", size=7)
    tensors = Net(lambda c: {"att": foreign.Fca(c)}).double().state_dict()
    name = "layer1.0.att.dct_layer.weight"
    tensors[name] = tensors[name] + torch.rand(64, 1, 1)  # one each, where ours has four alike
    assert "its basis is (16, 7, 7) and the checkpoint's (64, 7, 7)" in refused(model, tensors)
    small = ours("fca", size=14)
    assert "insert it with size=(7, 7)" in refused(
        small, Net(lambda c: {"att": foreign.Fca(c)}).state_dict()
    )


def test_attention_that_the_model_lacks(theirs: nn.Module) -> None:
    bare = prepared(Net(), seed=2)
    message = refused(bare, theirs.state_dict())
    assert "they look like 'cbam' with the names of 'official': insert it first" in message
    loaded = foveate.load_weights(bare, theirs.state_dict(), strict=False)
    assert all(".cbam." in name for name in loaded.unexpected)
    assert torch.equal(bare.fc.weight, theirs.fc.weight)


def test_attention_at_other_places(theirs: nn.Module) -> None:
    """What lies in another block is not taken for it, though it would fit."""
    model = Net()
    foveate.insert(model, "cbam", where="residual", at="layer1", init="paper", example=EXAMPLE)
    tensors = theirs.state_dict()
    assert "at other places than the model's" in refused(model, tensors)
    for name in list(tensors):
        if name.startswith("layer1.0.cbam"):
            del tensors[name]
    loaded = foveate.load_weights(model, tensors, strict=False)
    assert {name.rpartition(".attention")[0] for name in loaded.missing} == {"layer1.0.bn2"}
    assert {name[:8] for name in loaded.unexpected} == {"layer2.0", "layer2.1"}
    second = model.layer1[1].bn2.attention.channel_gate.fc1.bias
    assert torch.equal(second, tensors["layer1.1.cbam.ChannelGate.mlp.1.bias"].float())


def test_tensors_that_are_lacking(theirs: nn.Module, model: nn.Module) -> None:
    tensors = theirs.state_dict()
    del tensors["layer1.0.conv1.weight"]
    assert "lacks 1 tensors of the model (layer1.0.conv1.weight)" in refused(model, tensors)
    loaded = foveate.load_weights(model, tensors, strict=False)
    assert loaded.missing == ("layer1.0.conv1.weight",)


def test_a_foreign_network(model: nn.Module) -> None:
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    assert "no place for 7 tensors of the checkpoint (0.weight, 0.bias" in refused(
        model, other.state_dict()
    )


def test_a_model_without_values() -> None:
    with torch.device("meta"):
        model = Net()
    with pytest.raises(ValueError, match="meta device"):
        foveate.load_weights(model, Net().state_dict())


def test_the_report_prints(theirs: nn.Module) -> None:
    model = ours("cbam", "identity", num_classes=7)
    loaded = foveate.load_weights(model, theirs.state_dict(), head="skip")
    assert isinstance(loaded, Loaded)
    text = re.sub(r"\s+", " ", str(loaded))
    assert text.startswith("cbam: names as in 'official'")
    assert f"loaded {len(loaded.loaded)}" in text
    assert "layer1.0.cbam.ChannelGate.mlp.1.weight -> layer1.0.bn2.attention" in text
    assert "filled 4 layer1.0.bn2.attention.strength = 1" in text
    assert "skipped 2 fc.weight, fc.bias" in text


def test_frozen_and_shared_state_is_loaded_in_place(theirs: nn.Module, model: nn.Module) -> None:
    """The parameters stay the objects that an optimiser has, and keep whether they train."""
    before = dict(model.named_parameters())
    model.conv1.weight.requires_grad_(False)
    foveate.load_weights(model, theirs.state_dict())
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert not model.conv1.weight.requires_grad
    assert all(parameter.grad_fn is None for parameter in model.parameters())
