"""Whether a map says where a network looks: what the output is without those pixels, and with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import InvalidValueError, check_positive, require
from foveate.explain.recording import record
from foveate.modes import in_mode

if TYPE_CHECKING:
    from foveate.figures import Figure

KINDS = ("deletion", "insertion")
RANDOM, CENTRE = "random", "centre"
CONTROLS = (RANDOM, CENTRE)
"""Maps that know nothing of the network: cells of chance, and the distance from the middle."""
CELLS = 8
"""Rows and columns of the random map: as coarse as maps of attention are."""
Z = 1.959964


@dataclass(frozen=True)
class Faithfulness:
    """How the probability of the predicted class goes with the pixels that a map ranks highest."""

    shares: Tensor
    """``(S,)``: the share of the pixels that was deleted or inserted."""
    curves: Mapping[str, Mapping[str, Tensor]]
    """By kind, then by map: probabilities ``(B, S)``."""

    def areas(self, kind: str) -> dict[str, Tensor]:
        """The mean probability over the shares ``(B,)``, by map.

        Low is good for ``"deletion"``, high for ``"insertion"``.
        """
        return {
            name: torch.trapezoid(curve, self.shares, dim=1)
            for name, curve in self.curves[kind].items()
        }

    def gains(self, kind: str) -> dict[str, tuple[float, float, float]]:
        """How much better than chance each map is: mean and 95 % interval over the images.

        Paired: of each image its own area under the curve of the random map is taken off, with the
        sign with which more is better.
        """
        areas = self.areas(kind)
        sign = -1 if kind == "deletion" else 1
        found = {}
        for name, area in areas.items():
            if name != RANDOM:
                gain = sign * (area - areas[RANDOM])
                half = Z * float(gain.std()) / len(gain) ** 0.5
                middle = float(gain.mean())
                found[name] = (middle, middle - half, middle + half)
        return found

    def figure(self) -> "Figure":
        """The mean curves, and the gains over chance with their intervals."""
        require("matplotlib", extra="explain")
        from foveate import figures

        means = {
            kind: {name: curve.mean(0).tolist() for name, curve in curves.items()}
            for kind, curves in self.curves.items()
        }
        gains = {kind: self.gains(kind) for kind in KINDS}
        return figures.faithfulness(self.shares.tolist(), means, gains, controls=CONTROLS)


def faithfulness(
    model: nn.Module,
    images: Tensor,
    maps: Mapping[str, Tensor],
    *,
    steps: int = 16,
    batch_size: int = 64,
    seed: int = 0,
) -> Faithfulness:
    """Delete, and insert, the pixels that maps rank highest, and watch the predicted class.

    Deletion and insertion of Petsiuk, Das and Saenko (2018), section 3.2, both between the image
    and a blurred one: pixels of one colour, scattered over an image, are a noise that no training
    image had, and the finest map would win. Where a map has ties, as a coarse one has in each of
    its cells, chance decides, the same for all maps. Two maps that know nothing of the network are
    added: ``"random"``, of :data:`CELLS` by :data:`CELLS` cells, and ``"centre"``.

    Args:
        model: A classifier.
        images: ``(B, C, H, W)``, normalised as the network expects.
        maps: By name, ``(B, h, w)``: the higher, the more important. Coarser ones are enlarged cell
            by cell.
        steps: How many equal steps lead from none of the pixels to all.
        batch_size: Images in a batch.
        seed: Of the random map, and of ties.

    Raises:
        ValueError: If there are fewer than two images, or a map has another number of them.
    """
    check_positive(steps=steps, batch_size=batch_size)
    if len(images) < 2:
        raise InvalidValueError(f"intervals need at least two images, but got {len(images)}")
    for name, found in maps.items():
        if name in CONTROLS:
            raise InvalidValueError(f"'{name}' is the name of a control; call the map otherwise")
        if found.dim() != 3 or len(found) != len(images):
            raise InvalidValueError(
                f"map '{name}' must be ({len(images)}, h, w), but is {tuple(found.shape)}"
            )
    generator = torch.Generator().manual_seed(seed)
    ties = torch.rand(len(images), *images.shape[2:], generator=generator)
    random = torch.rand(len(images), CELLS, CELLS, generator=generator)
    everything = {**maps, RANDOM: random, CENTRE: _centre(images)}
    with in_mode(model, training=False), torch.no_grad():
        target = torch.cat([model(some).argmax(1) for some in images.split(batch_size)])
        shares = torch.linspace(0, 1, steps + 1)
        ranks = {name: _ranks(found, ties) for name, found in everything.items()}
        blurred = _blurred(images)
        curves: dict[str, dict[str, Tensor]] = {}
        for kind, there, here in zip(KINDS, (images, blurred), (blurred, images), strict=True):
            curves[kind] = {
                name: torch.stack(
                    [
                        _probability(model, there, here, rank < share, target, batch_size)
                        for share in shares
                    ],
                    1,
                )
                for name, rank in ranks.items()
            }
    return Faithfulness(shares, curves)


def spatial_gates(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The gates of positions ``(B, h, w)`` by layer; those of several channels by their mean.

    Raises:
        ValueError: If there is no attention in the network.
    """
    with in_mode(model, training=False), torch.no_grad(), record(model) as recorded:
        model(images)
    return {
        f"{layer.name.removesuffix('.attention')} {part}": found.float().mean(1)
        for layer in recorded.values()
        for part, found in layer.maps.items()
        if min(found.shape[2:]) > 1
    }


def mean_of_layers(gates: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """One map ``(B, H, W)`` of the gates of all layers, each from 0 to 1 in each image."""
    scaled = []
    for gate in gates:
        low, high = gate.amin((1, 2), keepdim=True), gate.amax((1, 2), keepdim=True)
        scaled.append(_enlarged((gate - low) / (high - low).clamp(min=1e-12), size))
    return torch.stack(scaled).mean(0)


def _probability(
    model: nn.Module, there: Tensor, here: Tensor, swapped: Tensor, target: Tensor, batch_size: int
) -> Tensor:
    """Of the target ``(B,)``, with the swapped pixels ``(B, H, W)`` taken from ``here``."""
    mixed = torch.where(swapped.unsqueeze(1).to(there.device), here, there)
    logits = torch.cat([model(some) for some in mixed.split(batch_size)])
    return logits.float().softmax(1).gather(1, target.unsqueeze(1))[:, 0].cpu()


def _ranks(found: Tensor, ties: Tensor) -> Tensor:
    """For each pixel the share of the pixels that are more important than it."""
    values = _enlarged(found.float().cpu(), ties.shape[1:]).flatten(1)
    shuffled = ties.flatten(1).argsort(1)
    places = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, places)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return ranks.double().div(order.shape[1]).view(ties.shape)


def _enlarged(found: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(found.unsqueeze(1), tuple(size), mode="nearest")[:, 0]


def _centre(images: Tensor) -> Tensor:
    """The nearer to the middle, the higher."""
    y, x = (torch.linspace(-1, 1, n) for n in images.shape[2:])
    return -(y.view(-1, 1).square() + x.square()).expand(len(images), -1, -1)


def _blurred(images: Tensor) -> Tensor:
    """Without details: a Gaussian whose standard deviation is a tenth of the shorter side."""
    sigma = min(images.shape[2:]) / 10
    reach = min(int(3 * sigma), min(images.shape[2:]) - 1)
    at = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    bell = torch.exp(-0.5 * (at / sigma).square())
    bell = (bell / bell.sum()).expand(images.shape[1], 1, 1, -1)
    groups = images.shape[1]
    wide = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(wide, bell, groups=groups), bell.mT, groups=groups)
