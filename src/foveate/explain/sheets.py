"""One picture for one image: prediction, gates, affinities, features and class evidence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValueError, check_choice, require
from foveate.explain.acting import is_gate, mechanisms
from foveate.explain.evidence import CAMS, class_evidence
from foveate.explain.layers import last_map, outputs_of
from foveate.explain.recording import Record, record
from foveate.modes import in_mode

if TYPE_CHECKING:
    from foveate.figures import Figure, Sheet
    from foveate.figures.overlay import Panel

Numbers = float | Sequence[float]
Point = tuple[int, int]
SHOWN_CLASSES = 5
MOST = 10
"""Of more layers than this an even choice is drawn."""


@dataclass(frozen=True)
class Input:
    """How a network is fed, and what its outputs are called.

    Args:
        mean: Was subtracted from the pixels in [0, 1]: one number, or one for each channel.
        std: Was the divisor afterwards.
        classes: Names of the outputs; their numbers by default.
    """

    mean: Numbers = 0.0
    std: Numbers = 1.0
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in self.classes or ():
            if list(self.classes or ()).count(name) > 1:
                raise InvalidValueError(f"names of classes must differ, but '{name}' stands twice")
        if not (_all(self.std, lambda v: 0 < v < inf) and _all(self.mean, lambda v: abs(v) < inf)):
            raise InvalidValueError(
                "mean must be finite and std finite and above 0, "
                f"but got mean={self.mean}, std={self.std}"
            )

    def picture(self, image: Tensor) -> Tensor:
        """The pixels ``(H, W, 3)`` from 0 to 1 of a normalised image ``(C, H, W)``."""
        mean, std = (
            torch.as_tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in (self.mean, self.std)
        )
        pixels = (image.detach().float().cpu() * std + mean).clamp(0, 1)
        if len(pixels) != 3:
            pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
        return pixels.permute(1, 2, 0)

    def name(self, index: int) -> str:
        """What an output is called."""
        return str(index) if self.classes is None else self.classes[index]


def sheet(
    model: nn.Module,
    image: Tensor,
    *,
    feed: Input | None = None,
    label: int | None = None,
    points: Sequence[Point] | None = None,
    layers: Sequence[str] | None = None,
    features: int = 5,
    choose: Literal["strongest", "first"] = "strongest",
    cams: Sequence[str] = tuple(CAMS),
    attention: Sequence[str] | None = None,
) -> "Figure":
    """Draw what a network made of an image.

    The network runs in evaluation mode, and is given back as it was.

    Args:
        model: A classifier, with attention or without.
        image: ``(C, H, W)`` or ``(1, C, H, W)``, normalised as the network expects.
        feed: The normalisation, which is undone for the picture, and the names of the classes.
        label: The true class, where it is known.
        points: Rows and columns of pixels whose affinities are drawn; by default the centre, and
            where the first class activation map is highest.
        layers: Modules whose feature maps are drawn; by default the last that gives a map.
        features: How many of a layer's maps are drawn.
        choose: Those with the largest mean size, or the first.
        cams: Class activation maps of the predicted class, by the keys of
            :data:`foveate.explain.CAMS`.
        attention: Names of the layers whose gates and affinities are drawn; all by default.

    Raises:
        ValueError: If the image or the output has another shape, a point lies outside, or a layer
            is unknown.
    """
    require("matplotlib", extra="explain")
    from foveate import figures

    found = content(
        model,
        image,
        feed=feed,
        label=label,
        points=points,
        layers=layers,
        features=features,
        choose=choose,
        cams=cams,
        attention=attention,
    )
    return figures.sheet(found)


def content(
    model: nn.Module,
    image: Tensor,
    *,
    feed: Input | None = None,
    label: int | None = None,
    points: Sequence[Point] | None = None,
    layers: Sequence[str] | None = None,
    features: int = 5,
    choose: Literal["strongest", "first"] = "strongest",
    cams: Sequence[str] = tuple(CAMS),
    attention: Sequence[str] | None = None,
) -> "Sheet":
    """What :func:`sheet` draws, from the same arguments."""
    from foveate import figures

    feed = feed or Input()
    images = _one_image(model, image)
    with in_mode(model, training=False), torch.no_grad():
        kept, recorded, logits = _run(model, images, layers)
    _check_outputs(logits, feed, label)
    if attention is not None:
        recorded = Record({name: recorded[name] for name in attention})
    shares = logits.float().softmax(1)[0].cpu()
    predicted = int(shares.argmax())
    for key in cams:
        check_choice("class activation map", key, CAMS)
    evidence = {
        CAMS[key][0]: class_evidence(model, images, target=predicted, method=key)[0] for key in cams
    }
    marked = _points(points, images, evidence)
    gates = list(position_maps(recorded, gates=True))
    others = list(position_maps(recorded, gates=False))
    affinities = list(_affinities(recorded, marked, images.shape[2:]))
    meaning = figures.Meaning
    sections = [
        figures.Section(_of("Gates of positions", gates), meaning.GATE, figures.even(gates, MOST)),
        figures.Section(_of(_what(others), others), meaning.GATE, figures.even(others, MOST)),
        figures.Section(
            _of("Whom a point reads: affinities", affinities),
            meaning.AFFINITY,
            figures.even(affinities, MOST),
        ),
        *(
            figures.Section(
                f"Features: {len(maps)} {choose} of {len(kept[name][0])} maps of {name}",
                meaning.FEATURES,
                maps,
            )
            for name, maps in _features(kept, features, choose)
        ),
        figures.Section(
            f"Class evidence, not attention: what speaks for '{feed.name(predicted)}'",
            meaning.EVIDENCE,
            [figures.Panel(title, found.double().numpy()) for title, found in evidence.items()],
        ),
    ]
    order = shares.argsort(descending=True)[:SHOWN_CLASSES].tolist()
    return figures.Sheet(
        feed.picture(images[0]).double().numpy(),
        [(feed.name(i), float(shares[i])) for i in order],
        None if label is None else feed.name(label),
        channel_gates(recorded),
        sections,
    )


def _one_image(model: nn.Module, image: Tensor) -> Tensor:
    images = image if image.dim() == 4 else image.unsqueeze(0)
    if images.dim() != 4 or len(images) != 1:
        raise InvalidValueError(
            f"a sheet shows one image (C, H, W), but got a tensor of {tuple(image.shape)}"
        )
    parameter = next(model.parameters(), images)
    return images.detach().to(parameter.device, parameter.dtype)


def _run(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None
) -> tuple[dict[str, Tensor], Record, Tensor]:
    """Features, gates, and the output ``(1, classes)``."""
    names = [last_map(model, images)] if layers is None else layers
    with outputs_of(model, names) as kept:
        if next(mechanisms(model), None) is None:
            recorded, output = Record({}), model(images)
        else:
            with record(model) as recorded:
                output = model(images)
    if not isinstance(output, Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidValueError(f"a classifier's output is (B, classes), but got {shape}")
    for name in names:
        if name not in kept:
            raise InvalidValueError(f"layer '{name}' gives no map (B, C, H, W)")
    return kept, recorded, output


def _check_outputs(logits: Tensor, feed: Input, label: int | None) -> None:
    count = logits.shape[1]
    if count < 2:
        raise InvalidValueError(f"a sheet needs at least 2 classes, but the network has {count}")
    if not bool(logits.isfinite().all()):
        raise InvalidValueError("the outputs of the network are not finite: it has diverged")
    if feed.classes is not None and len(feed.classes) != count:
        raise InvalidValueError(
            f"the network has {count} outputs, but got {len(feed.classes)} names"
        )
    if label is not None and not 0 <= label < count:
        raise InvalidValueError(f"label must be from 0 to {count - 1}, but got {label=}")


def _all(values: Numbers, accepted: Callable[[float], bool]) -> bool:
    return all(map(accepted, [values] if isinstance(values, int | float) else values))


def _points(
    points: Sequence[Point] | None, images: Tensor, evidence: Mapping[str, Tensor]
) -> list[Point]:
    height, width = images.shape[2:]
    if points is None:
        strongest = [divmod(int(found.argmax()), width) for found in evidence.values()]
        return [(height // 2, width // 2), *strongest[:1]]
    for y, x in points:
        if not (0 <= y < height and 0 <= x < width):
            raise InvalidValueError(
                f"a point must lie in the image of {height} rows and {width} columns, "
                f"but got (y, x) = ({y}, {x})"
            )
    return list(points)


def position_maps(recorded: Record, *, gates: bool) -> Iterator["Panel"]:
    """The maps of positions, rows or columns of the first image: the gates, or the others."""
    from foveate.figures import Panel

    for layer in recorded.values():
        for name, found in (layer.calls[-1] if layer.calls else {}).items():
            if max(found.shape[2:]) > 1 and is_gate(layer.module, name, found) == gates:
                count = found.shape[1]
                mean = f", mean of {count}" if count > 1 else ""
                values = found[0].float().mean(0).double().cpu().numpy()
                yield Panel(f"{short(layer.name)}\n{name}{mean}", values)


def channel_gates(recorded: Record) -> dict[str, Any]:
    """The gates ``(C,)`` of the channels of the first image, by layer, and part if it has more."""
    found: dict[str, Any] = {}
    for layer in recorded.values():
        parts = layer.calls[-1] if layer.calls else {}
        gates = {
            name: found
            for name, found in parts.items()
            if found.shape[1] > 1
            and found.shape[2:] == (1, 1)
            and is_gate(layer.module, name, found)
        }
        for name, gate in gates.items():
            title = short(layer.name) if len(gates) == 1 else f"{short(layer.name)} {name}"
            found[title] = gate[0].flatten().double().cpu().numpy()
    return found


def _affinities(
    recorded: Record, points: Sequence[Point], size: Sequence[int]
) -> Iterator["Panel"]:
    from foveate.figures import Panel

    for layer in recorded.values():
        if layer.size is None or not points:
            continue
        marks = [((y + 0.5) / size[0], (x + 0.5) / size[1]) for y, x in points]
        own = [(int(y * layer.size[0]), int(x * layer.size[1])) for y, x in marks]
        rows = recorded.affinity(layer.name, own)[0].float().mean(0)  # (P, H', W')
        for mark, values in zip(marks, rows.double().cpu().numpy(), strict=True):
            yield Panel(f"{short(layer.name)}\naffinity, mean of heads", values, mark)


def _features(
    kept: Mapping[str, Tensor], count: int, choose: str
) -> Iterator[tuple[str, list["Panel"]]]:
    from foveate.figures import Panel

    for name, maps in kept.items():
        size = maps[0].float().abs().mean((1, 2))
        order = range(len(size)) if choose == "first" else size.argsort(descending=True).tolist()
        shown = list(order)[:count]
        values = maps[0].double().cpu().numpy()
        yield name, [Panel(f"channel {index}", values[index]) for index in shown]


def short(name: str) -> str:
    """A layer's name without the part that all inserted ones share."""
    return name.removesuffix(".attention").removeprefix("attention") or "attention"


def _what(maps: Sequence["Panel"]) -> str:
    """A heading for maps that are no gates."""
    if all(panel.title.endswith("\nadded") for panel in maps):
        return "Length of what is added to each position"
    return "Other maps of positions: weights, and lengths of vectors"


def _of(title: str, panels: Sequence[Any]) -> str:
    return title if len(panels) <= MOST else f"{title} ({MOST} of {len(panels)})"
