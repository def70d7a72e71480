"""Plain data as bytes: what msgpack can hold, and arrays of numpy and whole numbers of any size.

States of environments and of random generators pass through here on their way to a file.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

_ARRAY, _SCALAR, _WHOLE = range(1, 4)
_KINDS = "biufc"
_MOST_DEPTH = 50
_PLAIN = (
    "None, truth values, numbers, text, bytes, lists, tables with text as keys, and arrays of "
    "numbers are plain data"
)


class NotPlainError(TypeError):
    """A value that is not plain data."""


def pack(value: Any, name: str = "state") -> bytes:
    """Encode plain data; tuples become lists.

    Args:
        value: None, truth values, numbers, text, bytes, lists, tables with text as keys, and numpy
            arrays and scalars of numbers.
        name: name of the value in an error.

    Raises:
        NotPlainError: a part of it is something else.
    """
    packed = msgpack.packb(_checked(value, name, 0))
    assert packed is not None, "msgpack returns None only where it packs into a file"
    return packed


def unpack(data: bytes | memoryview) -> Any:
    """Decode what ``pack`` gave; arrays are new, and may be written.

    Raises:
        ValueError: the bytes are something else.
    """
    try:
        return msgpack.unpackb(data, ext_hook=_decoded, strict_map_key=True)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"not plain data: {error}") from error


def _checked(value: Any, name: str, depth: int) -> Any:
    if depth > _MOST_DEPTH:
        raise NotPlainError(f"{name} is nested more than {_MOST_DEPTH} deep; {_PLAIN}")
    if value is None or type(value) in (bool, float, str, bytes):
        return value
    if type(value) is int:
        if -(1 << 63) <= value < 1 << 64:
            return value
        return msgpack.ExtType(_WHOLE, f"{value:x}".encode())
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
        code = _ARRAY if isinstance(value, np.ndarray) else _SCALAR
        return msgpack.ExtType(code, _encoded(np.asarray(value)))
    if isinstance(value, list | tuple):
        return [_checked(item, f"{name}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: _checked(item, f"{name}[{key!r}]", depth + 1) for key, item in value.items()}
    raise NotPlainError(f"{name} is of the type {type(value).__name__}; {_PLAIN}")


def _encoded(array: NDArray[Any]) -> bytes:
    packed = msgpack.packb([array.dtype.str, list(array.shape), array.tobytes()])
    assert packed is not None, "msgpack returns None only where it packs into a file"
    return packed


def _decoded(code: int, data: bytes) -> Any:
    if code == _WHOLE:
        return int(data, 16)
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"an extension {code} of msgpack")
    name, shape, raw = msgpack.unpackb(data)
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of {dtype}")
    array = np.frombuffer(raw, dtype).reshape(shape).copy()
    return array if code == _ARRAY else array[()]


def check_alike(own: Any, other: Any, name: str) -> None:
    """Check that a saved part has the types, names, shapes and dtypes of the present one.

    Raises:
        ValueError: it does not.
    """
    alike = type(own) is type(other)
    if alike and isinstance(own, np.ndarray):
        alike = (own.shape, own.dtype) == (other.shape, other.dtype)
    elif alike and isinstance(own, dict):
        alike = own.keys() == other.keys()
    if not alike:
        raise ValueError(f"{name} is unlike the present one")
    if isinstance(own, dict):
        for key, part in own.items():
            check_alike(part, other[key], f"{name}[{key!r}]")


# ---- random generators ----


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """Return a generator's state as plain data."""
    return dict(generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: Any) -> None:
    """Continue from ``generator_state`` of a generator of the same kind.

    Raises:
        ValueError: it is something else.
    """
    try:
        generator.bit_generator.state = state
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a random generator's state: {error}") from error
