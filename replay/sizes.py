"""The memory that a buffer takes, computed without making one. Numba is not imported here."""

from __future__ import annotations

import math

import numpy as np

from pdqn.specs import MAX_FRAME_STACK, EnvironmentSpec
from replay.stores import CompressedStore

# The stored part of a transition; both frames are numbers in the store. One row is faster than one
# array per column: a sampled transition then costs one access to distant memory.
TRANSITION = np.dtype(
    [
        ("action", np.int32),
        ("n_step_return", np.float32),
        ("discount", np.float32),
        ("priority", np.float32),
        ("observation_frame", np.int64),
        ("bootstrap_frame", np.int64),
        ("parameter_version", np.int64),
    ],
    align=True,
)
_LONGEST_N_STEP = 64


def default_frame_capacity(capacity: int) -> int:
    """Return the number of frames to hold for ``capacity`` transitions: a quarter more, and 96.

    A segment of L consecutive steps of one environment has additional frames. Up to n_step of them
    lie beyond its end, where its last transitions bootstrap. Up to frame_stack - 1 lie before its
    start, where its first stacks begin. A quarter more suffices from L = 4 (n_step + frame_stack -
    1) on. The 96 are the largest n_step and frame_stack together: one such segment fits into the
    smallest buffer.
    """
    return capacity + capacity // 4 + _LONGEST_N_STEP + MAX_FRAME_STACK


def dense_bytes(spec: EnvironmentSpec, capacity: int) -> int:
    """Compute ``allocated_bytes`` of a buffer with the dense store of ``make_store``."""
    return own_bytes(spec, capacity) + default_frame_capacity(capacity) * spec.observation_bytes


def compressed_bytes(
    spec: EnvironmentSpec, capacity: int, block_bytes_per_transition: float
) -> int:
    """Compute the memory for a buffer with a compressed store that holds ``capacity`` transitions.

    It equals ``allocated_bytes`` of the buffer with the store that ``make_store`` makes of it.

    Args:
        spec: spec of the environment.
        capacity: number of transitions.
        block_bytes_per_transition: mean arena bytes of a transition: the ``stored_bytes`` of a
            filled store without those of its table.
    """
    words = math.ceil(capacity * block_bytes_per_transition / 8)
    return compressed_overhead(spec, capacity) + 8 * words


def own_bytes(spec: EnvironmentSpec, capacity: int) -> int:
    """Compute the bytes of a buffer's arrays outside the store."""
    history = default_frame_capacity(capacity) if spec.frame_stack > 1 else 0
    return capacity * TRANSITION.itemsize + tree_bytes(capacity) + history


def compressed_overhead(spec: EnvironmentSpec, capacity: int) -> int:
    """Compute the bytes of a buffer with a compressed store that holds no frame yet."""
    table = CompressedStore.table_bytes(default_frame_capacity(capacity))
    return own_bytes(spec, capacity) + table


def tree_bytes(capacity: int) -> int:
    """Compute the bytes of a sum tree's array for ``capacity`` leaves."""
    return 2 * power_of_two(capacity) * np.dtype(np.float64).itemsize


def power_of_two(number: int) -> int:
    """Return the least power of two that is at least ``number``, which is 1 or more."""
    return 1 << (number - 1).bit_length()
