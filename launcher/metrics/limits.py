"""The limits of a run: which of them is reached, and how far it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from pdqn.config import RunConfig


def limit_reached(run: RunConfig, counts: Mapping[str, int], trained_seconds: float) -> str:
    """Return which limit of a run is reached: episodes, steps or time; empty for none."""
    if run.episodes is not None and counts["episodes"] >= run.episodes:
        return "episodes"
    if run.steps is not None and counts["environment_steps"] >= run.steps:
        return "steps"
    if run.time_seconds is not None and trained_seconds >= run.time_seconds:
        return "time"
    return ""


def progress(
    run: RunConfig, counts: Mapping[str, int], trained_seconds: float
) -> tuple[float | None, float | None]:
    """Return the share of the nearest limit, and the seconds left at the present pace."""
    limits = [
        (counts["episodes"], run.episodes),
        (counts["environment_steps"], run.steps),
        (trained_seconds, run.time_seconds),
    ]
    shares = [done / limit for done, limit in limits if limit is not None]
    share = min(1.0, max(shares, default=0.0))
    if not shares or not trained_seconds or share == 0.0:
        return (share if shares else None), None
    return share, trained_seconds * (1.0 - share) / share
