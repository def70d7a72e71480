"""Finished episodes in the reports of actors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pdqn.checks import as_tuple, check_finite, check_name, check_numbers, check_whole, refusal
from pdqn.wire_errors import WireError

MAX_EPISODES = 2000
MAX_METRICS, MAX_METRIC_NAME = 20, 40  # of an episode; characters
MAX_METRIC_VALUES = 10_000  # of a report


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        score: undiscounted return.
        length: environment steps.
        headline: the environment's headline metric at the end, if it has one.
        metrics: the environment's own metrics at the end, by name; None without any.
    """

    score: float
    length: int
    headline: float | None = None
    metrics: Mapping[str, float] | None = None


def as_episodes(value: Any) -> tuple[Episode, ...]:
    """Check a list of [score, length, headline, metrics].

    Raises:
        WireError: it is another thing, or has more than ``MAX_EPISODES``.
    """
    rows = as_tuple(value, "episodes", MAX_EPISODES)
    if not all(isinstance(row, list | tuple) and len(row) in (3, 4) for row in rows):
        raise WireError("malformed", "an episode is not a score, a length, a headline and metrics")
    episodes = tuple(Episode(*row) for row in rows)
    for score, length, headline, metrics in episodes:
        check_finite(score, "an episode's score")
        check_whole(length, "an episode's length")
        if headline is not None:
            check_finite(headline, "an episode's headline")
        if metrics is not None:
            _check_metrics(metrics)
    return episodes


def _check_metrics(metrics: Any) -> None:
    check_numbers(metrics, "an episode's metrics")
    if len(metrics) > MAX_METRICS:
        raise refusal(metrics, "an episode's metrics", f"at most {MAX_METRICS}")
    for name in metrics:
        check_name(name, "the name of a metric", MAX_METRIC_NAME)
