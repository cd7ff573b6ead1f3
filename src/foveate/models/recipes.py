"""Where the papers put their mechanisms in the networks that they report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from foveate.insertion.planning import At
from foveate.registry import get_mechanism

RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "wide_resnet50_2"),
)
MOBILENET = "mobilenet_v2"
HOSTS = (*RESNETS, MOBILENET)


@dataclass(frozen=True)
class Insertion:
    """Arguments of one call of :func:`foveate.insert`."""

    mechanism: str
    where: str
    at: At | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def recipe(key: str, name: str, host: nn.Module) -> list[Insertion]:
    """The insertions that make ``key_name`` of a host."""
    special = (_IN_MOBILENET if name == MOBILENET else _IN_RESNETS).get(key)
    if special is not None:
        return special(name, host)
    place = str(getattr(get_mechanism(key), "place", "residual"))
    if name == MOBILENET and place == "residual":
        return [_projections(key)]
    return [Insertion(key, place)]


def _projections(key: str, **options: Any) -> Insertion:
    """After the linear projection of every block, whether or not an addition follows."""
    return Insertion(key, "after", r"features\.(1\.conv\.2|\d+\.conv\.3)", options)


# Released models do not follow the adaptive rule; the widths by stage are those of the repository.
_ECA_KERNELS = {
    "resnet18": (3, 5, 7, 7),
    "resnet34": (3, 3, 5, 7),
    "resnet50": (3, 5, 5, 7),
    "resnet101": (3, 3, 5, 7),
    "resnet152": (3, 3, 5, 7),
}


def _eca_resnet(name: str, host: nn.Module) -> list[Insertion]:
    if name not in _ECA_KERNELS:
        return [Insertion("eca", "residual")]
    return [
        Insertion("eca", "residual", rf"layer{stage}\..*", {"kernel_size": kernel_size})
        for stage, kernel_size in enumerate(_ECA_KERNELS[name], start=1)
    ]


def _eca_mobilenet(name: str, host: nn.Module) -> list[Insertion]:
    """Kernels of 1 below 96 channels, which begin with the 11th block, and of 3 from there."""
    narrow, wide = r"features\.(1\.conv\.2|([2-9]|10)\.conv\.3)", r"features\.1[1-7]\.conv\.3"
    return [
        Insertion("eca", "after", narrow, {"kernel_size": 1}),
        Insertion("eca", "after", wide, {"kernel_size": 3}),
    ]


def _strip_resnet(name: str, host: nn.Module) -> list[Insertion]:
    """In every block of the last stage and in the last block of the others."""
    ends = [len(host.get_submodule(f"layer{stage}")) - 1 for stage in (1, 2, 3)]  # type: ignore[arg-type]
    lasts = "|".join(rf"layer{stage}\.{end}" for stage, end in enumerate(ends, start=1))
    return [Insertion("strip", "inner", rf"{lasts}|layer4\.\d+")]


def _fixed(*insertions: Insertion) -> Callable[[str, nn.Module], list[Insertion]]:
    return lambda name, host: list(insertions)


def _keeps_channels(name: str, conv: nn.Module) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.in_channels == conv.out_channels


_Recipe = Callable[[str, nn.Module], list[Insertion]]
_LAST_THREE = r"layer[234]\..*"
_IN_RESNETS: dict[str, _Recipe] = {
    "aa": _fixed(Insertion("aa", "replace", _LAST_THREE)),
    "bam": _fixed(Insertion("bam", "stage", r"layer[123]\..*")),
    "bot": _fixed(Insertion("bot", "replace", r"layer4\..*")),
    "cot": _fixed(Insertion("cot", "replace", _keeps_channels)),
    "eca": _eca_resnet,
    "gc": _fixed(Insertion("gc", "residual", _LAST_THREE)),
    "involution": _fixed(Insertion("involution", "replace", _keeps_channels)),
    "nl": _fixed(Insertion("nl", "post", r"layer[23]\.\d*[13579]")),
    "strip": _strip_resnet,
}
_IN_MOBILENET: dict[str, _Recipe] = {
    # After the depthwise convolution's activation, on the expanded width, but not in the first
    # block, which does not expand.
    "coord": _fixed(Insertion("coord", "after", r"features\.(?!1\.)\d+\.conv\.1\.2")),
    "eca": _eca_mobilenet,
    # Inside the depthwise unit, before its normalisation.
    "simam": _fixed(Insertion("simam", "after", r"features\.(1\.conv\.0|\d+\.conv\.1)\.0")),
    # Eight divides all its widths, and the numbers of groups of these papers do not.
    "ela": _fixed(_projections("ela", num_groups=8)),
    "ema": _fixed(_projections("ema", num_groups=8)),
    "fca": _fixed(_projections("fca", frequencies="top8")),
    "lct": _fixed(_projections("lct", num_groups=8)),
    "sge": _fixed(_projections("sge", num_groups=8)),
}
