"""The scale of priorities: their bounds, and the exponent by which the sum tree holds them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class PriorityScale:
    """The bounds of priorities, and what the sum tree adds up: priority^priority_exponent.

    Schaul et al. (2016) give every transition a positive priority, so that each can be sampled, but
    they set no upper bound. They clip rewards and errors to [-1, 1] instead, which bounds the
    priorities. Without that, a single error of any size would take most of all samples.

    The upper bound is ``most`` times the mean of the stored priorities. It is the power mean, whose
    exponent is ``priority_exponent``: the mean that the sum tree has at hand. Of N transitions, one
    is therefore sampled at most ``most^priority_exponent`` times as often as the average one.

    The mean is over what is stored, so every transition counts once, and a clipped one by its
    clipped priority. A large priority that is repeated in many updates does not raise the bound.
    The first transitions of all are measured by their own mean. An outlier among them is clipped
    when it is updated, once the buffer holds more than ``most^priority_exponent`` others.

    Args:
        exponent: exponent of the priorities; 0 samples uniformly, and then nothing is clipped.
        minimum: lower bound of priorities.
        most: largest multiple of the mean priority; infinite for no bound.

    Attributes:
        clipped: number of priorities lowered to the bound.
    """

    def __init__(self, exponent: float, minimum: float, most: float) -> None:
        if exponent < 0:
            raise ValueError("priority_exponent must not be negative")
        if not minimum > 0:
            raise ValueError(f"minimum_priority is {minimum}; it must be positive")
        if not most >= 1:
            raise ValueError(f"priority_max is {most}; it must be at least 1")
        self.clipped = 0
        self._exponent = exponent
        self._minimum = minimum
        self._most = most

    def scaled(self, priorities: NDArray[np.float32]) -> NDArray[np.float64]:
        """Compute max(priority, minimum)^exponent, float64[n]."""
        raised = np.maximum(priorities.astype(np.float64), self._minimum)
        return raised**self._exponent

    def clip(self, priorities: NDArray[np.float32], mean: float | None) -> NDArray[np.float32]:
        """Lower priorities to the bound, and count those that were above it.

        Args:
            priorities: float32[n], finite and not negative.
            mean: mean of the stored transitions' scaled priorities; None if none is stored.

        Returns:
            float32[n]; the argument itself if nothing is above the bound.
        """
        if self._exponent == 0 or not len(priorities):
            return priorities
        if mean is None:
            mean = float(self.scaled(priorities).mean())
        # An infinite bound or product clips nothing.
        bound = np.float64(self._most) * np.float64(mean) ** (1 / self._exponent)
        above = priorities > bound
        count = int(np.count_nonzero(above))
        if not count:
            return priorities
        self.clipped += count
        return np.where(above, np.float32(bound), priorities)
