"""Fonts for names in any script, and a word where none is installed."""

import unicodedata
import warnings
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

FONTS = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Microsoft YaHei"),
    *("WenQuanYi Micro Hei", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Telugu", "Noto Sans Ethiopic"),
)
"""The first comes with matplotlib; the others, where installed, write what it cannot."""

_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO")
_told: set[str] = set()


@cache
def installed() -> list[str]:
    """Those of :data:`FONTS` that are here."""
    here = set(font_manager.get_font_names())
    return [name for name in FONTS if name in here]


def warn_of_missing(figure: Figure) -> None:
    """Name, once for each, the package whose fonts would write what is drawn as a box."""
    texts = figure.findobj(Text)
    letters = {c for text in texts if isinstance(text, Text) for c in text.get_text() if c > "\x7f"}
    for letter in sorted(letters):
        package = _package(letter)
        if package is not None and package not in _told:
            _told.add(package)
            warnings.warn(
                f"no installed font has '{letter}'; for its script install the package {package}",
                stacklevel=2,
            )


@cache
def _package(letter: str) -> str | None:
    """What to install for a letter; None if a font has it, or it is not to be seen."""
    if unicodedata.category(letter)[0] in "CZ" or any(_has(name, letter) for name in installed()):
        return None
    east = unicodedata.name(letter, "").startswith(_EAST_ASIAN)
    return "fonts-noto-cjk (Noto Sans CJK)" if east else "fonts-noto (Noto Sans)"


@cache
def _has(family: str, letter: str) -> bool:
    font = font_manager.get_font(font_manager.findfont(family))
    return bool(font.get_char_index(ord(letter)))
