"""The sum tree against a list that is searched from its beginning."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.sum_tree import SumTree

# Small whole numbers have exact sums, so tree and list must agree to the last bit.
whole_priorities = st.integers(0, 7).map(float)
any_priorities = st.floats(0, 1e30, allow_subnormal=True)


class ListTree:
    """The same sums from a list, without a tree."""

    def __init__(self, capacity: int) -> None:
        self.priorities = [0.0] * capacity

    def set(self, indices: list[int], priorities: list[float]) -> None:
        for index, priority in zip(indices, priorities, strict=True):
            self.priorities[index] = priority

    def find(self, prefix_sum: float) -> int:
        sums = accumulate(self.priorities)
        return next(index for index, upper in enumerate(sums) if prefix_sum < upper)


def leaves(*indices: int) -> np.ndarray:
    return np.array(indices, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def tree_of(*priorities: float) -> SumTree:
    tree = SumTree(len(priorities))
    tree.set_range(0, floats(*priorities))
    return tree


@st.composite
def operations(draw: st.DrawFn, capacity: int) -> tuple[str, list[int], list[float]]:
    kind = draw(st.sampled_from(["set", "set_range", "clear_range"]))
    if kind == "set":
        indices = draw(st.lists(st.integers(0, capacity - 1), max_size=20))
    else:
        start = draw(st.integers(0, capacity))
        indices = list(range(start, draw(st.integers(start, capacity))))
    values = [0.0] * len(indices)
    if kind != "clear_range":
        values = draw(st.lists(whole_priorities, min_size=len(indices), max_size=len(indices)))
    return kind, indices, values


def apply(tree: SumTree, kind: str, indices: list[int], values: list[float]) -> None:
    if kind == "set":
        tree.set(leaves(*indices), floats(*values))
    elif indices and kind == "set_range":
        tree.set_range(indices[0], floats(*values))
    elif indices:
        tree.clear_range(indices[0], indices[-1] + 1)


@settings(deadline=None)
@given(st.data(), st.integers(1, 37))
def test_after_any_operations_the_tree_agrees_with_a_list(data: st.DataObject, capacity: int):
    tree, twin = SumTree(capacity), ListTree(capacity)
    for kind, indices, values in data.draw(st.lists(operations(capacity), max_size=8)):
        apply(tree, kind, indices, values)
        twin.set(indices, values)
        tree.check_valid()
        assert tree.total == sum(twin.priorities)
        assert tree.get(np.arange(capacity)).tolist() == twin.priorities
        halves = np.arange(0, tree.total, 0.5)
        if len(halves):
            assert tree.find(halves).tolist() == [twin.find(u) for u in halves]


@settings(deadline=None)
@given(st.lists(any_priorities, min_size=1, max_size=50), st.lists(st.floats(0, 1), min_size=1))
def test_no_leaf_of_zero_priority_is_ever_found(priorities: list[float], fractions: list[float]):
    tree = tree_of(*priorities)
    if tree.total > 0:
        points = floats(*fractions, 1.0) * tree.total
        assert (tree.get(tree.find(points)) > 0).all()


def test_the_upper_edge_finds_the_last_leaf_with_a_priority():
    tree = tree_of(0.1, 0.2, 0.3, 0.0, 0.0)
    beyond = np.nextafter(tree.total, np.inf)
    assert tree.find(floats(tree.total, beyond)).tolist() == [2, 2]


def test_a_point_on_a_border_belongs_to_the_leaf_above_it():
    assert tree_of(2, 0, 3).find(floats(0, 1.5, 2, 4.5)).tolist() == [0, 0, 2, 2]


def test_the_last_of_several_priorities_for_one_leaf_stays():
    tree = SumTree(4)
    tree.set(leaves(1, 2, 1), floats(5, 6, 7))
    assert tree.get(leaves(0, 1, 2, 3)).tolist() == [0, 7, 6, 0]
    assert tree.total == 13


def test_millions_of_updates_leave_no_rounding_error_behind():
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    for _ in range(1000):
        tree.set(rng.integers(0, 1000, 1000), rng.random(1000) * 1e6)
    tree.set_range(0, np.full(1000, 0.25))
    assert tree.total == 250


def test_every_point_of_a_large_tree_is_found_where_its_cumulative_sum_lies():
    rng = np.random.default_rng(1)
    priorities = rng.integers(0, 5, 5000).astype(np.float64)
    tree = tree_of(*priorities)
    points = rng.random(2000) * tree.total
    expected = np.searchsorted(np.cumsum(priorities), points, side="right")
    np.testing.assert_array_equal(tree.find(points), expected)


@pytest.mark.parametrize("bad", [-1.0, -1e-300, np.nan, np.inf, -np.inf, 1e308])
def test_a_priority_that_is_none_is_refused_and_changes_nothing(bad: float):
    tree = tree_of(1, 2, 3)
    with pytest.raises(ValueError, match="priority is not between 0 and"):
        tree.set(leaves(0, 1), floats(9, bad))
    with pytest.raises(ValueError, match="priority is not between 0 and"):
        tree.set_range(0, floats(9, bad))
    assert tree.get(leaves(0, 1, 2)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("index", [-1, 3, 2**62])
def test_an_index_that_is_no_leaf_is_refused_and_changes_nothing(index: int):
    tree = tree_of(1, 2, 3)
    with pytest.raises(IndexError, match="leaves 0 to 2"):
        tree.set(leaves(0, index), floats(9, 9))
    with pytest.raises(IndexError, match="leaves 0 to 2"):
        tree.get(leaves(index))
    with pytest.raises(IndexError, match="tree of 3"):
        tree.set_range(index, floats(9))
    with pytest.raises(IndexError, match="tree of 3"):
        tree.clear_range(0, index + 1 if index > 0 else index)
    assert tree.get(leaves(0, 1, 2)).tolist() == [1, 2, 3]


def test_priorities_must_be_as_many_as_indices():
    with pytest.raises(ValueError, match="priorities for"):
        SumTree(4).set(leaves(0, 1), floats(1))


def test_nothing_is_found_in_a_tree_of_zeros():
    with pytest.raises(ValueError, match="nothing to find"):
        SumTree(3).find(floats(0))


def test_a_tree_without_leaves_is_refused():
    with pytest.raises(ValueError, match="at least one leaf"):
        SumTree(0)


def test_a_tree_of_one_leaf_works():
    tree = tree_of(3)
    assert tree.total == 3
    assert tree.find(floats(0, 2.9)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("capacity", "nodes"), [(1, 2), (2, 4), (3, 8), (1024, 2048), (1025, 4096)]
)
def test_the_bytes_needed_are_the_bytes_taken(capacity: int, nodes: int):
    assert SumTree.bytes_needed(capacity) == SumTree(capacity).nbytes == nodes * 8
