"""The Triton kernels compile where there is no graphics card; test_triton_kernels.py runs this.

The interpreter takes code that the compiler refuses.
"""

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from foveate.kernels import triton
from triton_maps import Maps, both_layouts


class Card:
    """A graphics card that nothing runs on."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[CompiledKernel]:
    """Every launch compiles instead, and adds what came of it."""
    found: list[CompiledKernel] = []

    def warm_up(kernel: JITFunction, grid: tuple[int], *arguments: object, **options: object):
        found.append(kernel.warmup(*arguments, grid=grid, **options))

    driver.set_active(Card())
    monkeypatch.setattr(JITFunction, "__getitem__", lambda self, grid: partial(warm_up, self, grid))
    return found


def values(maps: Maps, function: Callable[..., None]) -> dict[str, object]:
    """All arguments of a kernel, by their names; their values do not matter."""
    _, C, H, W = maps.shape
    shapes = {"row": (C, H, 1), "column": (C, 1, W), "spatial": (2, H, W), "map": (2, H, W)}
    numbers = {"groups": 2, "total": False, "kind": 2, "regularization": 1e-4}
    maps_of = {"x", "other", "source", "grad", "y"}
    if "dot" not in function.__name__:
        maps_of.add("to")
    found: dict[str, object] = {}
    for name in inspect.signature(function).parameters:
        kind = next((shape for start, shape in shapes.items() if start in name), (C, 1, 1))
        if name in numbers:
            found[name] = numbers[name]
        elif name in maps_of:
            found[name] = maps.map()
        elif name in ("at", "channel_at", "rows_at", "columns_at"):
            found[name] = maps.index_room(*kind)
        else:
            found[name] = maps.small(*kind)
    return found


# Sides that are a multiple of 16, and that are not; each pair of the three occurs.
@pytest.mark.parametrize(
    ("layout", "dtype", "shape"),
    [
        (torch.contiguous_format, torch.bfloat16, (1, 64, 16, 48)),
        (torch.contiguous_format, torch.float64, (2, 6, 13, 17)),
        (torch.channels_last, torch.float64, (1, 64, 16, 48)),
        (torch.channels_last, torch.bfloat16, (2, 6, 13, 17)),
    ],
    ids=str,
)
def test_everything_compiles(
    layout: torch.memory_format,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    compiled: list[CompiledKernel],
) -> None:
    functions = [f for f in vars(triton).values() if inspect.isfunction(f)]
    assert triton.combine in functions
    for function in functions:
        before = len(compiled)
        function(**values(Maps(shape, dtype, layout), function))
        assert len(compiled) > before
    assert all(kernel.asm["ptx"] for kernel in compiled)


@both_layouts
@pytest.mark.parametrize("kind", [0, 1])
def test_kinds_of_pairs_compile_without_what_may_be_absent(
    layout: torch.memory_format, kind: int, compiled: list[CompiledKernel]
) -> None:
    maps = Maps((2, 6, 13, 17), torch.float32, layout)
    arguments = values(maps, triton.pair_gate)
    absent = dict.fromkeys(("strength", "add", "map", "weight"))
    triton.pair_gate(**arguments | absent | {"kind": kind})
    triton.pair_dot(**values(maps, triton.pair_dot) | {"kind": kind, "strength": None})
    assert len(compiled) >= 3


@both_layouts
def test_a_gate_alone_is_read_and_written_in_the_widest_pieces(
    layout: torch.memory_format, compiled: list[CompiledKernel]
) -> None:
    maps = Maps((1, 64, 14, 28), torch.bfloat16, layout)
    gate = maps.small(64, 1, 1)
    # 64 channels and 392 positions are multiples of 8 elements, which is 16 bytes.
    triton.combine(maps.map(), None, False, 1, gate, *[None] * 20, maps.map())
    (kernel,) = compiled
    assert "st.global.v4" in kernel.asm["ptx"]
    assert "ld.global.b16" not in kernel.asm["ptx"]
