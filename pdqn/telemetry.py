"""What a role tells the coordinator about itself. Pure: no sockets, no clocks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

_MAX_EPISODES_PER_REPORT = 2000
_MAX_NOTES_PER_REPORT = 20


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    Attributes:
        score: undiscounted return.
        length: environment steps.
        headline: the environment's headline metric at the end, if it has one.
    """

    score: float
    length: int
    headline: float | None = None


class Telemetry:
    """Counters, gauges and finished episodes between two reports.

    Counters only grow while the process lives (a restart begins at 0 again; the coordinator adds
    incarnations up). Durations are counters too: their names end in ``_seconds``. Gauges are the
    newest value. Episodes are reported once.
    """

    def __init__(self) -> None:
        self.counters: defaultdict[str, float] = defaultdict(float)
        self.gauges: dict[str, float] = {}
        self.activity = ""
        self._episodes: list[Episode] = []
        self._evaluation: dict[str, Any] | None = None
        self._notes: list[tuple[str, str]] = []

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter."""
        self.counters[name] += amount

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        self.gauges[name] = float(value)

    def episode(self, episode: Episode) -> None:
        """Add a finished episode; the details of very many are dropped and counted."""
        self.count("episodes")
        if len(self._episodes) < _MAX_EPISODES_PER_REPORT:
            self._episodes.append(episode)
        else:
            self.count("episode_details_dropped")

    def evaluation(self, result: dict[str, Any]) -> None:
        """Set the result of an evaluation, to be reported once."""
        self._evaluation = result

    def note(self, kind: str, text: str) -> None:
        """Add something worth writing down in events.jsonl; the newest few of a report are kept."""
        self._notes = [*self._notes[-_MAX_NOTES_PER_REPORT + 1 :], (kind, text)]

    def report(self) -> dict[str, Any]:
        """Plain data for a telemetry message; what is reported once is cleared."""
        report = {
            "counters": dict(self.counters),
            "gauges": dict(self.gauges),
            "activity": self.activity,
            "episodes": [[e.score, e.length, e.headline] for e in self._episodes],
            "evaluation": self._evaluation,
            "notes": self._notes,
        }
        self._episodes, self._notes = [], []
        self._evaluation = None
        return report
