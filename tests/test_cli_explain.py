"""``foveate explain`` and ``diagnose``: what they write, and that each mistake is one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import foveate
import tiny
from foveate.cli import main
from foveate.experiments.subject import open_subject, trained
from foveate.experiments.training import checkpoint

Capture = pytest.CaptureFixture[str]
CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny.train(tiny.config("cbam", host="small_cnn"), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the network, in colour; the files of both have the same names."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label in ("3", "7"):
        for split in ("train", "test"):
            (root / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


def test_explain_writes_a_sheet_for_each_image(
    run: Path, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    images = [str(folder / "test" / label / "0.png") for label in ("3", "7")]
    words = [*images, "--format", "png,svg,pdf", "--cams", "gradcam", "--out", str(tmp_path / "a")]
    assert main(["explain", str(run), *words]) == 0
    names = {f"{stem}.{ending}" for stem in ("0", "0-2") for ending in ("png", "svg", "pdf")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    assert set(map(Path, capsys.readouterr().out.split())) == {tmp_path / "a" / n for n in names}
    text = (tmp_path / "a" / "0-2.svg").read_text()
    assert "true: 7" in text
    assert "Class evidence, not attention" in text


def test_explain_draws_the_gates_over_a_folder(run: Path, folder: Path, tmp_path: Path) -> None:
    words = ["explain", str(run), "--data", str(folder), "--format", "svg", "--out", str(tmp_path)]
    assert main(words) == 0
    names = ("gate-histograms", "gates-by-depth", "class-profiles", "gradients-by-depth")
    assert {path.stem for path in tmp_path.iterdir()} == set(names)


def test_the_pictures_of_an_image_and_of_the_data_do_not_share_a_name(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    image = tmp_path / "gate-histograms.png"
    image.write_bytes((folder / "test" / "3" / "0.png").read_bytes())
    words = ["--data", str(folder), "--cams", "none", "--format", "svg"]
    assert main(["explain", str(run), str(image), *words, "--out", str(tmp_path / "a")]) == 0
    assert len(list((tmp_path / "a").iterdir())) == 5
    assert "predicted" in (tmp_path / "a" / "gate-histograms-2.svg").read_text()


def test_explain_takes_a_network_by_name(folder: Path, tmp_path: Path) -> None:
    host = torchvision.models.resnet18(num_classes=3)
    torch.save(host.state_dict(), tmp_path / "host.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\n7\n")
    image = str(folder / "test" / "7" / "1.png")
    words = ["--weights", str(tmp_path / "host.pth"), "--classes", str(tmp_path / "names.txt")]
    words += ["--size", "64", "--mean", "0.5", "--std", "0.5,0.5,0.5", "--cams", "none"]
    words += ["--layer", "layer1.0", "--features", "2", "--format", "svg"]
    assert main(["explain", "resnet18", image, *words, "--out", str(tmp_path / "a")]) == 0
    text = (tmp_path / "a" / "1.svg").read_text()
    assert "true: 7" in text
    assert "Features: 2 strongest of 64 maps of layer1.0" in text
    assert "attention" not in text


def test_diagnose_prints_a_table_or_json(
    run: Path, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["diagnose", str(run), str(folder), "--out", str(tmp_path / "new" / "d.json")]
    assert main(words) == 0
    assert "8 images, metric" in capsys.readouterr().out
    kept = json.loads((tmp_path / "new" / "d.json").read_text())
    assert main([*words, "--json", "--threshold", "redundant=1e9"]) == 0
    strict = json.loads(capsys.readouterr().out)
    assert strict["images"] == kept["images"] == 8
    assert strict["thresholds"]["redundant"] == 1e9
    assert all("redundant" in site["verdict"] for site in strict["sites"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}"], "nothing to draw: give files of images, or --data"),
        (["{run}", "{image}", "--format", "gif"], "unknown format 'gif'"),
        (["{run}", "{image}", "--cams", "gradcma"], "did you mean 'gradcam'"),
        (["{run}", "{image}", "--point", "3"], "--point takes ROW,COLUMN, but got '3'"),
        (["{run}", "{image}", "--point", "99,0"], "(y, x) = (99, 0)"),
        (["{run}", "{image}", "--layer", "layr"], "unknown layer 'layr'"),
        (["{run}", "{image}", "--features", "0"], "features must be at least 1"),
        (["{run}", "{image}", "--mean", "a"], "--mean takes numbers with commas, but got 'a'"),
        (["{run}", "{image}", "--mean", "1,2"], "the network has 1 channels, but got 2 numbers"),
        (["{run}", "{image}", "--weights", "x"], "weights are those of the run, but got weights=x"),
        (["{run}", "{image}", "none.png"], "there is no image 'none.png'"),
        (["{run}", "{broken}"], "broken.png' cannot be read as an image"),
        (["{run}", "--data", "{image}"], "unknown data set"),
        (["{run}", "--data", "{folder}", "--split", "tset"], "unknown split 'tset'"),
        (["{folder}", "{image}"], "model.safetensors'; a finished run has written one"),
        (["{broken}.safetensors", "{image}"], "there is no"),
        (["resnte18", "{image}"], "did you mean 'resnet18'"),
        (["resnet18", "{image}", "--classes", "{broken}"], "cannot be read"),
        (["resnet18", "{image}", "--weights", "{broken}"], "broken.png"),
        (["{run}", "{image}", "--out", "{image}"], "cannot write"),
        (["{run}", "{image}", "--out", "{place}"], "0.png is one of the images; give another"),
        (["{run}", "{image}", "--size", "0"], "image_size must be at least 1"),
        (["{run}", "{image}", "--std", "0"], "std finite and above 0"),
        (["{run}", "{image}", "--mean", "nan"], "mean must be finite"),
        (["vgg11", "{image}", "--size", "16"], "vgg11 does not take images of 16 x 16 pixels"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    run: Path, folder: Path, tmp_path: Path, capsys: Capture, words: list[str], message: str
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    places = {
        "run": run,
        "folder": folder,
        "image": folder / "test" / "3" / "0.png",
        "broken": tmp_path / "broken.png",
        "place": folder / "test" / "3",
    }
    out = tmp_path / "out"
    command = ["explain", "--out", str(out), *(word.format(**places) for word in words)]
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "deaf=1"], "unknown threshold 'deaf'; did you mean 'dead'?"),
        (["--threshold", "dead"], "a threshold is written dead=NUMBER, but got 'dead'"),
        (["--threshold", "dead=nan"], "a threshold is written dead=NUMBER, but got 'dead=nan'"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--split", "tset"], "unknown split 'tset'"),
    ],
)
def test_a_mistake_of_diagnose_is_one_line(
    run: Path, folder: Path, capsys: Capture, words: list[str], message: str
) -> None:
    assert main(["diagnose", str(run), str(folder), *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_class_that_the_network_lacks_is_named(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    for label in ("3", "ant"):
        (tmp_path / label).mkdir()
        for i in range(9):
            Image.new("RGB", (20, 20), (i, i, i)).save(tmp_path / label / f"{i}.png")
    assert main(["diagnose", str(run), str(tmp_path)]) == 2
    assert "has the class 'ant', which run lacks" in capsys.readouterr().err


def test_a_run_is_opened_as_it_was_trained(run: Path) -> None:
    subject = open_subject(str(run))
    data = tiny.digits()
    assert (subject.classes, subject.mean, subject.std) == (data.classes, data.mean, data.std)
    (images, labels), *_ = subject.batches(data, chosen=[5, 2])
    expected = (data.test.images[[5, 2]].float() / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(images, expected)
    assert torch.equal(labels, data.test.labels[[5, 2]])
    result = json.loads((run / "result.json").read_text())
    found = torch.cat([subject.module(x).argmax(1) == y for x, y in subject.batches(data)])
    assert 100 * float(found.double().mean()) == pytest.approx(result["test_accuracy"])
    assert not subject.module.training


def test_labels_are_those_of_the_network(run: Path, folder: Path) -> None:
    subject = open_subject(str(run / "model.safetensors"))
    data = subject.load_data(str(folder))
    labels = torch.cat([labels for _, labels in subject.batches(data)])
    assert sorted(labels.tolist()) == [3] * 4 + [7] * 4
    assert labels.tolist() != sorted(labels.tolist())  # shuffled: gates are exchanged in batches
    assert subject.label(folder / "test" / "7" / "0.png") == 7
    assert subject.label(folder / "other.png") is None


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {"epoch": 3})
    with pytest.raises(ValueError, match=re.escape("a.safetensors was not written by a run")):
        trained(tmp_path / "a.safetensors")


def test_a_missing_extra_is_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    assert main(["explain", "resnet18", "a.png"]) == 2
    assert "pip install 'foveate[explain]'" in capsys.readouterr().err


def test_without_attention_a_diagnosis_says_so(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    tiny.train(tiny.config(None, host="small_cnn"), tmp_path / "bare")
    assert main(["diagnose", str(tmp_path / "bare"), str(folder)]) == 2
    assert "there is no attention in this Sequential" in capsys.readouterr().err


def test_the_sheet_of_the_command_line_is_that_of_the_function(run: Path, folder: Path) -> None:
    subject = open_subject(str(run))
    image = subject.image(folder / "test" / "3" / "0.png")
    with foveate.record(subject.module) as record:
        subject.module(image)
    figure = foveate.explain.sheet(subject.module, image, feed=subject.feed, cams=())
    shown = figure.axes[0].get_images()[0].get_array()
    pixels = image[0] * torch.tensor(subject.std).view(-1, 1, 1)
    pixels = pixels + torch.tensor(subject.mean).view(-1, 1, 1)
    np.testing.assert_allclose(shown[..., 0], pixels[0].clamp(0, 1), atol=1e-6)
    assert len(record) == 3
