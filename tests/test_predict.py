"""``foveate predict`` and ``foveate export`` on the command line: same answers from any file."""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import foveate
import tiny
from foveate.cli import main
from foveate.experiments.prediction import Wanted, find_images, predict
from foveate.experiments.subject import Subject
from foveate.experiments.training import checkpoint

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny.train(tiny.config("cbam", host="small_cnn", epochs=3), folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as files, five a class, in folders of their classes."""
    root = tmp_path_factory.mktemp("images")
    data = tiny.digits()
    for i, (pixels, label) in enumerate(zip(data.test.images, data.test.labels, strict=True)):
        at = root / "test" / str(int(label))
        at.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(at / f"{i:03}.png")
    for label in range(10):
        at = root / "train" / str(label)
        at.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(data.train.images[data.train.labels == label][i, 0].numpy()).save(
                at / f"{i}.png"
            )
    return root


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "digits.onnx"
    assert main(["export", str(run), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that cannot be used: half of one, of another host, of fewer classes."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}.safetensors" for name in ("cut", "other", "fewer")}
    content = (run / "model.safetensors").read_bytes()
    paths["cut"].write_bytes(content[: len(content) // 2])
    tensors, about = checkpoint.load(run / "model.safetensors")
    other = {**about, "config": {**about["config"], "host": "resnet20"}}
    checkpoint.save(paths["other"], tensors, other)
    checkpoint.save(paths["fewer"], tensors, {**about, "classes": ["a", "b"]})
    return paths


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_gives_a_line_for_each_image(run: Path, images: Path, capsys: Capture) -> None:
    assert main(["predict", str(run), str(images / "test"), "--batch-size", "7"]) == 0
    rows = table(capsys.readouterr().out)
    assert [row["image"] for row in rows] == sorted(map(str, (images / "test").rglob("*.png")))
    model, data = foveate.load(run), tiny.digits()
    by_name = {int(Path(row["image"]).stem): row for row in rows}
    pixels = (data.test.images.float() / 255 - data.mean[0]) / data.std[0]
    with torch.no_grad():
        expected = model(pixels).softmax(1)
    for index, row in by_name.items():
        value, label = expected[index].max(0)
        assert row["class"] == data.classes[label]
        assert float(row["probability"]) == pytest.approx(float(value), abs=1e-4)


def test_an_exported_file_says_the_same(
    run: Path, exported: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = [str(images / "test"), "--top", "3"]
    assert main(["predict", str(run), *words]) == 0
    own = table(capsys.readouterr().out)
    assert main(["predict", str(exported), *words, "--out", str(tmp_path / "a" / "p.csv")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "p.csv")
    other = table((tmp_path / "a" / "p.csv").read_text())
    assert [row["rank"] for row in own[:4]] == ["1", "2", "3", "1"]
    assert [(r["image"], r["class"]) for r in own] == [(r["image"], r["class"]) for r in other]


def test_images_are_found_by_folder_file_and_pattern(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "deep/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_images([str(tmp_path / "b.jpg"), str(tmp_path)])
    assert [p.name for p in found] == ["b.jpg", "a.png", "c.png"]
    assert [p.name for p in find_images([str(tmp_path / "**" / "*.png")])] == ["a.png", "c.png"]
    for word in ("*.gif", "none", "**/*.txt"):
        with pytest.raises(ValueError, match="is no image, no folder with images and no pattern"):
            find_images([str(tmp_path / word)])


def test_a_broken_image_stops_all_or_is_left_out(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    out = tmp_path / "p.csv"
    assert main(["predict", str(run), str(tmp_path), "--out", str(out)]) == 2
    assert "bad.png' cannot be read as an image: cannot identify" in capsys.readouterr().err
    assert not out.exists()
    assert main(["predict", str(run), str(tmp_path), "--skip-bad", "--out", str(out)]) == 0
    assert [Path(row["image"]).name for row in table(out.read_text())] == ["good.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "{run}", "{images}", "--top", "11"], "10 classes, but got top=11"),
        (["predict", "{run}", "{images}", "--threshold", "2"], "threshold must be from 0 to 1"),
        (["predict", "{run}", "{images}", "--masks", "m"], "masks are of segmentations"),
        (["predict", "{run}", "{images}", "--batch-size", "0"], "batch_size must be at least 1"),
        (["predict", "{run}", "nowhere"], "'nowhere' is no image"),
        (["predict", "missing.onnx", "{images}"], "there is no 'missing.onnx'"),
        (["predict", "{onnx}", "{images}", "--size", "8"], "has its own size"),
        (["predict", "{broken}", "{images}"], "is not a whole ONNX file"),
        (["predict", "{cut}", "{images}"], "is not a readable checkpoint"),
        (["predict", "{other}", "{images}"], "is of another architecture: it lacks 'conv1.weight'"),
        (
            ["predict", "{fewer}", "{images}"],
            "is of another architecture: 'fc2.weight' is (10, 512)",
        ),
        (["export", "{other}"], "is of another architecture"),
        (["export", "{run}", "--to", "tflite"], "unknown target 'tflite'"),
        (["export", "{run}", "--int8"], "--int8 needs --data"),
        (["export", "{run}", "--data", "{images}"], "--data is for --int8"),
        (["export", "{run}", "--to", "torch", "--opset", "17"], "--opset is for --to onnx"),
        (["export", "{run}", "--gates"], "--gates is for --int8"),
        (["export", "{run}", "--int8", "--data", "{images}", "--limit", "0"], "limit must be at"),
        (["export", "{run}", "--int8", "--data", "{images}", "--opset", "13"], "--opset is not"),
        (["export", "{run}", "--opset", "5"], "opset must be from 11"),
        (["export", "{run}", "--out", "no/such/m.onnx"], "cannot write no/such/m.onnx"),
        (["export", "{run}", "--to", "torch", "--out", "m.onnx"], "ends in .pt2"),
        (["export", "{run}", "--to", "tensorrt"], "built by trtexec"),
        (["export", "nothing"], "unknown host 'nothing'"),
        (["export", "timm:resnet18.nosuchtag"], "host 'timm:resnet18.nosuchtag' cannot be built"),
        (["export", "resnet18?width_per_group=-1"], "refuses {'width_per_group': -1}"),
        (["predict", "timm:vit_tiny_patch16_224", "{images}", "--size", "96"], "does not take ima"),
        (["predict", "~nosuchuser/run", "{images}"], "'~nosuchuser/run' is no usable path"),
        (["predict", "{run}", "~nosuchuser/*.png"], "'~nosuchuser/*.png' is no usable path"),
        (["predict", "x" * 5000, "{images}"], "is no usable path: File name too long"),
        (["predict", "{run}", "x" * 5000], "is no usable path: File name too long"),
        (["export", "{run}", "--out", "x" * 5000 + ".onnx"], "File name too long"),
        (["predict", "{run}", "{images}", "--out", "x" * 5000], "File name too long"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    run: Path,
    images: Path,
    exported: Path,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported.read_bytes()[:-50])
    capsys.readouterr()
    named = {"run": run, "images": images / "test", "onnx": exported, "broken": broken, **files}
    assert main([word.format(**named) for word in words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [broken]


def test_names_of_files_may_be_any_bytes(run: Path, tmp_path: Path, capsysbinary: Any) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", name)
    assert main(["predict", str(run), str(tmp_path)]) == 0
    assert name in capsysbinary.readouterr().out
    assert main(["predict", str(run), str(tmp_path), "--out", str(tmp_path / "o.csv")]) == 0
    assert name in (tmp_path / "o.csv").read_bytes()


def test_a_table_that_cannot_be_written_leaves_no_masks(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("s", Halves(), ("x", "y", "z"), (0.5,) * 3, (0.5,) * 3, 16, "segment")
    monkeypatch.setattr("foveate.cli.looked_at.open_model", lambda *_, **__: subject)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "o.csv").mkdir()
    words = ["predict", "it", str(tmp_path / "a.png"), "--masks", str(tmp_path / "m")]
    assert main([*words, "--out", str(tmp_path / "o.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not list((tmp_path / "m").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "m", "o.csv"]


def test_files_are_named_after_the_model(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cbam.1", "cbam.2"):
        shutil.copytree(run, tmp_path / name)
        assert main(["export", name]) == 0
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"cbam.1.onnx", "cbam.2.onnx"}


def test_a_file_of_elsewhere_is_refused(tmp_path: Path, capsys: Capture) -> None:
    foveate.export.onnx(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8), tmp_path / "a.onnx")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "a.onnx"), str(tmp_path / "a.png")]) == 2
    assert "names no classes" in capsys.readouterr().err


def test_eight_bits_from_the_command_line(
    run: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["export", str(run), "--int8", "--data", str(images), "--calibrate", "30"]
    out = tmp_path / "m.onnx"
    assert main([*words, "--max-drop", "60", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "points lost" in said
    assert "least signal to noise" in said
    assert main(["predict", str(out), str(images / "test")]) == 0
    assert len(table(capsys.readouterr().out)) == len(tiny.digits().test)
    assert main([*words, "--max-drop", "-100", "--out", str(tmp_path / "none.onnx")]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "none.onnx").exists()


def test_eight_bits_for_openvino_with_every_layer(
    run: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["export", str(run), "--to", "openvino", "--int8", "--data", str(images), "--json"]
    assert main([*words, "--max-drop", "60", "--out", str(tmp_path / "m.xml")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {path.name for path in tmp_path.iterdir()} == {"m.xml", "m.bin"}
    assert found["path"] == str(tmp_path / "m.xml")
    assert len(found["layers"]) > 5
    assert found["before"] - found["after"] <= 60


@pytest.mark.parametrize(("to", "names"), [("torch", {"m.pt2"}), ("openvino", {"m.xml", "m.bin"})])
def test_other_targets_from_the_command_line(
    to: str, names: set[str], run: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / next(name for name in sorted(names, reverse=True))
    assert main(["export", str(run), "--to", to, "--out", str(out)]) == 0
    assert "agrees within" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == names


def test_profile_compares_runtimes(capsys: Capture) -> None:
    words = ["profile", "small_cnn", "se", "--size", "16", "--runtime", "eager,onnxruntime"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("none", "se", "eager", "onnxruntime", "Milliseconds"))
    assert main([*words[:-1], "eager,onyx"]) == 2
    assert "unknown runtime 'onyx'" in capsys.readouterr().err


class Finder(nn.Module):
    """Finds one box in each image, at the same place, and one below the threshold."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        box = torch.tensor([[8.0, 4.0, 16.0, 12.0], [0.0, 0.0, 99.0, 99.0]])
        found = {"boxes": box, "scores": torch.tensor([0.9, 0.3]), "labels": torch.tensor([2, 1])}
        return [found for _ in images]


class Halves(nn.Module):
    """The left half of an image is of one class, the right one of another."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        right = (torch.arange(images.shape[3]) >= images.shape[3] / 2).float()
        left = (1 - right).expand(images.shape[2:])
        maps = torch.stack([left, right.expand_as(left), torch.zeros_like(left)])
        return maps.expand(len(images), -1, -1, -1)


def test_boxes_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    subject = Subject("s", Finder(), ("cat", "dog"), (0.5,) * 3, (0.5,) * 3, 16, "detect")
    rows = list(predict(subject, [tmp_path / "a.png"], Wanted()))
    place = {"left": 32.0, "top": 16.0, "right": 64.0, "bottom": 32.0}  # cut at the image's end
    score = pytest.approx(0.9)
    assert rows == [{"image": str(tmp_path / "a.png"), "class": "dog", "score": score, **place}]
    assert len(list(predict(subject, [tmp_path / "a.png"], Wanted(threshold=0.1)))) == 2


def test_masks_have_the_size_of_the_image_and_shares_are_of_its_pixels(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (40, 10)).save(tmp_path / name)
    subject = Subject("s", Halves(), ("x", "y", "z"), (0.5,) * 3, (0.5,) * 3, 16, "segment")
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    (tmp_path / "masks").mkdir()
    rows = list(predict(subject, paths, Wanted(masks=tmp_path / "masks")))
    assert [(row["class"], row["share"]) for row in rows] == [("x", 0.5), ("y", 0.5)] * 2
    mask = np.asarray(Image.open(tmp_path / "masks" / "b.png"))
    assert mask.shape == (10, 40)
    assert (mask == (np.arange(40) >= 20)).all()
    with pytest.raises(ValueError, match="a mask would take the place of an image"):
        list(predict(subject, paths, Wanted(masks=tmp_path)))
    twins = [tmp_path / "a.png", tmp_path / "a.jpg"]
    with pytest.raises(ValueError, match="would have one name"):
        list(predict(subject, twins, Wanted(masks=tmp_path / "masks")))


def test_masks_of_many_classes_keep_their_numbers(tmp_path: Path) -> None:
    class Last(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = torch.zeros(len(images), 300, *images.shape[2:])
            maps[:, 299] = 1
            return maps

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    classes = tuple(map(str, range(300)))
    subject = Subject("s", Last(), classes, (0.5,) * 3, (0.5,) * 3, 8, "segment")
    (tmp_path / "masks").mkdir()
    rows = list(predict(subject, [tmp_path / "a.png"], Wanted(masks=tmp_path / "masks")))
    assert [row["class"] for row in rows] == ["299"]
    assert set(np.asarray(Image.open(tmp_path / "masks" / "a.png")).ravel().tolist()) == {299}
