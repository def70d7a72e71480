"""The end of a run by what it reaches, beside its limits. Pure."""

from __future__ import annotations

from launcher.metrics.metrics import RunMetrics
from pdqn.figures import find
from pdqn.stop_at import parse_target

# A mean over the last episodes counts once it is over all of these.
_EPISODES = 100
STOP_AT, STOP_WHEN = "stop_at", "stop_when"


class Goal:
    """A figure's value at which a run ends, or the wish of a program that drives it.

    Args:
        text: the target, as ``run.stop_at``; None without one.
        headline: name of the environment's headline metric, if it has one.

    Attributes:
        reason: why the run is to end; empty while it is not.
    """

    def __init__(self, text: str | None, headline: str | None) -> None:
        self._target = None if text is None else parse_target(text)
        self._headline = headline
        self.reason = ""

    def look(self, metrics: RunMetrics) -> None:
        """Compare the figure as it is now."""
        if self._target is None or self.reason:
            return
        name = self._target.name(self._headline)
        figure = find(name)
        is_mean = figure is not None and figure.kind == "episodes"
        if is_mean and metrics.counts()["episodes"] < _EPISODES:
            return
        if self._target.is_reached(_newest(metrics, name)):
            self.reason = STOP_AT

    def finish(self) -> None:
        """End the run as a program wants it, in the same way as a limit does."""
        self.reason = self.reason or STOP_WHEN


def _newest(metrics: RunMetrics, name: str) -> float | None:
    """Return any figure of metrics.jsonl, of the newest evaluation as well; None if not known."""
    if not name.startswith("eval/"):
        return metrics.current().get(name)
    evaluation = metrics.evaluation
    return None if evaluation is None else metrics.evaluation_line(evaluation, 0.0).get(name)
