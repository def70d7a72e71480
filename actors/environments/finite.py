"""Observations and rewards that no network can learn from, because they are not finite. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdqn.specs import ACTION_MASK, EnvironmentSpec, Observation

REWARD = "reward"
# Networks compute in float32, whatever the environment has.
LARGEST = float(np.finfo(np.float32).max)


class Fault(NamedTuple):
    """A value that is not finite, or too large for float32.

    Attributes:
        kind: name of the observation's field, or ``reward``.
        value: the value; the first of several.
    """

    kind: str
    value: float


class FiniteCheck:
    """The check of a batch's observations and rewards, which costs microseconds if all are fine.

    Args:
        spec: spec of the environment.
        largest_reward: bound of a reward's magnitude; infinity admits all but NaN.
    """

    def __init__(self, spec: EnvironmentSpec, largest_reward: float) -> None:
        self._names = [f.name for f in spec.fields if np.dtype(f.dtype).kind == "f"]
        self._largest_reward = largest_reward

    def cleaned(self, observation: Observation) -> tuple[Observation, Mapping[int, Fault]]:
        """Find rows that are not finite, and replace what they have by values to act on.

        Args:
            observation: fields [rows, ...] in the environment's form.

        Returns:
            The observation, in which such a row has zeros, and a mask that admits every action. It
            is a copy if there are such rows. The fault of each of them, by row.
        """
        faults: dict[int, Fault] = {}
        for name in self._names:
            values = observation[name]
            fine = _fine(values)
            if fine.all():
                continue
            rows = np.flatnonzero(~fine.reshape(len(values), -1).all(axis=1))
            for row in rows.tolist():
                faults.setdefault(row, Fault(name, float(values[row][~fine[row]].flat[0])))
            values = values.copy()
            values[rows] = name == ACTION_MASK
            observation = {**observation, name: values}
        return observation, faults

    def rewards(self, rewards: NDArray[np.float64]) -> Mapping[int, Fault]:
        """Return the faults of rewards, float64[rows], by row."""
        fine = np.abs(rewards) <= self._largest_reward
        if fine.all():
            return {}
        return {row: Fault(REWARD, float(rewards[row])) for row in np.flatnonzero(~fine).tolist()}


def rows_of(faults: Mapping[int, Fault], count: int) -> NDArray[np.bool_]:
    """Mark the rows that have a fault, bool[count]."""
    marked = np.zeros(count, bool)
    marked[list(faults)] = True
    return marked


def first_of(*faults: Mapping[int, Fault]) -> dict[int, Fault]:
    """Join faults by row; of several of one row, keep the first."""
    return {row: fault for each in reversed(faults) for row, fault in each.items()}


def renumbered(faults: Mapping[int, Fault], rows: Sequence[int]) -> dict[int, Fault]:
    """Give faults of selected rows the numbers that these rows have in the batch."""
    return {rows[row]: fault for row, fault in faults.items()}


def _fine(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell of each value whether it is finite in float32."""
    if values.dtype == np.float16:
        # All bits but the sign. numpy's isfinite takes twenty times as long for this dtype.
        return (values.view(np.uint16) & 0x7FFF) < 0x7C00
    return np.isfinite(values) if values.dtype == np.float32 else np.abs(values) <= LARGEST
