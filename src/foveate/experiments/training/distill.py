"""Attention transfer: a student whose attention is drawn to that of a trained teacher.

Zagoruyko and Komodakis, Paying more attention to attention, ICLR 2017 (arXiv:1612.03928).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import InvalidValueError
from foveate.experiments.config import DistillConfig
from foveate.experiments.data.load import Data
from foveate.experiments.saved import Trained
from foveate.experiments.tasks import get_task
from foveate.explain.untouched import untouched
from foveate.insertion.places import Anatomy
from foveate.insertion.trace import trace
from foveate.mechanisms.base import Attention
from foveate.modes import in_mode

Maps = dict[str, Tensor]


def attention_map(features: Tensor) -> Tensor:
    """Where a feature map is strong: the sum of its squares over the channels.

    Args:
        features: ``(B, C, H, W)``.

    Returns:
        ``(B, 1, H, W)``.
    """
    return features.square().sum(1, keepdim=True)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps of positions, each divided by its Euclidean length.

    Args:
        student: ``(B, 1, H, W)``.
        teacher: ``(B, 1, H', W')``; resized bilinearly to the student's where the sizes differ.
    """
    ours, theirs = (F.normalize(m.flatten(1)) for m in (student, resized(teacher, student)))
    return (ours - theirs).square().mean()


def gate_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two gates, each of channels or each of positions.

    Args:
        student: ``(B, C, 1, 1)``, or ``(B, K, H, W)``, which is averaged over ``K``.
        teacher: The same; of positions, resized as in :func:`attention_distance`.
    """
    if max(student.shape[2:]) == 1 == max(teacher.shape[2:]):
        return (student - teacher).square().mean()
    ours, theirs = (gate.mean(1, keepdim=True) for gate in (student, teacher))
    return (ours - resized(theirs, ours)).square().mean()


def resized(map_: Tensor, like: Tensor) -> Tensor:
    """A map at the height and width of another."""
    size = like.shape[2:]
    if map_.shape[2:] == size:
        return map_
    return F.interpolate(map_, size, mode="bilinear", align_corners=False)


class Distillation:
    """What a student still lacks of the attention of its teacher, batch by batch.

    With ``kind="attention"`` these are the attention maps of the features at the end of each stage,
    ``weight / 2`` times the sum of their distances; with ``kind="gates"`` the gates of the
    mechanisms. Layers are paired by depth, from the first to the last.

    Args:
        student: The network that learns, on its device.
        teacher: The network that has learned; it runs in evaluation mode and learns nothing.
        how: Kind and weight.
        data: What the student is fed with.

    Raises:
        ValueError: If there is nothing to compare, or gates do not fit each other.
    """

    def __init__(
        self, student: nn.Module, teacher: Trained, how: DistillConfig, data: Data
    ) -> None:
        device = next(student.parameters()).device
        self._teacher, self._how, self._data = teacher, how, data
        self._module = teacher.network.to(device).eval().requires_grad_(False)
        like = next(student.parameters())
        shape = (1, data.in_channels, data.image_size, data.image_size)
        example = torch.zeros(shape, device=device, dtype=like.dtype)
        self._check_channels()
        ours = _layers(student, data.task, example, how.kind, "the student")
        theirs = _layers(
            self._module, teacher.config.task, self._fed(example), how.kind, "the teacher"
        )
        self._ours: dict[str, Maps] = {}
        self._theirs: dict[str, Maps] = {}
        self._pairs = [(mine[0], other[0]) for mine, other in by_depth(ours, theirs)]
        self._handles = [
            *_watch(ours, how.kind, self._ours),
            *_watch(theirs, how.kind, self._theirs),
        ]
        try:
            self._check_fit(student, example)
        except InvalidValueError:
            self.close()
            raise

    def loss(self, images: Tensor) -> Tensor:
        """The weighted distance for the batch that the student has just run on."""
        with torch.no_grad():
            self._run_teacher(images)
        distance = attention_distance if self._how.kind == "attention" else gate_distance
        found = [
            distance(ours[name], theirs[name])
            for ours, theirs in self._paired()
            for name in ours
            if name in theirs
        ]
        return self._how.strength / 2 * torch.stack(found).sum()

    def close(self) -> None:
        """Stop watching the two networks."""
        for handle in self._handles:
            handle.remove()

    def _paired(self) -> Iterator[tuple[Maps, Maps]]:
        for ours, theirs in self._pairs:
            yield self._ours[ours], self._theirs[theirs]

    def _run_teacher(self, images: Tensor) -> None:
        task = get_task(self._teacher.config.task)
        with in_mode(self._module, training=False):
            self._module(*task.inputs(self._fed(images)))

    def _fed(self, images: Tensor) -> Tensor:
        """The student's batch as the teacher is used to see images."""
        data, teacher = self._data, self._teacher
        images = images.to(next(self._module.parameters()).dtype)
        pixels = images * _channels(data.std, images) + _channels(data.mean, images)
        size = (teacher.image_size, teacher.image_size)
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return (pixels - _channels(teacher.mean, images)) / _channels(teacher.std, images)

    def _check_channels(self) -> None:
        ours, theirs = self._data.in_channels, len(self._teacher.mean)
        if ours != theirs:
            raise InvalidValueError(
                f"the teacher takes images of {theirs} channels, but the data has {ours}"
            )

    def _check_fit(self, student: nn.Module, example: Tensor) -> None:
        """Run both once, and see whether what they give can be compared."""
        with in_mode(student, training=False), torch.enable_grad():
            student(*get_task(self._data.task).inputs(example))
        with torch.no_grad():
            self._run_teacher(example)
        for place, (ours, theirs) in enumerate(self._paired()):
            shared = [name for name in ours if name in theirs]
            if not shared:
                raise InvalidValueError(
                    f"'{self._pairs[place][0]}' has the gates {_names(ours)} and the teacher's "
                    f"'{self._pairs[place][1]}' {_names(theirs)}: none to compare; take "
                    "recipe.distill.kind=attention"
                )
            for name in shared:
                a, b = ours[name].shape[1:], theirs[name].shape[1:]
                if 1 == max(a[1:]) == max(b[1:]) and a != b:
                    raise InvalidValueError(
                        f"the gate '{name}' of '{self._pairs[place][0]}' is of {a[0]} channels and "
                        f"the teacher's of {b[0]}, which mean different things; take "
                        "recipe.distill.kind=attention"
                    )


