"""A bound on what somebody else may have this run write down. Pure."""

from __future__ import annotations


class Allowance:
    """Characters that may be used: some at once, and then some in every second.

    Args:
        at_once: characters, which are there from the beginning.
        per_second: characters that are added until there are as many again.
    """

    def __init__(self, at_once: float, per_second: float) -> None:
        self._at_once, self._per_second = at_once, per_second
        self._left, self._time = at_once, 0.0

    def left(self, now: float) -> float:
        """Return the characters that are left now."""
        return min(self._at_once, self._left + self._per_second * max(0.0, now - self._time))

    def use(self, characters: float, now: float) -> None:
        """Use characters, which must be left."""
        self._left, self._time = self.left(now) - characters, now

    def is_whole(self, now: float) -> bool:
        """Return whether it is as if nothing had been used yet."""
        return self.left(now) >= self._at_once
