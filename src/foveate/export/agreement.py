"""The original and what it was exported to, on the same inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValueError, UserError

Runner = Callable[[Tensor], Tensor]
"""Images ``(B, C, H, W)`` to the output of a network, wherever it runs."""
Shape = tuple[int, ...]


class MismatchError(UserError, RuntimeError):
    """An exported network that does not compute what the original does."""


class DropError(UserError, RuntimeError):
    """A quantised network that has lost more than was allowed."""


@dataclass(frozen=True)
class Agreement:
    """The largest difference to the original, relative to its largest output, by shape."""

    differences: Mapping[Shape, float]
    tolerance: float

    @property
    def worst(self) -> float:
        """The largest of all."""
        return max(self.differences.values())


def agree(
    model: nn.Module,
    runner: Runner,
    inputs: Sequence[Tensor],
    tolerance: float,
    where: Callable[[Tensor], str] | None = None,
) -> Agreement:
    """Run both on each input.

    Args:
        model: The original, in evaluation mode.
        runner: Runs the exported network.
        inputs: Images.
        tolerance: Largest relative difference.
        where: Finds out where a difference begins.

    Raises:
        MismatchError: Where they differ by more than the tolerance.
        ValueError: If the original refuses an input, or gives no finite number.
    """
    differences: dict[Shape, float] = {}
    for images in inputs:
        shape = tuple(images.shape)
        expected = original(model, images)
        if expected.numel() and not expected.isfinite().any():
            raise InvalidValueError(
                f"the network itself gives no finite number at {shape}, so nothing can be compared"
            )
        found = difference(_exported(runner, images), expected)
        if not found <= tolerance:
            begins = f"; it begins at {where(images)}" if where else ""
            raise MismatchError(
                f"the exported network differs by {found:.2g} of the largest output at {shape}, "
                f"more than {tolerance:g}{begins}"
            )
        differences[shape] = found
    return Agreement(differences, tolerance)


def original(model: nn.Module, images: Tensor) -> Tensor:
    """The output of a network on its own.

    Raises:
        ValueError: If it refuses the input, or gives something else than one tensor.
    """
    try:
        output = model(images)
    except Exception as error:
        raise InvalidValueError(
            f"the network itself refuses an input of {tuple(images.shape)} "
            f"({' '.join(str(error).split())}); choose other sizes, or fixed_size=True"
        ) from error
    if not isinstance(output, Tensor):
        raise InvalidValueError(
            "only networks that give one tensor can be exported, but this one gives "
            f"{type(output).__name__}"
        )
    return output


def _exported(runner: Runner, images: Tensor) -> Tensor:
    try:
        return runner(images)
    except Exception as error:  # each runtime has errors of its own
        reason = " ".join(str(error).split())
        raise MismatchError(
            f"the exported network does not run at {tuple(images.shape)}: {reason}"
        ) from error


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest value that is expected.

    Infinite for another shape, or where what is not finite differs, or nothing is finite.
    """
    found, expected = found.cpu().double(), expected.detach().cpu().double()
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    finite = expected.isfinite()
    same = torch.isclose(found[~finite], expected[~finite], equal_nan=True).all()
    if not (same and finite.any()):
        return float("inf")
    found, expected = found[finite], expected[finite]
    gap, size = float((found - expected).abs().max()), float(expected.abs().max())
    return gap / size if size else gap


def check_drop(before: float, after: float, max_drop: float) -> None:
    """Refuse a network whose score in percent has lost more than so many points."""
    if not before - after <= max_drop:
        raise DropError(
            f"in eight bits the score falls from {before:.2f} to {after:.2f} %, by more than the "
            f"{max_drop:g} points that are allowed; nothing was written"
        )


def check_calibration(batches: Sequence[Tensor]) -> None:
    """Refuse to quantise without images."""
    if not batches:
        raise InvalidValueError("calibration needs at least one batch of images")
