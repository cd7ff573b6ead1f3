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
    memory is that of input, weights and output. Exported programs gather it: views of a large
    window are so many operations that the exporter to ONNX takes minutes for some layers of them.

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
    if torch.compiler.is_exporting():
        windows = weights.unflatten(-3, (kernel_size, kernel_size))  # (B, ..., K, K, H_out, W_out)
        for dim in (-2, -1):
            padded = _gathered(padded, dim, windows.shape[dim], kernel_size, stride, dilation)
        return (windows * padded.movedim(-2, -3)).to(wide).sum((-4, -3)).to(x.dtype)
    offsets = range(0, dilation * kernel_size, dilation)
    views = (
        padded[..., i : i + rows : stride, j : j + columns : stride]
        for i in offsets
        for j in offsets
    )
    terms = ((w * v).to(wide) for w, v in zip(weights.unbind(-3), views, strict=True))
    return sum(terms, start=next(terms)).to(x.dtype)


def _gathered(
    x: Tensor, dim: int, length: int, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    """One side of a padded map as ``(kernel_size, length)``, the places of each window."""
    starts = stride * torch.arange(length, device=x.device)
    places = dilation * torch.arange(kernel_size, device=x.device)
    index = (places.unsqueeze(1) + starts).flatten()  # (kernel_size * length)
    return x.index_select(dim, index).unflatten(dim, (kernel_size, length))
