"""Checks of message values: pure functions that reject a bad value with a ``WireError``."""

from __future__ import annotations

import math
from typing import Any

from pdqn.text import is_printable, printable
from pdqn.wire import WireError, shown

MAX_NAME, _MAX_ENDPOINT = 80, 300
_MAX_NAMES = 1 << 12  # of one map; the wire format does not allow more anyway
_LARGEST = 1 << 62


def refusal(value: Any, name: str, accepted: str) -> WireError:
    """Make the error that names a field, its value and the accepted values."""
    return WireError("malformed", f"{name} is {shown(value)}, not {accepted}")


def check_text(value: Any, name: str, most: int = MAX_NAME) -> None:
    """Check that a value is a text of bounded length."""
    if type(value) is not str or len(value) > most:
        raise refusal(value, name, f"a text of at most {most} characters")


def check_name(value: Any, name: str, most: int = MAX_NAME) -> None:
    """Check that a value is a text of bounded length that a terminal shows as it is.

    A name tells one thing from another, so it is refused instead of being cleaned.
    """
    check_text(value, name, most)
    if not is_printable(value):
        raise refusal(value, name, "a text of printable characters")


def as_prose(value: Any, name: str, most: int, keep: str = "") -> str:
    """Check the length of a text for people, and escape what a terminal would obey.

    Args:
        value: the text.
        name: of the field.
        most: characters, before and after; what the escapes push beyond it is cut off.
        keep: characters that stay as they are.
    """
    check_text(value, name, most)
    return printable(value, keep)[:most]


def check_whole(value: Any, name: str, below: int = _LARGEST, *, least: int = 0) -> None:
    """Check that a value is a whole number from ``least`` to less than ``below``."""
    if type(value) is not int or not least <= value < below:
        raise refusal(value, name, f"a whole number from {least} to {below - 1}")


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number and not a bool."""
    try:
        return type(value) is not bool and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def check_finite(value: Any, name: str) -> None:
    """Check that a value is a finite number."""
    if not is_finite(value):
        raise refusal(value, name, "a finite number")


def check_names(value: Any, name: str) -> None:
    """Check that a value is a map whose keys are short texts."""
    if not isinstance(value, dict) or len(value) > _MAX_NAMES:
        raise refusal(value, name, f"a map of at most {_MAX_NAMES} names")
    for key in value:
        # Speed matters: reports are full of names, and nearly all of them pass here.
        plain = type(key) is str and key.isascii() and key.isprintable()
        if not plain or len(key) > MAX_NAME:
            check_name(key, f"a name in {name}")


def check_numbers(value: Any, name: str) -> None:
    """Check that a value is a map from names to finite numbers."""
    check_names(value, name)
    try:
        # Speed matters: the coordinator does this for every report of every member.
        finite = all(map(math.isfinite, value.values()))
    except (TypeError, OverflowError):
        finite = False
    if not finite or bool in map(type, value.values()):
        raise WireError("malformed", f"{name} holds a value that is not a finite number")


def check_addresses(value: Any, name: str) -> None:
    """Check that a value is a map from the names of services to their addresses."""
    check_names(value, name)
    for endpoint in value.values():
        check_name(endpoint, f"an address in {name}", _MAX_ENDPOINT)


def as_tuple(value: Any, name: str, most: int = _MAX_NAMES) -> tuple[Any, ...]:
    """Check the length of a list and convert it to a tuple."""
    if not isinstance(value, list | tuple) or len(value) > most:
        raise refusal(value, name, f"a list of at most {most}")
    return tuple(value)


def as_keys(value: Any, name: str) -> tuple[str, ...]:
    """Check a list or set of public keys and convert it to a tuple."""
    if isinstance(value, frozenset):
        value = sorted(value)
    keys = as_tuple(value, name)
    for key in keys:
        check_name(key, f"a key in {name}")
    return keys
