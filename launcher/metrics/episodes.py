"""The newest episodes of a run, over which figures are averaged. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from launcher.metrics.bounds import LARGEST_REAL
from pdqn.episodes import MAX_METRICS, Episode

_RECENT = 100  # as stable-baselines3 averages them
_DISTRIBUTION = 500
_MOST_NEW = 20_000  # fast environments finish thousands of episodes a second


class Finished(NamedTuple):
    """An episode that an actor has finished.

    Attributes:
        actor: its index.
        episode: its return, length and headline metric.
    """

    actor: int
    episode: Episode


class NewEpisodes:
    """Episodes since the last look, as many as there is room for."""

    def __init__(self) -> None:
        self._finished: list[Finished] = []
        self._left_out = 0

    def add(self, actor: int, episode: Episode) -> None:
        """Add an episode, or count it if there is no room."""
        if len(self._finished) < _MOST_NEW:
            self._finished.append(Finished(actor, episode))
        else:
            self._left_out += 1

    def take(self) -> tuple[list[Finished], int]:
        """Remove and return the episodes, and the number of those that had no room."""
        taken = self._finished, self._left_out
        self._finished, self._left_out = [], 0
        return taken


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
