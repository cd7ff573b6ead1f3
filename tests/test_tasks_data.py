"""Annotated images: what is read, what moves together, what is refused."""

import dataclasses
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scene_data
from foveate.cli import main
from foveate.experiments.data.augment import PRESETS
from foveate.experiments.data.batches import batches
from foveate.experiments.data.load_scenes import load_boxes, load_masks
from foveate.experiments.data.moving import LEAST_SEEN, augment_scenes
from foveate.experiments.data.scenes import VOID, Boxes, letterboxed, read_mask, stretched

SIZE = 64
UNPACK = Path(__file__).parents[2] / "shared" / "data" / "unpack"


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_data.make_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_data.make_instances(tmp_path_factory.mktemp("instances"))


def test_masks_are_stretched_by_nearest_with_their_images(masks):
    data = load_masks(str(masks), image_size=SIZE)
    assert (data.task, data.classes, len(data.train)) == ("segment", ("0", "1", "2"), 8)
    image, mask = data.test.scene(0, SIZE)
    assert image.shape == (3, SIZE, SIZE)
    values = np.array(Image.open(masks / "test" / "masks" / "00.png"))
    rows, columns = ((np.arange(SIZE) + 0.5) * side / SIZE for side in values.shape)
    assert np.array_equal(mask, values[rows.astype(int)[:, None], columns.astype(int)])
    assert set(mask.unique().tolist()) == {0, 1, 2, VOID}


def test_void_is_no_class_and_classes_have_their_names(tmp_path):
    scene_data.make_masks(tmp_path, void=1)  # between the classes: those above move down
    (tmp_path / "classes.txt").write_text("ground\nthing\n")
    data = load_masks(str(tmp_path), image_size=SIZE, void=1)
    values = np.array(Image.open(tmp_path / "test" / "masks" / "00.png"))
    _, mask = data.test.scene(0, SIZE)
    assert data.classes == ("ground", "thing")
    assert set(mask.unique().tolist()) == {0, 1, VOID}
    share = float((mask == VOID).double().mean())
    assert share == pytest.approx((values == 1).mean(), abs=0.03)


def test_boxes_lie_around_instances_and_follow_the_letterbox(instances):
    data = load_boxes(str(instances), image_size=80)  # twice the longer side
    image, found = data.test.scene(1, 80)
    values = np.array(Image.open(instances / "test" / "masks" / "01.png"))
    for box, thing in zip(found.boxes.tolist(), (1, 2), strict=True):
        ys, xs = np.nonzero(values == thing)
        edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert box == [2 * edge for edge in edges]
    assert (data.classes, found.labels.tolist()) == (("object",), [0, 0])
    assert bool((image[:, 64:] == image[:, -1:, -1:]).all())  # the border below 32 rows of twice
    assert data.mean == (0.0, 0.0, 0.0)  # detectors normalise by themselves


def test_coco_gives_the_same_boxes_with_names(instances, tmp_path):
    named = load_boxes(str(scene_data.make_coco(tmp_path)), image_size=SIZE)
    plain = load_boxes(str(instances), image_size=SIZE)
    assert named.classes == ("thing", "other")
    for theirs, ours in zip(named.test.targets, plain.test.targets, strict=True):
        assert torch.equal(theirs.boxes, ours.boxes)
        assert theirs.labels.tolist() == list(range(len(ours.labels)))


def test_a_missing_split_is_held_out_of_training(tmp_path):
    data = load_masks(str(scene_data.make_masks(tmp_path, {"train": 10, "test": 2})))
    assert [len(split) for split in (data.train, data.val, data.test)] == [9, 1, 2]
    assert not set(data.train.paths) & set(data.val.paths)


def test_the_fingerprint_follows_masks(tmp_path):
    one = load_masks(str(scene_data.make_masks(tmp_path / "a")), image_size=SIZE)
    two = load_masks(str(scene_data.make_masks(tmp_path / "b")), image_size=SIZE)
    assert one.record["fingerprint"] == two.record["fingerprint"]
    path = tmp_path / "b" / "val" / "masks" / "00.png"
    mask = np.array(Image.open(path))
    mask[20:30] = 1
    scene_data.save(path, mask)
    other = load_masks(str(tmp_path / "b"), image_size=SIZE)
    assert other.record["fingerprint"] != one.record["fingerprint"]


