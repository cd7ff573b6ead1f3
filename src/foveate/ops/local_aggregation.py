"""A convolution whose kernel differs from position to position."""

import torch
import torch.nn.functional as F
from torch import Tensor


def local_aggregation(
    x: Tensor, weights: Tensor, *, kernel_size: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    r"""At each position the weighted sum of the window around it, with weights of its own.

    .. math:: y_{i, j} = \sum_{u, v} w_{i, j, u, v}\,x_{s i + d u,\, s j + d v}

    The window is read by shifted views, one for each of its places; it is never gathered, so the
    memory is that of input, weights and output.

    Args:
        x: Values ``(B, ..., H, W)``, taken as zero around the map.
        weights: ``(B, ..., kernel_size ** 2, H_out, W_out)``, row by row of the window; the
            dimensions between broadcast against those of ``x``.
        kernel_size: Odd side of the window.
        stride: Step :math:`s` of the output.
        dilation: Distance :math:`d` between places of the window.

    Returns:
        Sums ``(B, ..., H_out, W_out)``.
    """
    rows, columns = ((side - 1) * stride + 1 for side in weights.shape[-2:])
    padded = F.pad(x, [dilation * (kernel_size // 2)] * 4)
    wide = torch.promote_types(x.dtype, torch.float32)  # a narrow sum would lose digits each step
    offsets = range(0, dilation * kernel_size, dilation)
    views = (
        padded[..., i : i + rows : stride, j : j + columns : stride]
        for i in offsets
        for j in offsets
    )
    terms = ((w * v).to(wide) for w, v in zip(weights.unbind(-3), views, strict=True))
    return sum(terms, start=next(terms)).to(x.dtype)
