"""Observations as arrays of their space's dtype: kept in value, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pdqn.casting import as_array, as_mask

UPSIDE_DOWN = np.arange(12, dtype=np.uint8).reshape(4, 3)[::-1]
FOREIGN = np.array([1.5, -2.0], ">f4")
READ_ONLY = np.arange(3, dtype=np.uint8)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (UPSIDE_DOWN, "uint8", (4, 3)),
        (UPSIDE_DOWN[:, ::-1], "uint8", (4, 3)),
        (np.asfortranarray(UPSIDE_DOWN), "uint8", (4, 3)),
        (READ_ONLY, "uint8", (3,)),
        (FOREIGN, "float32", (2,)),
        (np.array([0.5], np.float16), "float32", (1,)),
        (np.array([0.5], np.float64), "float32", (1,)),
        (np.ma.masked_array([1.0, 2.0]), "float32", (2,)),
        (np.array([200], np.int64), "uint8", (1,)),
        (np.array([True, False]), "float32", (2,)),
        (np.array([0, 1], np.uint8), "bool", (2,)),
        ([1, 2.0, 3], "uint8", (3,)),
        (4, "int64", ()),
        (np.float64(2.0), "int64", ()),
        (300.0, "float32", ()),
    ],
)
def test_what_keeps_its_values_becomes_a_plain_copy(given: Any, dtype: str, shape: Any):
    array = as_array(given, dtype, shape)
    assert type(array) is np.ndarray
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.isnative
    assert array.shape == shape
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not np.shares_memory(array, np.asarray(given))
    np.testing.assert_array_equal(array, given)


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (np.full((2, 2), 0.5), "uint8", (2, 2)),
        (np.ones(3), "uint8", (3,)),
        (2.7, "int64", ()),
        (float("nan"), "int64", ()),
        ("3", "int64", ()),
        ("0.5", "float32", ()),
        (None, "float32", ()),
        (300, "uint8", ()),
        (-1, "uint8", ()),
        (np.array([300, 1]), "uint8", (2,)),
        (np.array([-1]), "uint64", (1,)),
        (2, "bool", ()),
        (np.array([1, 2]), "bool", (2,)),
        (1 << 70, "int64", ()),
        (1j, "float32", ()),
        (np.array([1.0, None]), "float32", (2,)),
        ([[1, 2], [3]], "float32", (2, 2)),
        (np.zeros((3, 2)), "float32", (2, 3)),
        ({"a": 1}, "float32", ()),
        (np.datetime64("2024-01-01"), "int64", ()),
    ],
)
def test_what_would_change_is_refused_in_a_short_line(given: Any, dtype: str, shape: Any):
    with pytest.raises(ValueError, match=r" is not (uint|int|float|bool|an array)") as refused:
        as_array(given, dtype, shape)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 130


def test_an_action_is_valid_unless_its_number_is_0():
    for given in ([0, 1], [False, True], [0, 0.5], np.array([0, 3], np.int8)):
        assert as_mask(given).tolist() == [False, True]


@pytest.mark.parametrize("given", [[-1, 1], [0, -np.inf], [np.nan, 1], ["0", "1"], None])
def test_masks_that_would_mean_the_opposite_are_refused(given: Any):
    with pytest.raises(ValueError, match=r"the action mask is .*; 0 and 1 are needed"):
        as_mask(given)
