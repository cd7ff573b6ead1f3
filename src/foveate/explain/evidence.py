"""Class activation maps, by the grad-cam library: evidence for a class, which is not attention."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import InvalidValueError, check_choice, require
from foveate.explain.layers import last_map
from foveate.explain.untouched import wanting
from foveate.modes import in_mode

CAMS = {
    "gradcam": ("Grad-CAM", "GradCAM"),
    "gradcam++": ("Grad-CAM++", "GradCAMPlusPlus"),
    "layercam": ("Layer-CAM", "LayerCAM"),
    "scorecam": ("Score-CAM", "ScoreCAM"),
}
"""Titles, and classes of the library. The last one runs the network once for each channel."""


def class_evidence(
    model: nn.Module,
    images: Tensor,
    *,
    target: int | Sequence[int],
    method: str = "gradcam",
    layer: str | None = None,
) -> Tensor:
    """Where in an image a network finds what speaks for a class.

    The network runs in evaluation mode, and is given back as it was: modes, hooks and gradients.

    Args:
        model: A classifier.
        images: ``(B, C, H, W)``, normalised as the network expects.
        target: The class, or one for each image.
        method: One of ``gradcam``, ``gradcam++``, ``layercam``, ``scorecam``.
        layer: Name of the module whose output is weighed; by default the last that gives a map.

    Returns:
        ``(B, H, W)`` from 0 to 1, each image on a scale of its own.

    Raises:
        ValueError: If the method or the layer is unknown, no module gives a map, or the network is
            in bfloat16, which the library does not take.
        ImportError: Without the library, which comes with ``foveate[explain]``.
    """
    check_choice("class activation map", method, CAMS)
    library = require("pytorch_grad_cam", extra="explain")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    parameter = next(model.parameters(), None)
    if parameter is None or parameter.dtype == torch.bfloat16:
        got = "no parameters" if parameter is None else "parameters in bfloat16"
        raise InvalidValueError(f"class evidence needs a network in float32, but this has {got}")
    targets = [target] * len(images) if isinstance(target, int) else list(target)
    name = layer or last_map(model, images[:1])
    watched = _submodule(model, name)
    with (
        in_mode(model, training=False),
        wanting(model, gradients=False),
        torch.autocast(images.device.type, enabled=False),  # the library takes no bfloat16
    ):
        given = images.detach().clone().requires_grad_()
        cam: Any = getattr(library, CAMS[method][1])(model, [watched])
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
                found = cam(given, [ClassifierOutputTarget(one) for one in targets])
        finally:
            cam.activations_and_grads.release()
    return torch.from_numpy(found)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InvalidValueError(f"the network has no module '{name}'") from error
