"""Sampling in proportion to priorities: a sum tree in one array, whole batches at a time.

A complete binary tree whose leaves hold the priorities and whose other nodes hold the sum of
their two children, so that changing a priority and finding the leaf under a prefix sum both take
log2(capacity) steps (Schaul et al. 2016, "Prioritized Experience Replay", appendix B.2.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


class SumTree:
    """Non-negative priorities of the leaves 0 .. capacity - 1, all zero at first.

    Node 1 is the root, node k has the children 2k and 2k + 1, and leaf i is node
    ``_first_leaf + i``; node 0 is unused. Parents are always recomputed as left + right: adding
    differences to them instead would let rounding errors pile up over billions of updates.

    Attributes:
        capacity: number of leaves.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a sum tree has at least one leaf, not {capacity}")
        self.capacity = capacity
        self._first_leaf = _power_of_two(capacity)
        # The sum of all leaves must be finite too.
        self._largest_priority = float(np.finfo(np.float64).max) / self._first_leaf
        self._nodes = np.zeros(2 * self._first_leaf, np.float64)

    @staticmethod
    def bytes_needed(capacity: int) -> int:
        """Bytes of the tree's array for so many leaves."""
        return 2 * _power_of_two(capacity) * np.dtype(np.float64).itemsize

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._nodes[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the tree's array."""
        return self._nodes.nbytes

    def get(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The priorities, float64[n], of the leaves ``indices``, int64[n]."""
        self._check_indices(indices)
        return self._nodes.take(indices + self._first_leaf)

    def set(self, indices: NDArray[np.int64], priorities: NDArray[np.float64]) -> None:
        """Give every leaf of ``indices``, int64[n], its priority of float64[n].

        When an index occurs more than once, its last priority stays.

        Raises:
            IndexError: an index that is no leaf; nothing was changed.
            ValueError: a priority that is negative, not finite, or too large to be summed, or
                another number of priorities than of indices; nothing was changed.
        """
        if indices.shape != priorities.shape:
            raise ValueError(f"{priorities.shape} priorities for {indices.shape} leaves")
        self._check_indices(indices)
        self._check_priorities(priorities)
        _set_leaves(self._nodes, indices, priorities)

    def set_range(self, start: int, priorities: NDArray[np.float64]) -> None:
        """Give the leaves start .. start + n - 1 the priorities float64[n].

        Visits every parent once, and so costs about 2n rather than n log2(capacity) steps.

        Raises:
            IndexError, ValueError: as ``set``.
        """
        self._check_range(start, start + len(priorities))
        self._check_priorities(priorities)
        _set_leaf_range(self._nodes, start, priorities)

    def clear_range(self, start: int, stop: int) -> None:
        """Set the leaves start .. stop - 1 to zero, at the cost of ``set_range``.

        Raises:
            IndexError: the range goes beyond the leaves.
        """
        self._check_range(start, stop)
        _clear_leaf_range(self._nodes, start, stop)

    def find(self, prefix_sums: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaves under points of the line on which all priorities lie end to end.

        Args:
            prefix_sums: float64[n], each 0 <= u <= total.

        Returns:
            int64[n]: the leaf i with p[0] + ... + p[i - 1] <= u < p[0] + ... + p[i], up to the
            rounding of these sums. Never a leaf whose priority is zero, also where rounding has
            put u at or above the end of the line.

        Raises:
            ValueError: all priorities are zero.
        """
        if self.total == 0:
            raise ValueError("there is nothing to find: all priorities are zero")
        return _find_leaves(self._nodes, prefix_sums)

    def check_valid(self) -> None:
        """Assert that every parent is exactly the sum of its children, and every leaf a priority.

        Raises:
            AssertionError: it is not so.
        """
        leaves = self._nodes[self._first_leaf :]
        assert np.isfinite(self._nodes).all(), "a node is not finite"
        assert (leaves >= 0).all(), "a priority is negative"
        assert (leaves[self.capacity :] == 0).all(), "a leaf beyond the capacity has a priority"
        parents = self._nodes[1 : self._first_leaf]
        sums = self._nodes[2::2] + self._nodes[3::2]
        assert (parents == sums).all(), "a node is not the sum of its children"

    def get_state(self) -> dict[str, Any]:
        """A copy of the priorities, float64[capacity]."""
        return {"priorities": self._nodes[self._first_leaf :][: self.capacity].copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the priorities of ``get_state``.

        Raises:
            ValueError: they are of a tree of another capacity, or no priorities.
        """
        priorities = np.asarray(state["priorities"], np.float64)
        if priorities.shape != (self.capacity,):
            raise ValueError(f"{priorities.shape} priorities for a tree of {self.capacity} leaves")
        self.set_range(0, priorities)

    def _check_indices(self, indices: NDArray[np.int64]) -> None:
        # numba does not check bounds: what passes here may write anywhere.
        if not _all_between(indices, 0, self.capacity - 1):
            raise IndexError(f"the tree has the leaves 0 to {self.capacity - 1}")

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.capacity:
            raise IndexError(f"leaves {start} to {stop - 1} of a tree of {self.capacity}")

    def _check_priorities(self, priorities: NDArray[np.float64]) -> None:
        if not _all_between(priorities, 0.0, self._largest_priority):
            raise ValueError(f"a priority is not between 0 and {self._largest_priority:.3g}")


def _power_of_two(number: int) -> int:
    """The least power of two that is at least ``number``, of 1 and more."""
    return 1 << (number - 1).bit_length()


@njit(cache=True, nogil=True)
def _all_between(values, lowest, highest):
    """Whether lowest <= v <= highest for every value, int64[n] or float64[n]; NaN is not."""
    for value in values:  # noqa: SIM110 (numba compiles no generator)
        if not lowest <= value <= highest:
            return False
    return True


@njit(cache=True, nogil=True)
def _refresh_ancestors(nodes, first, last):
    """Recompute all nodes above the leaf nodes first .. last, level by level."""
    while first > 1:
        first >>= 1
        last >>= 1
        for node in range(first, last + 1):
            nodes[node] = nodes[2 * node] + nodes[2 * node + 1]


@njit(cache=True, nogil=True)
def _set_leaves(nodes, indices, priorities):
    """All walks from a leaf to the root, one level at a time.

    A walk that meets its neighbour ends there: indices in ascending order, as a stratified sample
    has them, soon share all that is above them. Measured, this is four times as fast as one walk
    after the other.
    """
    position = indices + len(nodes) // 2
    for i in range(len(position)):
        nodes[position[i]] = priorities[i]
    count = len(position)
    level = len(nodes) // 2
    while level > 1 and count > 0:
        kept = 0
        for i in range(count):
            parent = position[i] // 2
            if kept > 0 and position[kept - 1] == parent:
                continue
            nodes[parent] = nodes[2 * parent] + nodes[2 * parent + 1]
            position[kept] = parent
            kept += 1
        count = kept
        level //= 2


@njit(cache=True, nogil=True)
def _set_leaf_range(nodes, start, priorities):
    if len(priorities) == 0:
        return
    first = len(nodes) // 2 + start
    nodes[first : first + len(priorities)] = priorities
    _refresh_ancestors(nodes, first, first + len(priorities) - 1)


@njit(cache=True, nogil=True)
def _clear_leaf_range(nodes, start, stop):
    if start == stop:
        return
    first_leaf = len(nodes) // 2
    nodes[first_leaf + start : first_leaf + stop] = 0.0
    _refresh_ancestors(nodes, first_leaf + start, first_leaf + stop - 1)


@njit(cache=True, nogil=True)
def _find_leaves(nodes, prefix_sums):
    """All walks from the root to a leaf, one level at a time, without a branch in the inner loop.

    A branch would be mispredicted in every other step, and one walk after the other would wait
    for memory in each: measured, this is three times as fast.
    """
    first_leaf = len(nodes) // 2
    position = np.ones(len(prefix_sums), np.int64)
    remainder = prefix_sums.copy()
    level = 1
    while level < first_leaf:
        for i in range(len(position)):
            left = 2 * position[i]
            # Rounding may leave a remainder that neither child holds: a child of zero sum is
            # never entered, so that the walk ends at a leaf that has a priority.
            go_right = (remainder[i] >= nodes[left]) & (nodes[left + 1] > 0)
            remainder[i] -= nodes[left] * go_right
            position[i] = left + go_right
        level *= 2
    for i in range(len(position)):
        position[i] -= first_leaf
    return position
