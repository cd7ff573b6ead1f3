"""What all mechanisms share: the contract, and the two forms of each, paper and identity."""

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate import ops
from foveate.errors import InvalidValueError, check_choice, check_positive

INITS = ("paper", "identity")


@dataclass(frozen=True)
class Published:
    """A result as others printed it, not measured here."""

    model: str
    """Such as ``"ResNet-50"``."""
    metric: str
    """Such as ``"ImageNet top-1 accuracy %"``."""
    value: str
    baseline: str
    """The value without the mechanism from the same source; empty if it has none."""
    source: str


class Attention(nn.Module):
    """A module from ``(B, C, H, W)`` to the same shape, dtype and memory format.

    Each keyword argument of a subclass is kept as an attribute of its name.

    Args:
        channels: Channels of the feature map.
        init: ``"paper"`` for the published form and initialisation, ``"identity"`` for the form
            whose output equals its input to the last bit until training moves it.
    """

    key: ClassVar[str]
    """Name in the registry."""
    place: ClassVar[str] = "residual"
    """Where the paper puts it in a network; the default of ``insert``."""
    sized: ClassVar[bool] = False
    """Whether it takes the height and width of the map as ``size``, which ``insert`` passes."""
    variants: ClassVar[dict[str, dict[str, Any]]] = {}
    """Forms that have a name in the field, as keyword arguments."""
    timm: ClassVar[dict[str, dict[str, Any]]] = {}
    """Names of timm's ``create_attn``, with the keyword arguments of the counterpart here."""
    results: ClassVar[tuple[Published, ...]] = ()
    fused: bool = False
    """Whether kernels serve it, as it is set up: its gates are smaller than the map."""

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__()
        check_positive(channels=channels)
        self.channels = channels
        self.init = check_choice("init", init, INITS)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """What a person would look at, by name, for the input ``(B, C, H, W)``."""
        raise NotImplementedError

    def affinity(self, x: Tensor) -> ops.Affinity | None:
        """With which weights positions read others, for the input ``(B, C, H, W)``.

        None for a mechanism in which no position has weights of its own for others.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """The keyword arguments that give this mechanism again, but for ``init``, in order."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names if name not in ("channels", "init")}

    def __repr__(self) -> str:
        settings = self.settings()
        if self.init != "paper":
            settings = {**settings, "init": self.init}
        words = [str(self.channels), *(f"{name}={value!r}" for name, value in settings.items())]
        return f"{type(self).__name__}({', '.join(words)})"


class Gate(Attention):
    r"""Weighs its input elementwise: ``x`` times one or more factors that broadcast to it.

    The identity form gives each factor :math:`g` a learned strength :math:`a`, shared by the
    factors and zero at first: :math:`1 + a (g - 1)`. At :math:`a = 1` it is the paper's form.
    """

    mean_only: ClassVar[bool] = False
    """Whether it reads nothing but means over the positions, and gates channels."""
    published_identity: ClassVar[bool] = False
    """Whether the paper's initialisation is the identity, so that no strength is needed."""
    ends_blocks: ClassVar[bool] = False
    """Whether :meth:`whole` takes a shortcut."""

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        learned = init == "identity" and not self.published_identity
        strength = nn.Parameter(torch.zeros(())) if learned else None
        self.strength: nn.Parameter | None
        self.register_parameter("strength", strength)

    def gate(self, x: Tensor) -> dict[str, Tensor]:
        """The factors as the paper defines them, by name.

        Each broadcasts to ``x``, or is ``(B, G, H, W)``: one for each group of channels.
        """
        raise NotImplementedError

    def temper(self, gate: Tensor) -> Tensor:
        """A factor as it acts: itself, or drawn towards 1 in the identity form."""
        return gate if self.strength is None else (gate - 1) * self.strength + 1

    def factors(self, x: Tensor) -> dict[str, Tensor]:
        """The factors as they act."""
        return {name: self.temper(gate) for name, gate in self.gate(x).items()}

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        return self.factors(x)

    def weigh(self, x: Tensor, gates: dict[str, Tensor]) -> Tensor:
        """The input weighed by any gates of the names and shapes that :meth:`gate` gives.

        With those of :meth:`gate` it is the output.
        """
        return ops.scale(x, *(self.temper(gate) for gate in gates.values()))

    def plain_inference(self, x: Tensor) -> bool:
        """Whether plain operations are as fast as kernels for this map, without a gradient."""
        return self.mean_only

    def whole(
        self, x: Tensor, shortcut: Tensor | None = None, *, in_place: bool = False
    ) -> Tensor | None:
        """The output by one kernel; None where there is none for the form as it is set up.

        With a shortcut, a map of the shape of ``x``, what a residual block ends in: their sum
        through a ReLU, with the numbers of three operations. It may be written over ``x`` where
        that is said and no gradient is wanted.
        """
        return None

    def forward(self, x: Tensor) -> Tensor:
        y = self.whole(x)
        if y is not None:
            return y
        x = ops.fuse(x, plain_inference=self.plain_inference(x)) if self.fused else x
        return ops.scale(x, *self.factors(x).values())


