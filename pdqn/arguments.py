"""Arguments of environments: the values that files, messages and models give back as they are.

These are texts, numbers of any size, NaN and infinity, booleans, and lists and tables of them.
"""

from __future__ import annotations

import datetime
import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from pdqn.text import is_utf8

_ACCEPTED = "texts, numbers, true and false, and lists and tables of them are accepted"
_MAX_BYTES = 1 << 18  # of a table as TOML; a message that holds two must stay below its limit
_MAX_DEPTH = 32  # of lists and tables in one another: readers and writers recurse
_MAX_INTEGER = 10**1000  # Python itself refuses to read far longer ones
_SHOWN = 60  # characters


def plain_arguments(name: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Copy arguments as every process of a run gets them, and as a file of the run has them.

    Tuples become lists, dates and times become texts, and numbers of numpy become Python's.

    Args:
        name: the setting that holds them, for errors.
        values: the arguments.

    Raises:
        ValueError: one of them cannot be written, or they are too many. The message is a line that
            names it.
    """
    plain = {_key(name, key): _plain(f"{name}.{key}", value, 1) for key, value in values.items()}
    size = len(tomli_w.dumps(plain).encode())
    if size > _MAX_BYTES:
        raise ValueError(f"{name} takes {size} bytes; at most {_MAX_BYTES} are accepted")
    return plain


def same(one: Any, other: Any) -> bool:
    """Return whether two arguments are equal; NaN equals NaN, and a tuple an equal list."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _plain(name: str, value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{name[:_SHOWN]}... is nested more than {_MAX_DEPTH} times")
    if isinstance(value, Mapping):
        return {_key(name, k): _plain(f"{name}.{k}", v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return _list(name, value, depth)
    if _is_truth(value):
        return bool(value)
    if isinstance(value, str):
        return _text(name, value)
    if isinstance(value, numbers.Integral):
        if abs(int(value)) >= _MAX_INTEGER:
            raise ValueError(f"{name} is a number of more than 1000 digits")
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if value is None:
        raise ValueError(f"{name} = None: an argument cannot be None; leave it out")
    raise ValueError(f"{name} = {_shown(value)}; {_ACCEPTED}")


def _is_truth(value: Any) -> bool:
    """Tell whether a value is true or false, of Python or of numpy."""
    # Whoever has a value of numpy's has imported it; --help need not.
    numpy = sys.modules.get("numpy")
    return isinstance(value, bool) or (numpy is not None and isinstance(value, numpy.bool_))


def _list(name: str, values: Sequence[Any], depth: int) -> list[Any]:
    return [_plain(f"{name}[{i}]", value, depth + 1) for i, value in enumerate(values)]


def _key(name: str, key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{name} has the key {_shown(key)}; keys are texts")
    return _text(name, key)


def _text(name: str, text: str) -> str:
    if not is_utf8(text):
        raise ValueError(f"{name} = {text!a:.60}; expected a text in UTF-8")
    return str(text)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {' '.join(f'{value!r:.200}'.split())[:_SHOWN]}"
