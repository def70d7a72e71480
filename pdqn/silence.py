"""A clock that stops while this process is not listening."""

from __future__ import annotations

from time import monotonic

_LARGEST_SHARE = 0.2


class ListeningClock:
    """The time that this process has spent listening to others.

    A process that was stopped (Ctrl-Z) or busy for some time hears nobody meanwhile. Afterwards it
    must not conclude that the others were silent. The time between two turns therefore counts only
    up to a fifth of the timeout, and a timeout takes at least five turns.

    Args:
        timeout_seconds: silence that is too long.

    Attributes:
        seconds: time spent listening so far.
        was_away: whether the last turn came too late for its time to count in full.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._most_seconds = timeout_seconds * _LARGEST_SHARE
        self._last = monotonic()
        self.seconds = 0.0
        self.was_away = False

    def turn(self) -> None:
        """Count the time since the last turn; call this after reading all pending messages."""
        now = monotonic()
        passed, self._last = now - self._last, now
        self.was_away = passed > self._most_seconds
        self.seconds += min(passed, self._most_seconds)