def outlined(pixels: torch.Tensor) -> list[int]:
    """The box around what is bright."""
    ys, xs = (pixels > 0.5).nonzero().unbind(1)
    return [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


def test_boxes_and_masks_move_with_the_pixels():
    """One bright rectangle in every image, known three times: as pixels, mask and box."""
    images = torch.zeros(24, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 20:44, 12:40] = 255
    masks = [image[0] // 255 for image in images]
    boxes = [Boxes(torch.tensor([[12.0, 20, 40, 44]]), torch.tensor([3])) for _ in images]
    how = dataclasses.replace(PRESETS["flip_crop"])
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    moved, with_masks = augment_scenes(images, masks, how, seeds[0])
    again, with_boxes = augment_scenes(images, boxes, how, seeds[1])
    assert torch.equal(moved, again)
    left = set()
    for pixels, mask, target in zip(moved, with_masks, with_boxes, strict=True):
        assert ((pixels[0] > 0.5) != (mask == 1)).sum() <= 40  # the edge is interpolated
        assert target.labels.tolist() == [3]
        assert target.boxes[0].tolist() == pytest.approx(outlined(pixels[0]), abs=1.5)
        left.add(target.boxes[0, 0].item())
    assert len(left) > 12  # each image in its own way


def test_boxes_that_a_crop_hides_are_left_out():
    images = torch.zeros(64, 3, 64, 64, dtype=torch.uint8)
    boxes = [Boxes(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([0])) for _ in images]
    how = dataclasses.replace(PRESETS["flip_crop"], flip=False)
    _, targets = augment_scenes(images, boxes, how, torch.Generator().manual_seed(0))
    counts = {len(target.labels) for target in targets}
    assert counts == {0, 1}
    for target in targets:
        sides = target.boxes[:, 2:] - target.boxes[:, :2]
        assert bool((sides.prod(1) >= LEAST_SEEN * 16**2).all())
        assert bool((target.boxes >= 0).all())
        assert bool((target.boxes <= 64).all())


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_batches_are_a_function_of_seed_epoch_and_step(kind, masks, instances):
    load, folder = {"masks": (load_masks, masks), "boxes": (load_boxes, instances)}[kind]
    data = load(str(folder), image_size=SIZE)
    how = {"batch_size": 3, "augment": "full", "seed": 1, "epoch": 2, "shuffle": True}
    torch.manual_seed(0)
    whole = list(batches(data.train, data, **how))
    torch.manual_seed(1)  # nothing depends on the global state
    later = list(batches(data.train, data, **how, start=1))
    assert len(whole) == 3
    for (images, known), (same, too) in zip(whole[1:], later, strict=True):
        assert torch.equal(images, same)
        assert str(known) == str(too)
    other = next(batches(data.train, data, **{**how, "epoch": 3}))
    assert not torch.equal(other[0], whole[0][0])


def test_files_that_are_too_many_to_hold_give_the_same_batches(masks, monkeypatch):
    held = load_masks(str(masks), image_size=SIZE)
    monkeypatch.setattr("foveate.experiments.data.load_scenes.HELD_BYTES", 0)
    streamed = load_masks(str(masks), image_size=SIZE)
    assert streamed.train.images is None
    streamed = dataclasses.replace(streamed, mean=held.mean, std=held.std)  # estimated
    for (a, b), (c, d) in zip(
        batches(held.test, held, batch_size=3), batches(streamed.test, streamed, batch_size=3),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, c)
        assert torch.equal(b, d)


def test_shapes_are_kept_or_stretched():
    picture = Image.new("RGB", (40, 20), "white")
    assert bool((stretched(picture, 8) == 255).all())
    boxed = letterboxed(picture, 8)
    assert bool((boxed[:, :4] == 255).all())
    assert bool((boxed[:, 4:] != 255).all())


def spoil(root: Path, how: str) -> None:
    """Make one thing wrong in a folder."""
    image, mask = (root / "val" / kind / "01.png" for kind in ("images", "masks"))
    if how == "missing":
        mask.unlink()
    elif how == "other size":
        scene_data.save(mask, np.zeros((5, 7)))
    elif how == "only void":
        scene_data.save(mask, np.full((32, 40), 255))
    elif how == "nothing in it":
        scene_data.save(mask, np.zeros((32, 40)))
    elif how == "unknown class":
        scene_data.save(mask, np.full((32, 40), 7))
    elif how == "colours":
        scene_data.save(mask, np.zeros((32, 40, 3)))
    elif how == "broken image":
        image.write_bytes(b"no picture")
    elif how == "cut image":
        Image.effect_noise((40, 32), 90).convert("RGB").save(image, "JPEG")
        image.write_bytes(image.read_bytes()[:-200])
    elif how == "broken mask":
        mask.write_bytes(b"no picture")
    elif how == "two names":
        (root / "classes.txt").write_text("a\nb\n")
    elif how == "a name twice":
        (root / "classes.txt").write_text("a\na\n")
    elif how == "no images":
        for path in (root / "train" / "images").iterdir():
            path.unlink()


MASKS = {
    "missing": "01.png' is missing",
    "other size": "its mask is 7 x 5 pixels, but the image 40 x 32",
    "only void": "its mask is empty: every pixel of it is void",
    "unknown class": "its mask has the class 7, but there are 3: 0 to 2; void is 255",
    "colours": "its mask must have one number a pixel, but it is a RGB picture",
    "broken image": "01.png (cannot identify image file",
    "cut image": "01.png (image file is truncated",
    "broken mask": "01.png (cannot identify image file",
    "two names": "its mask has the class 2, but there are 2: 0 to 1",
    "a name twice": "names 'a' twice",
    "no images": "holds no image",
}
INSTANCES = {
    "missing": "01.png' is missing",
    "other size": "its mask is 7 x 5 pixels",
    "nothing in it": "its mask is empty: there is no instance in it",
    "broken image": "01.png (cannot identify image file",
    "cut image": "01.png (image file is truncated",
    "two names": "instance masks have no classes",
}


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> str:
    """The one line of a command that fails before it writes anything."""
    out = tmp_path / "out"
    command = ["train", *words, "--host", "tiny:deep", "--image-size", "64", "--tracker", "none"]
    assert main([*command, "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert not out.exists()
    return lines[0]


@pytest.mark.parametrize("how", MASKS)
def test_bad_masks_are_one_line(how, tmp_path, capsys):
    spoil(scene_data.make_masks(tmp_path / "data"), how)
    line = refused(capsys, tmp_path, "--task", "segment", "--data", str(tmp_path / "data"))
    assert MASKS[how] in line


@pytest.mark.parametrize("how", INSTANCES)
def test_bad_instances_are_one_line(how, tmp_path, capsys):
    spoil(scene_data.make_instances(tmp_path / "data"), how)
    line = refused(capsys, tmp_path, "--task", "detect", "--data", str(tmp_path / "data"))
    assert INSTANCES[how] in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [30, 5, 20, 10]}, "lies outside the image of 40 x 32 pixels"),
        ({"bbox": [40, 5, 1, 10]}, "nothing lies inside the image"),
        ({"bbox": [3, 5, 0, 10]}, "must be x, y, and a width and height above 0"),
        ({"category_id": 6}, "a box has the class number 6, which is no category"),
        ({"image_id": 77}, "is not of COCO's form: KeyError 77"),
        ({"height": 40, "of": "images"}, "annotations.json has it as 40 x 40 pixels, but it is 40"),
        ({"id": 0, "of": "images"}, "it has the image id '0' more than once"),
        ({"file_name": "00.png", "of": "images"}, "it has the file '00.png' more than once"),
        ({"name": "other", "of": "categories"}, "it has the category 'other' more than once"),
    ],
)
def test_bad_annotations_are_one_line(change, message, tmp_path, capsys):
    root = scene_data.make_coco(tmp_path / "data")
    content = scene_data.read_json(root / "val")
    content[change.pop("of", "annotations")][1] |= change
    scene_data.write_json(root / "val", content)
    line = refused(capsys, tmp_path, "--task", "detect", "--data", str(root))
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "paint"), "task: must be 'classify', 'detect' or 'segment'"),
        (("--task", "segment", "--head", "ssdlite"), "task=segment has no head 'ssdlite'"),
        (("--head", "unet"), "task=classify has no head 'unet'; it has none"),
        (("--task", "segment", "--data", "nowhere"), "there is none at: nowhere"),
        (("--task", "detect", "--data", "."), "has no train/images"),
        (("--task", "detect", "--set", "recipe.precision=bf16-mixed"), "boxes need all their"),
        (("--set", "recipe.distill={kind: attention}"), "recipe.distill needs a teacher"),
        (("--set", "recipe.distill={kind: maps}"), "recipe.distill.kind: must be"),
    ],
)
def test_bad_settings_are_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, tmp_path, *words)


