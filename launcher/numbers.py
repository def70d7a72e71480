"""Numbers as people read them: three significant digits, a unit, no more."""

from __future__ import annotations

import math

_NONE = "-"
_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float | None) -> str:
    """Format as ``12``, ``0.372``, ``12.3k`` or ``1.20e-5``; ``-`` if None or not finite."""
    if value is None or not math.isfinite(value):
        return _NONE
    if isinstance(value, int) and abs(value) < 1000:
        return str(value)
    if 0 < abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    for scale, suffix in _THOUSANDS:
        # From 999.5 on, three digits round up into the next unit.
        if abs(value) >= 0.9995 * scale:
            return _digits(value / scale) + suffix
    return _digits(value)


def compact(value: float) -> str:
    """Format a tick of an axis, of which many fit: ``0.5``, ``1.5k``, ``2M``."""
    for scale, suffix in _THOUSANDS:
        if abs(value) >= scale:
            return f"{value / scale:.6g}{suffix}"
    return f"{value:.6g}"


def uncertainty(value: float) -> str:
    """Format a standard error, for which two digits are enough."""
    return f"{value:.2g}" if value < 99.5 else number(value)


def size(value: float | None) -> str:
    """Format a number of bytes in decimal units: ``512 B``, ``1.23 GB``."""
    if value is None or not math.isfinite(value):
        return _NONE
    text = number(round(value))
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} B"


def percent(share: float | None) -> str:
    """Format a share as a whole percentage."""
    return _NONE if share is None or not math.isfinite(share) else f"{share:.0%}"


def in_unit(value: float | None, unit: str) -> str:
    """Write a value as its unit is read: bytes, shares and rates with their sign."""
    if unit == "share":
        return percent(value)
    write = size if unit.startswith("bytes") else number
    return write(value) + ("/s" if unit.endswith("/s") else "")


def duration(seconds: float | None) -> str:
    """Format a duration as ``0:07``, ``12:34``, ``1:02:03`` or ``2d 01:02``."""
    if seconds is None or not math.isfinite(seconds):
        return _NONE
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def plural(count: int, noun: str) -> str:
    """Format a count and its noun: ``1 actor``, ``12.3k actors``."""
    return f"{number(count)} {noun}" + ("" if count == 1 else "s")


def _digits(value: float) -> str:
    """Format with three significant digits, zeros included, so that columns do not jitter."""
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value else "0"
