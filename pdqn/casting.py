"""Observations as arrays of their space's dtype, without a silent change of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def as_array(given: Any, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Copy an observation, or a part of one, to an array of a dtype.

    Arrays of floats become floats, and those of whole numbers become floats or whole numbers.
    Python numbers and lists may also be floats without a fraction where whole numbers are needed.
    Where the dtype is bool, all values must be 0 or 1. The bounds of a space do not matter:
    environments exceed them by a bit.

    Args:
        given: an array of any layout, nested lists, or a number.
        dtype: a dtype of booleans or numbers.
        shape: shape that it must have.

    Returns:
        A contiguous copy in native byte order, dtype[*shape].

    Raises:
        ValueError: another shape, no numbers, or values that the dtype does not have.
    """
    try:
        array = np.array(given, order="C")
    except Exception as error:  # lists of different lengths, and any object's own conversion
        raise ValueError(f"{shown(given)} is not an array") from error
    wanted = np.dtype(dtype)
    if array.shape != shape:
        raise ValueError(f"{array.dtype}{list(array.shape)} is not {wanted}{list(shape)}")
    if array.dtype == wanted:
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{shown(given)} is not {wanted}{list(shape)}")
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(wanted)
    fraction = array.dtype.kind == "f" and wanted.kind in "iu" and isinstance(given, np.ndarray)
    lossless = wanted.kind == "f" or np.array_equal(converted, array)
    if fraction or not lossless:
        raise ValueError(f"{shown(given)} of {array.dtype} is not {wanted}{list(shape)}")
    return converted


def as_mask(given: Any) -> NDArray[np.bool_]:
    """Convert an action mask to booleans: an action is valid unless its number is 0.

    Raises:
        ValueError: the mask holds negative numbers, NaN or no numbers. Masks that are added to
            values, 0 and minus infinity, would mean the opposite.
    """
    mask = np.array(given)
    if mask.dtype.kind not in "biuf" or not (mask >= 0).all():
        raise ValueError(f"the action mask is {shown(given)}; 0 and 1 are needed")
    return mask != 0


def is_binary(values: NDArray[Any]) -> bool:
    """Return whether all values are 0 or 1."""
    return values.dtype == np.bool_ or bool(((values == 0) | (values == 1)).all())


def shown(values: Any) -> str:
    """Format values for an error, in one line of at most 80 characters."""
    return " ".join(f"{values!r:.200}".split())[:80]
