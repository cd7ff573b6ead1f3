"""Weights from a file or a publisher into a host, except a classifier of other classes."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from foveate.errors import InvalidValueError
from foveate.weights.reading import read_tensors

SUFFIXES = (".safetensors", ".pt", ".pth")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; nothing in the file is executed.

    Args:
        path: A ``.safetensors`` file, or a ``.pt`` or ``.pth`` with a state dict, which may be
            nested as training scripts do.

    Raises:
        ValueError: If the file is missing, of another kind, or cannot be read.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InvalidValueError(
            f"pretrained must be 'DEFAULT' or a file that ends in {', '.join(SUFFIXES)}, "
            f"but got '{path}'"
        )
    return {name.removeprefix("module."): value for name, value in read_tensors(path).items()}


def load_into(model: nn.Module, weights: Mapping[str, Tensor], num_classes: int) -> None:
    """Copy weights by name, whatever their precision.

    A classifier of other classes keeps its fresh weights, and a stem for colour images is
    adapted to the channels of the model.

    Args:
        model: The host.
        weights: Tensors by name; auxiliary classifiers are left out.
        num_classes: Width of the model's output.

    Raises:
        ValueError: If a tensor is missing, unknown, or of another shape elsewhere.
    """
    expected = model.state_dict()
    given = {name: value for name, value in weights.items() if not name.lower().startswith("aux")}
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    if missing := [name for name in needed if name not in given]:
        raise InvalidValueError(_mismatch("lack", missing, len(needed)))
    if unknown := [name for name in given if name not in expected]:
        raise InvalidValueError(_mismatch("have unknown", unknown, len(given)))
    stem = first_convolution(model)
    fitting: dict[str, Tensor] = {}
    for name, value in given.items():
        shape = expected[name].shape
        if stem and name == f"{stem}.weight" and value.shape[1] != shape[1]:
            value = fit_channels(value, shape[1])
        if value.shape == shape:
            fitting[name] = value
        elif shape[:1] != (num_classes,) or value.shape[1:] != shape[1:]:
            raise InvalidValueError(
                f"the weights have '{name}' of shape {tuple(value.shape)}, but the host needs "
                f"{tuple(shape)}"
            )
    model.load_state_dict(fitting, strict=False)


def first_convolution(model: nn.Module) -> str | None:
    """Name of the first convolution, in the order of registration."""
    return next((name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)


def fit_channels(weight: Tensor, in_channels: int) -> Tensor:
    """A stem ``(O, C, k, k)`` for other channels, with the same answer to a grey image."""
    mean = weight.mean(1, keepdim=True) * weight.shape[1] / in_channels  # (O, 1, k, k)
    return mean.expand(-1, in_channels, -1, -1)


def _mismatch(verb: str, names: list[str], total: int) -> str:
    few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"the weights do not belong to this host: they {verb} {len(names)} of {total} ({few})"
