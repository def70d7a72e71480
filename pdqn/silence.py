"""Time as one counts it who waits for others to speak."""

from __future__ import annotations

from time import monotonic

_LARGEST_SHARE = 0.2


class Listening:
    """How long this process has listened to others.

    One that is stopped (Ctrl-Z) or busy for long hears nobody, and then finds that nobody has
    spoken: that is no silence. So the time between two turns counts up to a fifth of the silence
    that is too long, which therefore takes five turns at least.

    Args:
        timeout_seconds: silence that is too long.

    Attributes:
        seconds: listened to so far.
        was_away: whether the time before the last turn was too long to count as a whole.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._most_seconds = timeout_seconds * _LARGEST_SHARE
        self._last = monotonic()
        self.seconds = 0.0
        self.was_away = False

    def turn(self) -> None:
        """Now it is known who has spoken until now."""
        now = monotonic()
        passed, self._last = now - self._last, now
        self.was_away = passed > self._most_seconds
        self.seconds += min(passed, self._most_seconds)
