"""Networks by name: a host of torchvision or timm with attention where its paper puts it.

For other tasks than classification: `backbone`, `detector`, `segmenter`.

Each name is also a function here, in either order, as tutorials write it:
``foveate.models.resnet50_cbam(pretrained=True, num_classes=10)``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from foveate.errors import InvalidTypeError, require

require("torchvision", extra="hosts")

from foveate.models.backbones import Backbone as Backbone  # noqa: E402
from foveate.models.backbones import backbone as backbone  # noqa: E402
from foveate.models.detectors import detector as detector  # noqa: E402
from foveate.models.named import create as create  # noqa: E402
from foveate.models.named import list_models as list_models  # noqa: E402
from foveate.models.named import turned  # noqa: E402
from foveate.models.segmenters import Segmenter as Segmenter  # noqa: E402
from foveate.models.segmenters import segmentation_loss as segmentation_loss  # noqa: E402
from foveate.models.segmenters import segmenter as segmenter  # noqa: E402


def _shortcut(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    if "pretrained_host" in options:
        raise InvalidTypeError("give either pretrained= or pretrained_host=")
    return create(name, pretrained_host=pretrained, **options)


def __getattr__(name: str) -> Callable[..., nn.Module]:
    known = turned(name)
    if known is None:
        raise AttributeError(f"module 'foveate.models' has no attribute '{name}'")
    return partial(_shortcut, known)


def __dir__() -> list[str]:
    return sorted([*globals(), *list_models()])
