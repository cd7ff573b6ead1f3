"""Trained networks as files: whole again anywhere, never code, never half of another network."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import foveate
import tiny
from foveate.experiments.config import RunConfig
from foveate.experiments.saved import Trained
from foveate.experiments.training import checkpoint

IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny.train(tiny.config("cbam", host="small_cnn", epochs=1), folder)
    return folder


def changed(run: Path, to: Path, **changes: Any) -> Path:
    """The file of the run with other entries in its description."""
    tensors, about = checkpoint.load(run / "model.safetensors")
    for key, value in changes.items():
        if value is None:
            del about[key]
        elif isinstance(value, dict):
            about[key].update(value)
        else:
            about[key] = value
    checkpoint.save(to, tensors, about)
    return to


def test_a_run_comes_back_whole(run: Path) -> None:
    for path in (run, run / "model.safetensors", str(run)):
        model = foveate.load(path)
        assert not any(module.training for module in model.modules())
        data = tiny.digits()
        assert (model.classes, model.mean, model.std) == (data.classes, data.mean, data.std)
        assert model.image_size == data.image_size
        assert model.config.mechanism.key == "cbam"
        for name, tensor in load_file(run / "model.safetensors").items():
            assert torch.equal(model.network.state_dict()[name], tensor)
        assert model(IMAGES).shape == (3, 10)


def test_it_goes_to_a_folder_and_back_as_hubs_do(run: Path, tmp_path: Path) -> None:
    model = foveate.load(run)
    model.save_pretrained(tmp_path / "repo")
    assert {"model.safetensors", "config.json"} <= {p.name for p in (tmp_path / "repo").iterdir()}
    card = json.loads((tmp_path / "repo" / "config.json").read_text())
    assert card["classes"] == list(model.classes)
    assert card["config"]["mechanism"]["key"] == "cbam"
    for back in (Trained.from_pretrained(tmp_path / "repo"), foveate.load(tmp_path / "repo")):
        assert torch.equal(back(IMAGES), model(IMAGES))
        assert back.about() == model.about()


def test_places_on_this_machine_are_not_told(run: Path, tmp_path: Path) -> None:
    model = foveate.load(run)
    here = {"data": {"name": str(tmp_path / "set"), "root": str(tmp_path)}}
    about = model.config.model_dump(mode="json") | here
    about |= {"pretrained": str(tmp_path / "w.pth"), "teacher": str(tmp_path / "teacher")}
    about["recipe"]["distill"] = {"kind": "attention"}
    model.config = RunConfig.model_validate(about)
    model.save_pretrained(tmp_path / "repo")
    for name in ("model.safetensors", "config.json"):
        assert str(tmp_path).encode() not in (tmp_path / "repo" / name).read_bytes()
    assert torch.equal(foveate.load(tmp_path / "repo")(IMAGES), model(IMAGES))


def test_a_push_sends_the_same_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, bytes] = {}

    class Api:
        def __init__(self, **how: Any) -> None: ...

        def create_repo(self, repo_id: str, **how: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **how: Any) -> str:
            sent.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()})
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert foveate.load(run).push_to_hub("me/flowers") == "done"
    (tmp_path / "model.safetensors").write_bytes(sent["model.safetensors"])
    back = foveate.load(tmp_path)
    assert torch.equal(back(IMAGES), foveate.load(run)(IMAGES))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("os:abort", "names code of its own as its host, 'os:abort'"),
        ("subprocess:run?args=['touch','owned']", "names code of its own"),
        ("timm:resnet18?checkpoint_path=evil.pth", "'checkpoint_path', which reads other files"),
        ("timm:resnet18?pretrained=True", "option 'pretrained'"),
        ("resnet18?weights=DEFAULT", "option 'weights'"),
        ("timm:hf-hub:someone/model", "unknown host"),
        ("timm:local-dir:/tmp", "unknown host"),
    ],
)
def test_a_stranger_cannot_run_code(
    host: str, words: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = changed(run, tmp_path / "model.safetensors", config={"host": host})
    with pytest.raises(ValueError, match=words):
        foveate.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_code_of_ones_own_is_run_when_trusted(tmp_path: Path) -> None:
    tiny.train(tiny.config("se", epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"'tiny:net'.*trust_code=True, --trust-code"):
        foveate.load(tmp_path)
    assert foveate.load(tmp_path, trust_code=True)(IMAGES).shape == (3, 10)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        foveate.load(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": None}, "was not written by a run: config"),
        ({"classes": None}, "was not written by a run: classes"),
        ({"config": {"host": "resnet20"}}, "is of another architecture: it lacks 'conv1.weight'"),
        ({"config": {"mechanism": None}}, r"another architecture: it has '.*attention"),
        ({"classes": ["a", "b"]}, r"'.*' is \(10, \d+\) there and \(2, \d+\) here"),
        ({"classes": ["a"] * 10}, "the names of the classes must differ"),
        ({"std": [0.0]}, "std.0"),
        ({"mean": [float("nan")]}, "mean.0"),
        ({"config": {"host": "timm:resnet18?block=BasicBlock"}}, "refuses {'block': 'BasicBlock'}"),
        ({"config": {"mechanism": {"key": "se", "options": {"optimizer": 1}}}}, "is no option"),
        ({"in_channels": 3}, "1 means for 3 channels"),
        ({"image_size": 0}, "image_size"),
        ({"config": {"mechanism": {"key": "cbma"}}}, "unknown mechanism 'cbma'"),
        ({"config": {"mechanism": {"key": "se", "at": "(a+)+b"}}}, "which can take for ever"),
        ({"config": {"mechanism": {"key": "se", "at": ".*" * 9}}}, "which can take for ever"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Any], words: str, run: Path, tmp_path: Path
) -> None:
    path = changed(run, tmp_path / "other.safetensors", **changes)
    with pytest.raises(ValueError, match=words):
        foveate.load(path)


def test_files_that_are_none_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no '.*model\.safetensors'"):
        foveate.load(tmp_path)
    content = (run / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        foveate.load(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        foveate.load(tmp_path)
