"""Ctrl-C that waits for the end of the current step."""

import signal
from types import FrameType
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """Training stopped at a person's wish, with its state saved."""


class CtrlC:
    """While entered, notes Ctrl-C or SIGTERM in ``pressed``; a second one acts at once."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.pressed = False
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
