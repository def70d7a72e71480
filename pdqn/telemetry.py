"""Figures of a role between two reports. Pure: no sockets, no clocks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from pdqn.episodes import MAX_METRIC_VALUES
from pdqn.messages import (
    MAX_ACTIVITY,
    MAX_EPISODES,
    MAX_NOTES,
    MAX_TEXT,
    Episode,
    Evaluation,
    Report,
)
from pdqn.spans import Span
from pdqn.wire import WireError


class Telemetry:
    """Counters, gauges and finished episodes between two reports.

    Counters only grow while the process lives. A restarted role begins at 0 again, and the
    coordinator adds its incarnations up. Durations are also counters: their names end in
    ``_seconds``. A gauge is the newest value. Each episode is reported once. Values that are not
    finite are left out and counted.

    Attributes:
        ended: pids of a host's processes that have ended; every report has them.
        take_spans: function that gives a replay's spans for the next report.
    """

    def __init__(self) -> None:
        self.counters: defaultdict[str, float] = defaultdict(float)
        self.gauges: dict[str, float] = {}
        self.activity = ""
        self.ended: tuple[int, ...] = ()
        self.take_spans: Callable[[], tuple[Span, ...]] = tuple
        self._episodes: list[Episode] = []
        self._metric_values = 0
        self._evaluation: Evaluation | None = None
        self._notes: list[tuple[str, str]] = []

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter."""
        if math.isfinite(amount):
            self.counters[name] += amount
        else:
            self.counters["figures_dropped"] += 1

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        self.gauges[name] = float(value)

    def episode(self, episode: Episode) -> None:
        """Add a finished episode; a report drops and counts details beyond ``MAX_EPISODES``.

        It drops and counts own metrics beyond ``MAX_METRIC_VALUES``.
        """
        self.count("episodes")
        if episode.metrics is not None:
            self._metric_values += len(episode.metrics)
            if self._metric_values > MAX_METRIC_VALUES:
                self.count("figures_dropped", len(episode.metrics))
                episode = episode._replace(metrics=None)
        figures = [episode.score, 0.0 if episode.headline is None else episode.headline]
        if len(self._episodes) < MAX_EPISODES and all(map(math.isfinite, figures)):
            self._episodes.append(episode)
        else:
            self.count("episode_details_dropped")

    def evaluation(self, result: Mapping[str, Any]) -> None:
        """Set the result of an evaluation, for the next report only.

        Args:
            result: the fields of an ``Evaluation``. An invalid result becomes a note instead.
        """
        try:
            self._evaluation = Evaluation.from_map(result)
        except WireError as error:
            self.note("evaluation", f"the evaluation is not reported: {error}")

    def note(self, kind: str, text: str) -> None:
        """Add a line for events.jsonl; a report keeps only the newest ``MAX_NOTES``."""
        self._notes = [*self._notes[-MAX_NOTES + 1 :], (kind, text[:MAX_TEXT])]

    def report(self, endpoints: Mapping[str, str] | None = None) -> Report:
        """Make a report, and clear the parts that are reported only once.

        Args:
            endpoints: addresses of what the role serves, by name.
        """
        report = Report(
            counters=dict(self.counters),
            gauges={name: value for name, value in self.gauges.items() if math.isfinite(value)},
            activity=self.activity[:MAX_ACTIVITY],
            episodes=tuple(self._episodes),
            evaluation=self._evaluation,
            notes=tuple(self._notes),
            endpoints=dict(endpoints or {}),
            ended=self.ended,
            spans=self.take_spans(),
        )
        self._episodes, self._notes, self._metric_values = [], [], 0
        self._evaluation = None
        return report
