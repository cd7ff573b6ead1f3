"""The sides of a tensor as expressions in those of the input, told from several runs."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

SIZES = ((2, 512, 112, 168), (3, 1024, 280, 224), (5, 2048, 168, 336))
"""Batch, channels, height and width of the inputs, no two in the same proportion."""

FACTORS = (1, 2, Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(1, 16))

Values = tuple[int, ...]


def in_letters(*shapes: Iterable[int]) -> str:
    """A shape, without the batch, from what it is for each of the ``SIZES``.

    Example:
        >>> in_letters((2, 32, 112, 1), (3, 64, 280, 1), (5, 128, 168, 1))
        'C/16 × H × 1'
        >>> in_letters((64, 223), (96, 559), (160, 335))
        '32B × (2H - 1)'
        >>> in_letters((408, 20), (760, 25), (1016, 51))  # the second is nothing simple
        '(C/4 + H + W) × …'
    """
    sides = [_side(values) for values in zip(*shapes, strict=True)]
    return " × ".join(sides[1:] if sides[:1] == ["B"] else sides) or "1"


def _side(values: Values) -> str:
    if len(set(values)) == 1:
        return str(values[0])
    if product := _product(values):
        return product
    for letter, sizes in zip("BCHW", zip(*SIZES, strict=True), strict=True):
        for factor in FACTORS:
            rest, *others = (v - factor * size for v, size in zip(values, sizes, strict=True))
            if set(others) == {rest}:
                sign = "-" if rest < 0 else "+"
                return f"({_times(Fraction(factor), letter)} {sign} {abs(rest)})"
    product = _product(tuple(v - h - w for v, (_, _, h, w) in zip(values, SIZES, strict=True)))
    return f"({product} + H + W)" if product else "…"


def _product(values: Values) -> str | None:
    for letters, sizes in _products():
        ratio, *others = (Fraction(v, size) for v, size in zip(values, sizes, strict=True))
        plain = ratio.numerator == 1 or 64 % ratio.denominator == 0
        if ratio > 0 and plain and set(others) == {ratio}:
            return _times(ratio, letters)
    return None


def _products() -> Iterator[tuple[str, Values]]:
    """Products of sides of the input, the likeliest first, and their values."""
    for letters in ("C", "H", "W", "HW"):
        yield letters, _values(letters)
    yield "(H + W)", tuple(h + w for _, _, h, w in SIZES)
    for letters in ("B", "BC", "BH", "BW", "BHW", "CHW"):
        yield letters, _values(letters)


def _values(letters: str) -> Values:
    return tuple(math.prod(size["BCHW".index(letter)] for letter in letters) for size in SIZES)


def _times(ratio: Fraction, letters: str) -> str:
    above = f"{ratio.numerator if ratio.numerator > 1 else ''}{letters}"
    return above if ratio.denominator == 1 else f"{above}/{ratio.denominator}"
