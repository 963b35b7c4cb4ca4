"""How figures are written for people."""

from engines.fidelity.accuracy import BEST_DB

NOTHING = "\N{EN DASH}"
"""Stands where there is no figure."""

_UNITS = ("bytes", "KiB", "MiB", "GiB")


def decibels(value: float | None) -> str:
    """`35.2 dB`"""
    if value is None:
        return NOTHING
    if value >= BEST_DB:
        return "exact"
    return "lost" if value <= -BEST_DB else f"{value:.1f} dB"


def share(value: float | None) -> str:
    """`99.17%`; never rounded up to all of it."""
    if value is None:
        return NOTHING
    percent = 100.0 * value
    return "100%" if value >= 1 else f"{min(percent, 99.99):.2f}%"


def cosine(value: float | None) -> str:
    """`0.99982`"""
    return NOTHING if value is None else f"{value:.5f}"


def milliseconds(value: float | None) -> str:
    """Three digits."""
    return NOTHING if value is None else f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def times(value: float | None) -> str:
    """`3.21x`"""
    return NOTHING if value is None else f"{value:.2f}x"


def rate(value: float | None) -> str:
    """Rows in a second."""
    return NOTHING if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def size(value: int | None) -> str:
    """`193 KiB`"""
    if value is None:
        return NOTHING
    scaled, unit = float(value), 0
    while scaled >= 1024 and unit < len(_UNITS) - 1:
        scaled, unit = scaled / 1024, unit + 1
    return f"{scaled:.0f} {_UNITS[unit]}" if unit == 0 or scaled >= 100 else f"{scaled:.1f} {_UNITS[unit]}"


def relative_error(sqnr_db: float) -> float:
    """Root mean square of the error in percent of the signal's."""
    return float(100.0 * 10.0 ** (-sqnr_db / 20.0))


def measured(measure: str, value: float | None) -> str:
    """What a clause of a contract measures, with its unit."""
    if value is None:
        return NOTHING
    if measure.endswith("_db"):
        return decibels(value)
    if measure == "max_abs_error":
        return f"{value:.3g}"
    return cosine(value) if measure == "cosine" else share(value)
