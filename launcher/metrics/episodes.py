"""The newest episodes of a run, over which figures are averaged. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.metrics.bounds import LARGEST_REAL
from pdqn.episodes import MAX_METRICS, Episode

_RECENT = 100  # as stable-baselines3 averages them
_DISTRIBUTION = 500


class RecentEpisodes:
    """Scores, lengths and metrics of the episodes that ended last."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[Any]] = {
            "score": deque(maxlen=_RECENT),
            "length": deque(maxlen=_RECENT),
            "headline": deque(maxlen=_RECENT),
        }
        self._distribution: deque[float] = deque(maxlen=_DISTRIBUTION)
        self._metrics: dict[str, deque[float]] = {}

    def add(self, episode: Episode) -> int:
        """Add an episode that has ended; return the number of its metrics that have no room."""
        score, length, headline, metrics = episode
        self._recent["score"].append(float(score))
        self._recent["length"].append(int(length))
        if headline is not None:
            self._recent["headline"].append(float(headline))
        self._distribution.append(float(score if headline is None else headline))
        return sum(not self._add_metric(name, value) for name, value in (metrics or {}).items())

    def _add_metric(self, name: str, value: float) -> bool:
        if abs(value) > LARGEST_REAL or (
            name not in self._metrics and len(self._metrics) >= MAX_METRICS
        ):
            return False
        self._metrics.setdefault(name, deque(maxlen=_RECENT)).append(float(value))
        return True

    def metrics(self) -> dict[str, float]:
        """Return the means of the environment's own metrics, by their names."""
        return {name: float(np.mean(values)) for name, values in self._metrics.items()}

    def mean(self, source: str) -> float | None:
        """Return the mean score, length or headline metric; None before the first episode."""
        values = self._recent[source]
        return float(np.mean(values)) if values else None

    def get_state(self) -> dict[str, Any]:
        """Return the episodes as plain data."""
        recent = {f"{source}s": list(values) for source, values in self._recent.items()}
        metrics = {name: list(values) for name, values in self._metrics.items()}
        return {**recent, "distribution": list(self._distribution), "metrics": metrics}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``get_state`` returned in an earlier session."""
        for source, values in self._recent.items():
            values.extend(state[f"{source}s"])
        self._distribution.extend(state["distribution"])
        for name, values in state.get("metrics", {}).items():  # earlier versions had none
            self._metrics[name] = deque(values, maxlen=_RECENT)
