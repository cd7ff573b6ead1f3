"""Networks that are looked at side by side, by several people at once, one at a time."""

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveate.errors import InvalidValueError, UserError
from foveate.experiments.subject import Subject
from foveate.explain import content, list_maps, record
from foveate.explain.acting import mechanisms, needed, skipped
from foveate.explore.pictures import Picture
from foveate.figures import Sheet, beside, encoded, sheet

CAMS = ("gradcam", "gradcam++", "layercam")
"""Class activation maps that are quick enough for a page."""
Point = tuple[float, float]
"""Row and column of a point, as shares of the height and width."""

NO_AFFINITY = (
    "No position of this network reads another: its attention has no affinity, so there is nothing "
    "that this point attends to. The maps below say what they are at the point."
)
NO_ATTENTION = "This network has no attention that foveate knows, so a point attends to nothing."
SWITCHED_OFF = (
    "The same weights with the attention switched off: each mechanism passes on what it is given. "
    "This is not the network that training without attention would give; foveate compare trains it."
)


@dataclass(frozen=True)
class Side:
    """One of the networks: what can be chosen of it, and how it is run."""

    title: str
    brief: str
    """The title without what it shares with the other side."""
    note: str
    subject: Subject
    attention: tuple[str, ...]
    """The names of the layers with attention."""
    readers: frozenset[str]
    """Those of them that have an affinity."""
    features: tuple[str, ...]
    """The names of the modules that give a map."""
    off: tuple[nn.Module, ...] = ()
    """The mechanisms that are switched off."""


@dataclass(frozen=True)
class Wanted:
    """What a person has chosen; an empty choice of layers stands for the usual one."""

    layers: Sequence[Sequence[str]] = ((),)
    """With attention, a choice for each side; the last holds for all that follow."""
    features: Sequence[Sequence[str]] = ((),)
    cam: str | None = "gradcam"
    point: Point | None = None
    compare: bool = False


@dataclass(frozen=True)
class View:
    """What one side made of a picture."""

    side: Side
    content: Sheet
    point: Point | None
    told: str
    """What there is to say about the point in words."""


class Explorer:
    """Looks through networks at pictures. Calls from several threads wait for one another.

    Args:
        subject: The network.
        against: Another one; by default the same with its attention switched off.

    Raises:
        ValueError: If a network cannot be run on images of its size.
    """

    def __init__(self, subject: Subject, against: Subject | None = None) -> None:
        # The hooks of a record see every call of the network, and drawing has global settings.
        self._lock = threading.Lock()
        self.first = _side(subject, subject.name)
        self.second: Side | None
        if against is None:
            self.second = _without_attention(self.first)
        else:
            twin = " (second)" if against.name == subject.name else ""
            self.second = _side(against, f"{against.name}{twin}")

    @property
    def sizes(self) -> set[int]:
        """The sides of the images that the networks want."""
        return {side.subject.image_size for side in self._sides(True)}

    def look(self, picture: Picture, wanted: Wanted) -> list[View]:
        """Run the network, or both, on a picture.

        Raises:
            ValueError: If a layer is unknown or the point lies outside.
        """
        if wanted.cam is not None and wanted.cam not in CAMS:
            raise InvalidValueError(f"unknown class activation map '{wanted.cam}'")
        if wanted.point is not None and not all(0 <= share < 1 for share in wanted.point):
            raise InvalidValueError("the point lies outside the picture")
        with self._lock:
            return [
                _look(
                    side, picture, wanted, wanted.layers[: i + 1][-1], wanted.features[: i + 1][-1]
                )
                for i, side in enumerate(self._sides(wanted.compare))
            ]

    def draw(self, views: Sequence[View], ending: str) -> bytes:
        """The figure of what was seen, as the content of a file."""
        with self._lock:
            if len(views) == 1:
                return encoded(sheet(views[0].content), ending)
            return encoded(beside({view.side.title: view.content for view in views}), ending)

    def _sides(self, compare: bool) -> list[Side]:
        return [self.first, self.second] if compare and self.second else [self.first]


def _side(subject: Subject, title: str) -> Side:
    shape = (1, len(subject.mean), subject.image_size, subject.image_size)
    images = torch.zeros(shape)
    names = tuple(name for name, _ in mechanisms(subject.module))
    readers: frozenset[str] = frozenset()
    try:
        features = tuple(list_maps(subject.module, images))
        if names:
            with record(subject.module) as recorded, torch.no_grad():
                subject.module(images)
            readers = frozenset(name for name, one in recorded.items() if one.size is not None)
    except UserError:
        raise
    except Exception as error:  # whatever a network raises on images that it cannot take
        raise InvalidValueError(
            f"{subject.name} cannot be run on images of {subject.image_size} pixels: {error}"
        ) from error
    return Side(title, title, "", subject, names, readers, features)


def _without_attention(side: Side) -> Side | None:
    """The same network with its attention switched off; None where there is none to switch off."""
    modules = dict(mechanisms(side.subject.module))
    off = tuple(module for module in modules.values() if not needed(module))
    if not off:
        return None
    kept = [name for name, module in modules.items() if needed(module)]
    note = SWITCHED_OFF
    if kept:
        note += (
            f" {len(kept)} of {len(modules)} mechanisms stand in the place of a convolution, and "
            f"stay on: {', '.join(kept)}."
        )
    brief = "attention switched off"
    return Side(
        f"{side.title}, {brief}", brief, note, side.subject, (), frozenset(), side.features, off
    )


def _look(
    side: Side, picture: Picture, wanted: Wanted, layers: Sequence[str], features: Sequence[str]
) -> View:
    subject = side.subject
    size = subject.image_size
    label = subject.classes.index(picture.folder) if picture.folder in subject.classes else None
    points: list[tuple[int, int]] = []
    if wanted.point is not None:
        points = [(int(wanted.point[0] * size), int(wanted.point[1] * size))]
    chosen: Any = None
    if layers or side.off:
        chosen = [name for name in side.attention if name in set(layers)]
    with skipped(side.off) if side.off else nullcontext():
        found = content(
            subject.module,
            subject.normalised(picture.pixels[size].unsqueeze(0)),
            feed=subject.feed,
            label=label,
            points=points,
            layers=list(features) or None,
            cams=[] if wanted.cam is None else [wanted.cam],
            attention=chosen,
        )
    return View(side, found, wanted.point, _told(side, wanted.point, chosen))


def _told(side: Side, point: Point | None, chosen: Sequence[str] | None) -> str:
    if side.off:
        return ""
    if not side.attention:
        return NO_ATTENTION
    if not side.readers:
        return NO_AFFINITY
    if chosen is not None and side.readers.isdisjoint(chosen):
        return f"None of the chosen layers has an affinity. These have: {', '.join(side.readers)}."
    return "Click the picture to see where that point attends." if point is None else ""