class Mixer(Attention):
    r"""Adds to each position what it gathers from others: :math:`y = x + s\,\mathrm{mix}(x)`.

    The identity form learns the scale :math:`s` and starts it at zero. Without a scale of its own
    the paper's form is the plain sum.
    """

    published_scale: ClassVar[float | None] = None
    """Where the paper starts its learned scale; None if it has none."""
    identity_scale: ClassVar[float | None] = 0.0
    """Where the identity form starts it; None if the paper's form is the identity already."""
    uniform: bool = False
    """Whether all positions gain the same, as it is set up."""

    def __init__(self, channels: int, *, init: str = "paper") -> None:
        super().__init__(channels, init=init)
        start = self.identity_scale if init == "identity" else self.published_scale
        scale = None if start is None else nn.Parameter(torch.full((), start))
        self.scale: nn.Parameter | None
        self.register_parameter("scale", scale)

    def mix(self, x: Tensor) -> Tensor:
        """What is gathered, of the shape of ``x``, before the scale."""
        raise NotImplementedError

    def added(self, x: Tensor) -> Tensor:
        """What one pass adds to ``x``, in its dtype."""
        mixed = self.mix(x)
        return (mixed if self.scale is None else mixed * self.scale).to(x.dtype)

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """``"added"``: length of the added vector at each position, ``(B, 1, H, W)``."""
        return {"added": torch.linalg.vector_norm(self.forward(x) - x, dim=1, keepdim=True)}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.added(x)


class Replacement(Attention):
    r"""Stands in place of a spatial convolution, whose output size and channels it keeps.

    The paper's form is :math:`y = \mathrm{branch}(x)`. The identity form adds it to what the
    convolution of the host gives, :math:`y = h + s\,\mathrm{branch}(x)`, with a learned scale
    :math:`s` that starts at zero; alone, without a host, :math:`h` is the input.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output; None for as many.
        stride: Step of the output, which has ``(H - 1) // stride + 1`` rows.
        dilation: Distance between the positions that a local window covers.
        init: ``"paper"`` or ``"identity"``.
    """

    place = "replace"

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        init: str = "paper",
    ) -> None:
        super().__init__(channels, init=init)
        self.out_channels = channels if out_channels is None else out_channels
        check_positive(out_channels=self.out_channels, stride=stride, dilation=dilation)
        self.stride, self.dilation = stride, dilation
        scale = nn.Parameter(torch.zeros(())) if init == "identity" else None
        self.scale: nn.Parameter | None
        self.register_parameter("scale", scale)

    def branch(self, x: Tensor) -> Tensor:
        """What the paper computes in place of a convolution."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        """``"output"``: length of the branch's vector at each position, ``(B, 1, H, W)``."""
        return {"output": torch.linalg.vector_norm(self.branch(x), dim=1, keepdim=True)}

    def forward(self, x: Tensor, host: Tensor | None = None) -> Tensor:
        """The map ``(B, C, H, W)``, and what the convolution of the host made of it."""
        branch = self.branch(x)
        if self.scale is None:
            return branch.to(x.dtype)
        host = x if host is None else host
        return host + (branch * self.scale).to(host.dtype)


def blend(x: Tensor, y: Tensor, strength: Tensor | None) -> Tensor:
    """From ``x`` at strength 0, to the last bit, to ``y`` at 1; ``y`` itself without a strength.

    For mechanisms that are neither factors nor summands; the result has the dtype of ``x``.
    """
    return (y if strength is None else x + (y - x) * strength).to(x.dtype)


def bottleneck(channels: int, reduction: int) -> int:
    """Width of a bottleneck: ``channels // reduction``, at least 1.

    Raises:
        ValueError: If ``reduction`` is below 1.
        TypeError: If ``reduction`` is not a whole number.
    """
    check_positive(reduction=reduction)
    return max(1, channels // reduction)


def pointwise(conv: nn.Conv2d, z: Tensor) -> Tensor:
    """A 1x1 convolution of vectors ``(B, C, 1, 1)``, as the matrix product that it is.

    Convolutions of such maps are several times slower, forward and backward.
    """
    if conv._forward_hooks:
        return conv(z)  # someone wants to see what it gives
    weight, bias = weights(conv, z)
    return F.linear(z.flatten(1), weight.flatten(1), bias)[:, :, None, None]


def weights(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a layer that is not called, but used on a map.

    Pruning, and some normalisation of weights, sets them in hooks that run before a call.
    """
    for hook in layer._forward_pre_hooks.values():
        hook(layer, (x,))
    return layer.weight, layer.bias


def bare(*layers: nn.Module, also: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether layers do what their classes say and nothing more: a kernel may stand for them.

    Args:
        layers: Convolutions, and others of the classes ``also``, not of classes derived from them.
        also: See above.
    """
    kinds = (nn.Conv1d, nn.Conv2d, *also)
    watched = torch.nn.modules.module._has_any_global_hook()
    return not watched and not any(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or type(layer) not in kinds
        for layer in layers
    )


def check_odd(**values: int) -> None:
    """Refuse any keyword whose value is not an odd whole number of at least 1."""
    check_positive(**values)
    for name, value in values.items():
        if value % 2 == 0:
            raise InvalidValueError(f"{name} must be odd, but got {name}={value!r}")


def check_divides(**values: int) -> None:
    """Refuse two keywords of which the first does not divide the second.

    Example:
        >>> check_divides(num_groups=64, channels=48)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        foveate.errors.InvalidValueError: num_groups must divide channels, but got ...
    """
    check_positive(**values)
    (divisor, by), (dividend, number) = values.items()
    if number % by:
        raise InvalidValueError(
            f"{divisor} must divide {dividend}, but got {divisor}={by} and {dividend}={number}"
        )
