"""Pictures that a person brings, from a folder or through the page, and what is refused of them."""

import base64
import binascii
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from foveate.errors import InvalidValueError
from foveate.experiments.data.images import EXTENSIONS, open_rgb, to_tensor
from foveate.figures import even

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 25_000_000
MOST_PIXELS_JPEG = 64_000_000
"""A JPEG is decoded at a fraction of its size, so that more of them fits into memory."""
LISTED = 1000
"""Of a larger folder an even choice can be picked."""
FORMATS = frozenset(("BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP"))
"""No format whose reader starts a program."""


@dataclass(frozen=True)
class Picture:
    """A picture at the sizes that networks want, and what it is called."""

    name: str
    folder: str | None
    """The folder that it lies in, which may be called like its class."""
    pixels: Mapping[int, Tensor]
    """``(3, S, S)`` of uint8, by S."""


class Album:
    """The images in a folder and below it, picked by number.

    Links that lead out of the folder are left out.

    Raises:
        ValueError: If there is no such folder, or no image in it.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InvalidValueError(f"there is no folder '{root}'")
        self._root = root.resolve()
        found = sorted(path for path in _files(self._root) if self._inside(path) is not None)
        if not found:
            accepted = " ".join(sorted(EXTENSIONS))
            raise InvalidValueError(f"'{root}' holds no image; accepted: {accepted}")
        self.count = len(found)
        self._paths = even(found, LISTED)

    @property
    def names(self) -> list[str]:
        """What the pictures are called, in the order of their numbers."""
        return [_shown(path.relative_to(self._root)) for path in self._paths]

    def read(self, number: int) -> tuple[str, str, bytes]:
        """Name, name of the folder, and content of a picture.

        Raises:
            ValueError: If there is no such number, or the file is gone or too large.
        """
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidValueError(f"a picture is picked by its number, but got {number!r:.80}")
        if not 0 <= number < len(self._paths):
            raise InvalidValueError(f"there are {len(self._paths)} pictures, but got {number}")
        listed = self._paths[number]
        name = _shown(listed.relative_to(self._root))
        path = self._inside(listed)  # again: it may have been replaced by a link
        if path is None:
            raise InvalidValueError(f"'{name}' is no longer a file of this folder")
        try:
            with path.open("rb") as file:
                return name, _shown(Path(listed.parent.name)), file.read(MOST_BYTES + 1)
        except OSError as error:
            raise InvalidValueError(f"'{name}' cannot be read: {error.strerror}") from error

    def _inside(self, path: Path) -> Path | None:
        """The file itself; None if it lies outside the folder, or is not a plain file."""
        real = path.resolve()
        return real if real.is_relative_to(self._root) and real.is_file() else None


def sent(name: object, data: object) -> tuple[str, bytes]:
    """Name and content of a file that came through the page, in base64.

    Raises:
        ValueError: If it is none, or too large.
    """
    if not isinstance(name, str) or not isinstance(data, str):
        raise InvalidValueError("a file is sent with its name and its content")
    if len(data) > 4 * (MOST_BYTES // 3 + 1):
        raise _too_large(name)
    try:
        return name, base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise InvalidValueError(f"'{name}' did not arrive whole") from error


def picture(name: str, folder: str | None, content: bytes, sizes: Iterable[int]) -> Picture:
    """Decode a picture; its memory is bounded whatever the file says.

    Raises:
        ValueError: If it is too large, of another format, or broken.
    """
    if len(content) > MOST_BYTES:
        raise _too_large(name)
    try:
        with Image.open(io.BytesIO(content)) as image:  # reads the header alone
            kind, width, height = image.format, *image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidValueError(f"'{name}' has far too many pixels: {error}") from error
    except Exception as error:  # whatever a decoder raises on broken bytes
        raise InvalidValueError(f"'{name}' is not an image that can be read") from error
    most = MOST_PIXELS_JPEG if kind in ("JPEG", "MPO") else MOST_PIXELS
    if kind not in FORMATS:
        accepted = ", ".join(sorted(FORMATS))
        raise InvalidValueError(f"'{name}' is of the format {kind}; accepted: {accepted}")
    if width * height > most:
        raise InvalidValueError(
            f"'{name}' has {width * height / 1e6:.1f} megapixels ({width} by {height}); "
            f"accepted: up to {most / 1e6:.0f} for {kind}"
        )
    try:
        pixels = {size: to_tensor(open_rgb(io.BytesIO(content), size), size) for size in sizes}
    except Exception as error:  # as above, of bytes that break off after the header
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InvalidValueError(f"'{name}' cannot be read as an image: {reason}") from error
    return Picture(name, folder, pixels)


def _too_large(name: str) -> InvalidValueError:
    return InvalidValueError(f"'{name}' is too large; accepted: up to {MOST_BYTES >> 20} MB")


def _files(root: Path) -> Iterable[Path]:
    for base, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                yield Path(base, name)


def _shown(path: Path) -> str:
    """The name of a file as text, also where its bytes are none."""
    return os.fsencode(path).decode(errors="replace")
