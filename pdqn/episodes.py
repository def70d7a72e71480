"""Finished episodes in the reports of actors."""

from __future__ import annotations

from typing import Any, NamedTuple

from pdqn.checks import as_tuple, check_finite, check_whole
from pdqn.wire_errors import WireError

MAX_EPISODES = 2000


class Episode(NamedTuple):
    """A finished episode.

    Attributes:
        score: undiscounted return.
        length: environment steps.
        headline: the environment's headline metric at the end, if it has one.
    """

    score: float
    length: int
    headline: float | None = None


def as_episodes(value: Any) -> tuple[Episode, ...]:
    """Check a list of [score, length, headline].

    Raises:
        WireError: it is another thing, or has more than ``MAX_EPISODES``.
    """
    rows = as_tuple(value, "episodes", MAX_EPISODES)
    if not all(isinstance(row, list | tuple) and len(row) == 3 for row in rows):
        raise WireError("malformed", "an episode is not a score, a length and a headline")
    episodes = tuple(Episode(*row) for row in rows)
    for score, length, headline in episodes:
        check_finite(score, "an episode's score")
        check_whole(length, "an episode's length")
        if headline is not None:
            check_finite(headline, "an episode's headline")
    return episodes
