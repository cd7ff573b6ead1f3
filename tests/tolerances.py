"""How close a computation must come to the same in float64: the one table of the tests."""

import torch
from torch import Tensor

TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Compare with a float64 tensor, at the tolerance of the dtype of ``actual``."""
    torch.testing.assert_close(actual.double(), expected, **TOLERANCES[actual.dtype])
