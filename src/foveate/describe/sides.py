"""The sides of a tensor as expressions in those of the input, told from two runs."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

SIZES = ((2, 512, 112, 168), (3, 1024, 280, 224))
"""Batch, channels, height and width of the two inputs, no two in the same proportion."""


def in_letters(small: Iterable[int], large: Iterable[int]) -> str:
    """A shape, without the batch, from what it is for each of the ``SIZES``.

    Example:
        >>> in_letters((2, 32, 112, 1), (3, 64, 280, 1))
        'C/16 × H × 1'
        >>> in_letters((64, 223, 18816), (96, 559, 62720))
        '32B × (2H - 1) × HW'
        >>> in_letters((408,), (760,))
        '(C/4 + H + W)'
        >>> in_letters((92, 20), (156, 25))  # the second is none of these
        '(C/8 + 28) × …'
    """
    sides = [_side(*both) for both in zip(small, large, strict=True)]
    return " × ".join(sides[1:] if sides[:1] == ["B"] else sides) or "1"


def _side(small: int, large: int) -> str:
    if small == large:
        return str(small)
    product = _product(small, large)
    if product is not None:
        return product
    for letter, one, other in zip("BCHW", *SIZES, strict=True):
        for factor in (1, 2, Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(1, 16)):
            rest = small - factor * one
            if rest == large - factor * other:
                sign = "-" if rest < 0 else "+"
                return f"({_times(Fraction(factor), letter)} {sign} {abs(rest)})"
    (_, _, *first), (_, _, *second) = SIZES
    product = _product(small - sum(first), large - sum(second))
    return "…" if product is None else f"({product} + H + W)"


def _product(small: int, large: int) -> str | None:
    for letters, (one, other) in _products():
        ratio = Fraction(small, one)
        if ratio == Fraction(large, other) and _is_plain(ratio):
            return _times(ratio, letters)
    return None


def _is_plain(ratio: Fraction) -> bool:
    """A multiple, a part, or so many sixteenths: not a product that is equal by chance."""
    return ratio > 0 and (ratio.numerator == 1 or 64 % ratio.denominator == 0)


def _products() -> Iterator[tuple[str, tuple[int, int]]]:
    """Products of sides of the input, the likeliest first, and their values."""
    (b, c, h, w), (b2, c2, h2, w2) = SIZES
    yield "C", (c, c2)
    yield "H", (h, h2)
    yield "W", (w, w2)
    yield "HW", (h * w, h2 * w2)
    yield "(H + W)", (h + w, h2 + w2)
    yield "B", (b, b2)
    yield "BC", (b * c, b2 * c2)
    yield "BH", (b * h, b2 * h2)
    yield "BW", (b * w, b2 * w2)
    yield "BHW", (b * h * w, b2 * h2 * w2)
    yield "CHW", (c * h * w, c2 * h2 * w2)


def _times(ratio: Fraction, letters: str) -> str:
    above = f"{ratio.numerator if ratio.numerator > 1 else ''}{letters}"
    return above if ratio.denominator == 1 else f"{above}/{ratio.denominator}"
