"""The newest episodes of a run, over which figures are averaged. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

_RECENT = 100  # as stable-baselines3 averages them
_DISTRIBUTION = 500


class RecentEpisodes:
    """Scores, lengths and headline metrics of the episodes that ended last."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[Any]] = {
            "score": deque(maxlen=_RECENT),
            "length": deque(maxlen=_RECENT),
            "headline": deque(maxlen=_RECENT),
        }
        self._distribution: deque[float] = deque(maxlen=_DISTRIBUTION)

    def add(self, score: float, length: int, headline: float | None) -> None:
        """Add an episode that has ended."""
        self._recent["score"].append(float(score))
        self._recent["length"].append(int(length))
        if headline is not None:
            self._recent["headline"].append(float(headline))
        self._distribution.append(float(score if headline is None else headline))

    def mean(self, source: str) -> float | None:
        """Return the mean score, length or headline metric; None before the first episode."""
        values = self._recent[source]
        return float(np.mean(values)) if values else None

    def get_state(self) -> dict[str, list[Any]]:
        """Return the episodes as plain data."""
        recent = {f"{source}s": list(values) for source, values in self._recent.items()}
        return {**recent, "distribution": list(self._distribution)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``get_state`` returned in an earlier session."""
        for source, values in self._recent.items():
            values.extend(state[f"{source}s"])
        self._distribution.extend(state["distribution"])
