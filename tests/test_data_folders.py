"""Folders: both layouts, odd names, and one clear line for what cannot be used."""

from pathlib import Path

import pytest

from folder_data import make_folder
from foveate.errors import InvalidValueError
from foveate.experiments.data.load import load_data


def test_classes_alone_are_split_and_the_splits_recorded(tmp_path: Path) -> None:
    data = load_data(str(make_folder(tmp_path, {"b": 20, "a": 20})), split_seed=7)
    assert data.classes == ("a", "b")
    assert data.name == tmp_path.name
    splits = data.record["splits"]
    assert [splits[key]["images"] for key in ("train", "val", "test")] == [29, 3, 8]
    assert splits["test"]["from"] == "0.2 of train, each class in proportion, seed=7"
    paths = [path for split in (data.train, data.val, data.test) for path in split.paths]
    assert len(paths) == len(set(paths)) == 40
    for path, label in zip(data.train.paths, data.train.labels.tolist(), strict=True):
        assert path.parent.name == data.classes[label]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_given_splits_are_taken_as_they_are(tmp_path: Path, val: str) -> None:
    for split, count in (("train", 4), (val, 2), ("test", 3)):
        make_folder(tmp_path / split, {"a": count, "b": count})
    data = load_data(str(tmp_path))
    for split, name in ((data.train, "train"), (data.val, val), (data.test, "test")):
        assert {path.relative_to(tmp_path).parts[0] for path in split.paths} == {name}
    assert {split["from"] for split in data.record["splits"].values()} == {"given"}


def test_a_missing_split_comes_out_of_training(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"a": 10, "b": 10})
    make_folder(tmp_path / "val", {"a": 2, "b": 2})
    data = load_data(str(tmp_path))
    assert [len(split) for split in (data.train, data.val, data.test)] == [16, 4, 4]
    assert {path.relative_to(tmp_path).parts[0] for path in data.test.paths} == {"train"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert load_data(str(make_folder(tmp_path, {"train": 5, "tram": 5}))).classes[0] == "train"


def test_names_in_any_script_and_deeper_folders(tmp_path: Path) -> None:
    names = {"кошка": 4, "犬 と 猫": 4, "été": 4, "قطة": 4}
    make_folder(tmp_path, names)
    make_folder(tmp_path / "été", {"deeper": 3})
    data = load_data(str(tmp_path))
    assert data.classes == tuple(sorted(names))
    assert sum(split["images"] for split in data.record["splits"].values()) == 19


def test_other_files_are_ignored(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 5, "b": 5, ".cache": 5})
    make_folder(tmp_path / "a", {".checkpoints": 2})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"\0")
    (tmp_path / "labels.csv").write_text("a,b")
    data = load_data(str(tmp_path))
    assert data.classes == ("a", "b")
    assert sum(split["images"] for split in data.record["splits"].values()) == 10
    assert data.record["skipped"] == {}


def test_a_linked_class_folder_counts(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere", {"real": 5})
    make_folder(tmp_path / "set", {"b": 5})
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere" / "real")
    assert load_data("set", root=tmp_path).classes == ("a", "b")


def _one_class(root: Path) -> None:
    make_folder(root, {"only": 5})


def _empty_class(root: Path) -> None:
    make_folder(root, {"a": 5, "b": 5, "nothing": 0})


def _unknown_test_class(root: Path) -> None:
    make_folder(root / "train", {"a": 5, "b": 5})
    make_folder(root / "test", {"a": 2, "stranger": 2})


def _empty_test(root: Path) -> None:
    make_folder(root / "train", {"a": 5, "b": 5})
    (root / "test").mkdir()


def _two_val_folders(root: Path) -> None:
    for split in ("train", "val", "valid"):
        make_folder(root / split, {"a": 5, "b": 5})


def _same_folder_twice(root: Path) -> None:
    for split in ("train", "test"):
        make_folder(root / split, {"a": 5, "b": 5})
    (root / "val").symlink_to(root / "test")


def _same_name_twice(root: Path) -> None:
    make_folder(root, {"caf\u00e9": 5, "cafe\u0301": 5, "b": 5})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_one_class, r"has 1 class folder\(s\), but at least 2 are needed"),
        (lambda root: None, r"has 0 class folder\(s\)"),
        (_empty_class, "nothing' holds no image; accepted: .bmp"),
        (_unknown_test_class, "has the class 'stranger', which training lacks; it knows: a, b"),
        (_empty_test, "test' holds no class folder"),
        (_two_val_folders, "has two val folders"),
        (_same_folder_twice, "test.* and the val folder are one and the same"),
        (_same_name_twice, "has two folders that read 'caf\u00e9'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(InvalidValueError, match=message) as error:
        load_data(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_test_split_may_lack_a_class(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", {"a": 5, "b": 5})
    make_folder(tmp_path / "test", {"b": 3})
    assert load_data(str(tmp_path)).test.labels.tolist() == [1, 1, 1]
