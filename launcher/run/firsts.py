"""The first steps of a session, whose times events.jsonl tells."""

from __future__ import annotations

from collections.abc import Callable

from launcher.metrics.metrics import RunMetrics

_STEPS = ("environment_steps", "learner_steps")


class FirstSteps:
    """The moments at which environments and the learner take their first steps of a session.

    Args:
        metrics: the run's, at the session's beginning.
        tell: function that takes the name of the steps, once there are some.
    """

    def __init__(self, metrics: RunMetrics, tell: Callable[[str], object]) -> None:
        self._metrics, self._tell = metrics, tell
        counts = metrics.counts()
        self._before = {name: counts[name] for name in _STEPS}

    def look(self) -> None:
        """Tell which steps there are since the last call."""
        if not self._before:
            return
        counts = self._metrics.counts()
        for name in [name for name, number in self._before.items() if counts[name] > number]:
            del self._before[name]
            self._tell(name)
