"""The metrics of a run: one JSON object a line, cut back to the checkpoint when it resumes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.errors import InvalidValueError


class Journal:
    """Appends to ``path`` after its first ``length`` bytes; what follows them is dropped.

    Raises:
        ValueError: If the file is shorter than that.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self._file = path.open("ab")
        size = os.path.getsize(path)
        if size < length:
            self._file.close()
            raise InvalidValueError(f"{path} lost lines: {size} bytes, but {length} were saved")
        self._file.truncate(length)

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")

    def sync(self) -> int:
        """Bring everything to the disk and return the length."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The rows of a journal; a line without its end, torn by a crash, is no row."""
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]
