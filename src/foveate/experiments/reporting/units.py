"""Numbers as a person reads them: three digits, a prefix, a unit."""

import math

_PREFIXES = ("", "k", "M", "G", "T", "P")
MISSING = "-"


def si(value: float | None, unit: str = "") -> str:
    """A quantity of zero or more with a metric prefix.

    Example:
        >>> si(11_173_962), si(556_651_520), si(37.0, "J"), si(0.25, "J"), si(999_999)
        ('11.2 M', '557 M', '37.0 J', '0.25 J', '1.00 M')
        >>> si(64), si(None)
        ('64', '-')
    """
    if value is None:
        return MISSING
    power = 0
    while power < len(_PREFIXES) - 1 and _three_digits(value / 1000**power) >= 1000:
        power += 1
    scaled = value / 1000**power
    whole = power == 0 and isinstance(value, int)
    number = str(value) if whole else _write(scaled)
    return f"{number} {_PREFIXES[power]}{unit}".rstrip()


def duration(seconds: float | None) -> str:
    """A time in the units that a clock would show.

    Example:
        >>> duration(0.52), duration(41.26), duration(3725), duration(200_000)
        ('0.52 s', '41.3 s', '1 h 02 min', '55 h 33 min')
        >>> duration(125)
        '2 min 05 s'
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{_write(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def milliseconds(value: float | None) -> str:
    """A latency.

    Example:
        >>> milliseconds(3.2071), milliseconds(1234.5)
        ('3.21 ms', '1230 ms')
    """
    return MISSING if value is None else f"{_write(value)} ms"


def signed(value: float | None) -> str:
    """A difference in percentage points.

    Example:
        >>> signed(0.4251), signed(-1.2), signed(0.001), signed(-0.001), signed(None)
        ('+0.43', '-1.20', '0.00', '0.00', '-')
    """
    if value is None:
        return MISSING
    rounded = round(value, 2)
    return f"{rounded:+.2f}" if rounded else "0.00"


def at_most(count: int, limit: int = 1000) -> str:
    """A count that is not worth telling apart beyond a limit.

    Example:
        >>> at_most(31), at_most(14_732)
        ('31', '>1,000')
    """
    return f"{count:,}" if count <= limit else f">{limit:,}"


def p_value(p: float | None) -> str:
    """A p-value, never as zero.

    Example:
        >>> p_value(0.04217), p_value(0.00421), p_value(0.00002), p_value(1.0), p_value(0.9999)
        ('0.0422', '0.00421', '<0.001', '1', '1')
    """
    if p is None:
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3g}"


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def _write(value: float) -> str:
    """Three significant digits, but never more than two decimals."""
    rounded = _three_digits(value)
    digits = 0 if rounded == 0 else math.floor(math.log10(abs(rounded)))
    return f"{rounded:.{max(0, min(2, 2 - digits))}f}"