Layer = tuple[str, nn.Module, str]
"""Name, module, and the side of it on which the map is."""


def by_depth(ours: Sequence[Layer], theirs: Sequence[Layer]) -> list[tuple[Layer, Layer]]:
    """Each layer of the student with the teacher's at the same share of the depth."""
    last = max(1, len(ours) - 1)
    return [
        (layer, theirs[round(place * (len(theirs) - 1) / last)]) for place, layer in enumerate(ours)
    ]


def _layers(network: nn.Module, task: str, example: Tensor, kind: str, whose: str) -> list[Layer]:
    found: list[Layer]
    if kind == "gates":
        named = network.named_modules()
        found = [
            (name, module, "before") for name, module in named if isinstance(module, Attention)
        ]
        lacks = "attention whose gates"
    else:
        spots = Anatomy(trace(get_task(task).host(network), example)).stage()
        found = [(s.call.name, s.call.module, s.side) for s in spots if s.call is not None]
        lacks = "stages whose features"
    if not found:
        raise InvalidValueError(f"{whose} has no {lacks} could be distilled")
    return found


def _watch(layers: Sequence[Layer], kind: str, kept: dict[str, Maps]) -> Iterator[Any]:
    """Keep the maps of each layer under its name, from its next call on."""
    for name, module, side in layers:
        if kind == "gates":
            yield module.register_forward_pre_hook(partial(_keep_gates, kept, name))
        elif side == "before":
            yield module.register_forward_pre_hook(partial(_keep_input, kept, name))
        else:
            yield module.register_forward_hook(partial(_keep_output, kept, name))


def _keep_output(
    kept: dict[str, Maps], name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> None:
    kept[name] = {"features": attention_map(output)}


def _keep_input(
    kept: dict[str, Maps], name: str, module: nn.Module, args: tuple[Tensor, ...]
) -> None:
    kept[name] = {"features": attention_map(args[0])}


def _keep_gates(
    kept: dict[str, Maps], name: str, module: Attention, args: tuple[Tensor, ...]
) -> None:
    """The maps again, with their gradients: the mechanism itself may have fused them away."""
    x, wanted = args[0], torch.is_grad_enabled()
    with untouched(module, x), torch.set_grad_enabled(wanted):
        kept[name] = module.maps(x)  # unfused: there is no product that would settle the readings


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(-1, 1, 1)


def _names(maps: Maps) -> str:
    return ", ".join(maps) or "none"


def check_teacher(
    student: nn.Module, teacher: Trained | None, how: DistillConfig | None, data: Data
) -> None:
    """Refuse a teacher that does not fit, before anything is written.

    Raises:
        ValueError: As :class:`Distillation`.
    """
    if teacher is not None and how is not None:
        Distillation(student, teacher, how, data).close()
