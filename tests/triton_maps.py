"""Random maps for the tests of the Triton kernels, and how close results must come."""

import itertools
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Sums of 4355 and of 300 are cut into chunks, a row of 1100 and a column of 70 as well.
SHAPES = [
    (2, 3, 13, 17),
    (1, 40, 7, 7),
    (2, 1, 1, 1),
    (1, 70, 9, 33),
    (1, 2, 67, 65),
    (1, 300, 3, 5),
    (1, 2, 3, 1100),
    (2, 8, 70, 2),
]
# Largest error, in units of the largest value: what one rounding of the dtype makes, or for wide
# results some roundings of a sum.
BOUNDS = {torch.float64: 1e-14, torch.float32: 2e-6, torch.float16: 6e-4}
# The interpreter cuts digits off, the graphics card rounds.
BOUNDS[torch.bfloat16] = 4e-3 if DEVICE == "cuda" else 8e-3

YES_AND_NO = [(False, False), (False, True), (True, True), (True, False)]

CASES = [
    *((SHAPES[0], LAYOUTS[i % 2], dtype) for i, dtype in enumerate(DTYPES)),
    *(
        (shape, layout, DTYPES[(i + j) % 4])
        for (i, shape), (j, layout) in itertools.product(enumerate(SHAPES[1:]), enumerate(LAYOUTS))
    ),
]


def name_of(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value).split(".")[-1]


every_case = pytest.mark.parametrize(("shape", "layout", "dtype"), CASES, ids=name_of)


def every_case_and(names: tuple[str, ...], *options: tuple[object, ...]) -> pytest.MarkDecorator:
    """Each case with every other of the options; every value meets every shape in both layouts."""
    for place, name in enumerate(names):
        even, odd = ({option[place] for option in options[start::2]} for start in (0, 1))
        assert even == odd, f"a value of {name} would miss half of the shapes"
    met = [
        (*case, *option)
        for i, case in enumerate(CASES)
        for j, option in enumerate(options)
        if (i // 2 + j) % 2 == 0
    ]
    return pytest.mark.parametrize(("shape", "layout", "dtype", *names), met, ids=name_of)


both_layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])


class Maps:
    """Random maps and small tensors of one dtype and layout."""

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
    ) -> None:
        self.shape, self.dtype, self.layout = shape, dtype, layout
        self.wide = torch.promote_types(dtype, torch.float32)
        self.generator = torch.Generator().manual_seed(0)

    def map(self) -> Tensor:
        return self._random(self.shape, self.dtype)

    def small(self, *shape: int) -> Tensor:
        return self._random((self.shape[0], *shape), self.wide)

    def places(self, below: int, *shape: int) -> Tensor:
        found = torch.randint(below, (self.shape[0], *shape), generator=self.generator)
        return self.placed(found.int())

    def room(self, *shape: int) -> Tensor:
        return self.placed(torch.full((self.shape[0], *shape), torch.nan, dtype=self.wide))

    def index_room(self, *shape: int) -> Tensor:
        return self.placed(torch.full((self.shape[0], *shape), -7, dtype=torch.int32))

    def placed(self, t: Tensor) -> Tensor:
        return t.to(DEVICE).contiguous(memory_format=self.layout)

    def _random(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        t = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return self.placed(t.to(dtype))


def check(actual: Tensor, expected: Tensor) -> None:
    finite = expected[expected.isfinite()].abs()
    bound = BOUNDS[actual.dtype] * (finite.max().item() if finite.numel() else 0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound, equal_nan=True)


def check_sum(actual: Tensor, terms: Tensor, *dims: int) -> None:
    """Compare with a sum; the bound is in units of that of the magnitudes."""
    expected = terms.sum(dims, keepdim=True)
    size = terms.abs().sum(dims).nan_to_num(0, 0).max().item()
    bound = BOUNDS[actual.dtype] * size
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=bound, equal_nan=True)


def check_mean(actual: Tensor, z: Tensor, *dims: int) -> None:
    check_sum(actual, z / prod(z.shape[dim] for dim in dims), *dims)


def first_largest(z: Tensor, dim: int) -> Tensor:
    """Where the first of equal largest values is, or the first NaN: as NumPy defines it."""
    at = np.expand_dims(z.cpu().numpy().argmax(dim), dim)
    return torch.from_numpy(at).int().to(z.device)


def check_peak(peak: Tensor, at: Tensor, z: Tensor, dim: int) -> None:
    expected = first_largest(z, dim)
    assert torch.equal(at, expected)
    check(peak, z.gather(dim, expected.long()))


def spread_groups(t: Tensor, channels: int) -> Tensor:
    return t.double().repeat_interleave(channels // t.shape[1], dim=1)


def groups_of(channels: int) -> list[int]:
    return [1, *[g for g in (10, 8, 3, 2) if channels % g == 0][:1]]
