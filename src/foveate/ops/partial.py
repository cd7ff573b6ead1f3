"""Gradients that can be differentiated again, for functions whose own cannot."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def partial_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> list[Tensor | None]:
    """The partial derivatives of a function in plain operations, times ``grad``.

    Args:
        function: Of all inputs.
        inputs: Its arguments, of which one may depend on another: that is left out of account.
        grad: The gradient of its result.

    Returns:
        One gradient for each input, None for those that need none.
    """
    apart = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t in apart if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(function(*apart), wanted, grad, create_graph=True))
    return [next(found) if t is not None and t.requires_grad else None for t in apart]
