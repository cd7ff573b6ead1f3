"""The kernels of a gate and nothing else: its calls again, on the tensors of a step before."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from foveate import kernels

Call = Callable[[], object]


class Recorder:
    """Kernels that are called as ever, and remembered with what they were given."""

    def __init__(self, backend: Any, calls: list[Call]) -> None:
        self._backend = backend
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = getattr(self._backend, name)

        def remembered(*given: Any) -> Any:
            self._calls.append(partial(kernel, *given))
            return kernel(*given)

        return remembered


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of kernels that follow, in their order."""
    calls: list[Call] = []

    def pick(*given: Any, **options: Any) -> Recorder | None:
        backend = original(*given, **options)
        return None if backend is None else Recorder(backend, calls)

    original = kernels.pick
    with mock.patch.object(kernels, "pick", pick):
        yield calls


def calls_of(step: Call) -> list[Call]:
    """The calls of kernels in a step, in their order, each on the tensors that it had."""
    with recorded() as calls:
        step()
    return calls


def again(calls: Sequence[Call]) -> Call | None:
    """These calls in one, without what stands between them and in memory that is there.

    None if there are none.
    """

    def repeat() -> None:
        for call in calls:
            call()

    return repeat if calls else None
