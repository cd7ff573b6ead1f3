"""Annotated images by the name of their folder: masks for segmentation, boxes for detection."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InvalidValueError, check_positive, to_path
from foveate.experiments.data import annotated
from foveate.experiments.data.annotated import Reasons
from foveate.experiments.data.load import Data, complete, limited
from foveate.experiments.data.reading import HELD_BYTES, channel_statistics, refuse
from foveate.experiments.data.scenes import Boxed, SceneSet, Source, Target, as_files

MASKS = "{train,val,test}/images/* with masks/*.png of the same names"
BOXES = f"{MASKS}, or with an annotations.json"


def load_masks(
    name: str,
    *,
    root: Path | None = None,
    image_size: int = 256,
    void: int = 255,
    skip_bad: bool = False,
    **how: Any,
) -> Data:
    """Images with a class for each pixel, stretched to squares.

    The classes are the lines of ``classes.txt``, or the numbers from 0 to the highest of the
    training masks; void is not one of them.

    Args:
        name: A folder: ``train/images/*`` and ``train/masks/*.png`` of the same names, with
            optional ``val`` and ``test``.
        root: Where it is looked for too.
        image_size: Side of the squares.
        void: The number in the masks of pixels that are of no class; higher ones move down by one.
        skip_bad: Leave images out whose files cannot be used, and say so in the record.
        how: ``val_fraction``, ``test_fraction``, ``split_seed`` and ``limit``, as
            :func:`~foveate.experiments.data.load.load_data` has them.

    Raises:
        ValueError: If the folder has no such layout, or a mask is missing, unreadable, of another
            size than its image, empty, or has a class that is not there.
    """
    check_positive(image_size=image_size)
    at = _find(name, root)
    folders = annotated.split_folders(at, layout=MASKS)
    read = {split: annotated.masked(folder, void) for split, folder in folders.items()}
    highest = max(read["train"][1], default=0)
    classes = annotated.class_names(at) or tuple(str(i) for i in range(highest + 1))
    bad: Reasons = {}
    sources: dict[str, list[Source]] = {}
    for split, (found, tops, reasons) in read.items():
        bad |= reasons
        sources[split] = []
        for source, top in zip(found, tops, strict=True):
            if top < len(classes):
                sources[split].append(source)
            else:
                bad[source.image] = (
                    f"its mask has the class {top}, but there are {len(classes)}: "
                    f"0 to {len(classes) - 1}; void is {void}"
                )
    if len(classes) < 2:
        refuse(bad, skip_bad=skip_bad, verb="used")
        raise InvalidValueError(f"'{at}' has 1 class, '{classes[0]}', but at least 2 are needed")
    data = _assemble(name, "segment", at, classes, sources, bad, image_size, skip_bad, how)
    data.record["void"] = void
    return data


def load_boxes(
    name: str,
    *,
    root: Path | None = None,
    image_size: int = 320,
    void: int = 255,
    skip_bad: bool = False,
    **how: Any,
) -> Data:
    """Images with boxes, letterboxed into squares.

    Args:
        name: A folder: ``train/images/*`` with ``train/masks/*.png`` of the same names, which
            number the instances from 1, all of one class; or with ``train/annotations.json`` in the
            form of COCO, whose categories are the classes. Optional ``val`` and ``test`` likewise.
        root: Where it is looked for too.
        image_size: Side of the squares.
        void: A number in instance masks that is no instance.
        skip_bad: As :func:`load_masks`.
        how: As :func:`load_masks`.

    Raises:
        ValueError: If the folder has no such layout, or an annotation is missing, unreadable,
            empty, outside its image, or of a class that training lacks.
    """
    check_positive(image_size=image_size)
    at = _find(name, root)
    folders = annotated.split_folders(at, layout=BOXES)
    listed = folders["train"] / annotated.ANNOTATIONS
    if listed.is_file():
        categories, _ = annotated.read_coco(listed)
        classes = tuple(name for _, name in sorted(categories.items()))
        read = {split: annotated.annotated(folder, classes) for split, folder in folders.items()}
    else:
        classes = annotated.class_names(at) or ("object",)
        if len(classes) > 1:
            raise InvalidValueError(
                f"'{at / annotated.CLASSES}' names {len(classes)} classes, but instance masks have "
                "no classes: name one, or give annotations.json"
            )
        read = {split: annotated.outlined(folder, void) for split, folder in folders.items()}
    bad: Reasons = {}
    sources: dict[str, list[Source]] = {}
    for split, (found, reasons) in read.items():
        bad |= reasons
        sources[split] = list(found)
        if not reasons and not annotated.any_box(found):
            raise InvalidValueError(f"'{folders[split]}' has no box at all")
    data = _assemble(name, "detect", at, classes, sources, bad, image_size, skip_bad, how)
    return dataclasses.replace(data, mean=(0.0,) * 3, std=(1.0,) * 3)  # detectors normalise


def _find(name: str, root: Path | None) -> Path:
    places = [to_path(name), *([to_path(root / name)] if root else [])]
    for at in places:
        if at.is_dir():
            return at
    raise InvalidValueError(
        f"data must be a folder of annotated images, but there is none at: "
        f"{', '.join(map(str, places))}"
    )


def _assemble(
    name: str,
    task: str,
    at: Path,
    classes: tuple[str, ...],
    sources: Mapping[str, Sequence[Source]],
    bad: Reasons,
    size: int,
    skip_bad: bool,
    how: Mapping[str, Any],
) -> Data:
    refuse(bad, skip_bad=skip_bad, verb="used")
    if empty := [split for split in ("train", *sources) if not sources.get(split)]:
        raise InvalidValueError(f"no image of '{at / empty[0]}' is left")
    found = {split: as_files(files) for split, files in sources.items()}
    options = {"test_fraction": 0.2, "val_fraction": 0.1, "split_seed": 0, **how}
    limit, seed = options.pop("limit", None), options["split_seed"]
    splits, origins = complete(dict(found), options["test_fraction"], options["val_fraction"], seed)
    if limit is not None:
        splits = limited(splits, limit, 1, seed)
    held = sum(map(len, splits.values())) * 4 * size**2 <= HELD_BYTES
    scenes = {split: images for split, images in splits.items() if isinstance(images, SceneSet)}
    ready = {split: _held(images, size) if held else images for split, images in scenes.items()}
    mean, std = channel_statistics(ready["train"], size)
    record = {
        **{"name": name, "source": "folder", "root": str(at.absolute())},
        **{"classes": list(classes), "image_size": size, "limit": limit},
        "splits": {
            split: {"images": len(images), "from": origins[split]}
            for split, images in ready.items()
        },
        "skipped": {str(path): reason for path, reason in bad.items()},
        "fingerprint": _fingerprint(ready),
    }
    return Data(
        name=at.absolute().name,
        classes=classes,
        train=ready["train"],
        val=ready["val"],
        test=ready["test"],
        mean=mean,
        std=std,
        in_channels=3,
        image_size=size,
        record=record,
        task=task,
    )


def _held(images: SceneSet, size: int) -> SceneSet:
    """The same split with everything in memory."""
    pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    targets: list[Target] = []
    for place, source in enumerate(images.sources):
        pixels[place], target = source.read(size)
        targets.append(target)
    return SceneSet(images.labels, pixels, images.paths, images.sources, tuple(targets))


def _fingerprint(splits: Mapping[str, SceneSet]) -> str:
    """Of all pixels and targets, or of the names and sizes of the files."""
    digest = hashlib.sha256()
    for split, images in sorted(splits.items()):
        digest.update(f"{split} {len(images)}".encode())
        if images.images is not None and images.targets is not None:
            digest.update(images.images.numpy().data)
            for target in images.targets:
                for part in [target] if isinstance(target, Tensor) else target:
                    digest.update(part.contiguous().numpy().data)
            continue
        for source in images.sources:
            digest.update(f"{source.image.name} {source.image.stat().st_size}".encode())
            if isinstance(source, Boxed):
                digest.update(repr([part.tolist() for part in source.found]).encode())
            else:
                digest.update(str(source.mask.stat().st_size).encode())
    return digest.hexdigest()