def test_smoothing_is_for_classes_alone(masks, tmp_path, capsys):
    words = ("--task", "segment", "--data", str(masks), "--set", "recipe.label_smoothing=0.1")
    assert "recipe.label_smoothing is for task=classify" in refused(capsys, tmp_path, *words)


@pytest.mark.parametrize("how", ["only void", "missing"])
def test_what_cannot_be_used_can_be_left_out(how, tmp_path):
    root = scene_data.make_masks(tmp_path)
    spoil(root, how)
    data = load_masks(str(root), image_size=SIZE, skip_bad=True)
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 2, 4]
    assert MASKS[how] in next(f"{p} {reason}" for p, reason in data.record["skipped"].items())


def test_a_split_of_which_nothing_is_left_is_not_made_up(tmp_path):
    root = scene_data.make_masks(tmp_path)
    for path in (root / "val" / "masks").iterdir():
        scene_data.save(path, np.full((32, 40), 9))
    with pytest.raises(ValueError, match=r"no image of .*val' is left"):
        load_masks(str(root), image_size=SIZE, skip_bad=True)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_few_bits_have_the_numbers_that_are_in_the_file(bits, tmp_path):
    numbers = [[0, 1, 1, 0], [1, 0, 0, 1]] if bits == 1 else [[0, 1, 2, 3], [3, 1, 0, 2]]
    packed = [int("".join(f"{n:0{bits}b}" for n in row).ljust(32, "0"), 2) for row in numbers]
    rows = [row.to_bytes(4)[: -(-4 * bits // 8)] for row in packed]
    path = tmp_path / "m.png"
    path.write_bytes(png(4, 2, bits, rows))
    assert read_mask(path).tolist() == numbers


def png(width: int, height: int, bits: int, rows: list[bytes]) -> bytes:
    """A grey picture, which Pillow writes with 1 or 8 bits only."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        total = zlib.crc32(kind + content)
        return len(content).to_bytes(4) + kind + content + total.to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, 0, 0, 0, 0])
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.data
@pytest.mark.skipif(not UNPACK.is_file(), reason="no real images beside the checkout")
def test_real_streets_and_people(tmp_path: Path) -> None:
    subprocess.run([UNPACK, tmp_path, "camvid", "pennfudan"], check=True, stdout=subprocess.DEVNULL)
    streets = load_masks("camvid", root=tmp_path, image_size=32, void=11)
    assert len(streets.classes) == 11
    assert [len(split) for split in (streets.train, streets.val, streets.test)] == [367, 101, 233]
    shares = torch.stack(streets.train.targets).flatten().bincount(minlength=256)
    assert int(shares[:11].argmax()) in (1, 3)  # building or road
    assert 0 < int(shares[VOID]) < 0.1 * int(shares.sum())
    people = load_boxes("pennfudan", root=tmp_path, image_size=64)
    assert sum(len(split) for split in (people.train, people.val, people.test)) == 170
    every = torch.cat([found.boxes for found in people.train.targets])
    width, height = (every[:, 2:] - every[:, :2]).unbind(1)
    assert float((height > width).double().mean()) > 0.95  # they stand
