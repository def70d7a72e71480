"""Sentences about the waits in a run, made from its figures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

_WAITS_AT_ALL = 0.005  # share of time from which it is not 0%
_WAITS_A_LOT = 0.1  # share of time from which somebody is called the bottleneck

Figures = Mapping[str, float | None]


def limiting_stage(figures: Figures) -> Literal["actors", "learner"] | None:
    """Return the stage that the others wait for, if somebody waits for a good part of the time."""
    actors, learner = _value(figures, "actor/wait_share"), _value(figures, "learner/wait_share")
    if max(actors, learner) < _WAITS_A_LOT:
        return None
    return "learner" if actors >= learner else "actors"


def bottleneck(figures: Figures) -> str:
    """Say who limits whom."""
    stage = limiting_stage(figures)
    if stage is None:
        return "balanced: nobody waits"
    if stage == "learner":
        return f"learner-bound: actors wait {_value(figures, 'actor/wait_share'):.0%}"
    return f"actor-bound: learner waits {_value(figures, 'learner/wait_share'):.0%}"


def replay_waits(figures: Figures, min_size: int) -> str:
    """Say which side is blocked in replay, by what and for how long; empty while neither is.

    Args:
        figures: of the run.
        min_size: transitions inserted before the first sample.
    """
    inserts = _value(figures, "replay/inserts_blocked_share")
    samples = _value(figures, "replay/samples_blocked_share")
    if max(inserts, samples) < _WAITS_AT_ALL:
        return ""
    if inserts >= samples:
        side, share, cause = "inserts", inserts, "learner is behind"
    elif not _value(figures, "replay/samples_per_insert"):
        side, share, cause = "samples", samples, f"fills to {min_size:,}"
    else:
        side, share, cause = "samples", samples, "actors are behind"
    seconds = _value(figures, "replay/blocked_for_seconds")
    since = f", {seconds:.0f} s" if seconds >= 1 else ""
    return f"{side} wait {share:.0%} ({cause}{since})"


def _value(figures: Figures, name: str) -> float:
    return figures.get(name) or 0.0
