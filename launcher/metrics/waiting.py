"""Sentences about the waits in a run, made from its figures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

_WAITS_AT_ALL = 0.005  # share of time from which it is not 0%
_WAITS_A_LOT = 0.1  # share of time from which somebody is called the bottleneck

Figures = Mapping[str, float | None]


def limiting_stage(figures: Figures) -> Literal["actors", "replay", "learner"] | None:
    """Return the stage that the others wait for, if somebody waits for a good part of the time.

    The limiter in replay blocks the side that is ahead. Waits that it does not explain are for
    replay itself, which takes or gives too slowly.
    """
    actors, learner = _value(figures, "actor/wait_share"), _value(figures, "learner/wait_share")
    inserts, samples = _blocked(figures)
    if max(actors, learner, inserts, samples) < _WAITS_A_LOT:
        return None
    if figures.get("replay/size") is None:  # no replay has reported
        return "learner" if actors >= learner else "actors"
    if max(inserts, samples) < _WAITS_A_LOT:
        return "replay"
    if inserts >= samples:
        return "replay" if learner - samples >= _WAITS_A_LOT else "learner"
    return "replay" if actors - inserts >= _WAITS_A_LOT else "actors"


def bottleneck(figures: Figures) -> str:
    """Say who limits whom."""
    stage = limiting_stage(figures)
    if stage is None:
        return "balanced: nobody waits"
    actors, learner = _value(figures, "actor/wait_share"), _value(figures, "learner/wait_share")
    if stage == "actors":
        name = "filling" if _fills(figures) else "actor-bound"
        return f"{name}: learner waits {learner or _blocked(figures)[1]:.0%}"
    if stage == "learner":
        return f"learner-bound: actors wait {actors or _blocked(figures)[0]:.0%}"
    waits = [("actors wait", actors), ("learner waits", learner)]
    return "replay-bound: " + ", ".join(f"{who} {s:.0%}" for who, s in waits if s >= _WAITS_A_LOT)


def replay_waits(figures: Figures, min_size: int) -> str:
    """Say which side is blocked in replay, by what and for how long; empty while neither is.

    Args:
        figures: of the run.
        min_size: transitions inserted before the first sample.
    """
    inserts, samples = _blocked(figures)
    if max(inserts, samples) < _WAITS_AT_ALL:
        return ""
    side, share, behind = "inserts", inserts, "learner is behind"
    if samples > inserts:
        side, share, behind = "samples", samples, "actors are behind"
    if limiting_stage(figures) == "replay":
        behind = "replay is behind"
    cause = f"fills to {min_size:,}" if _fills(figures) else behind
    seconds = _value(figures, "replay/blocked_for_seconds")
    since = f", {seconds:.0f} s" if seconds >= 1 else ""
    return f"{side} wait {share:.0%} ({cause}{since})"


def _blocked(figures: Figures) -> tuple[float, float]:
    """Return the shares of time for which inserts and samples are blocked."""
    names = ("replay/inserts_blocked_share", "replay/samples_blocked_share")
    inserts, samples = (_value(figures, name) for name in names)
    return inserts, samples


def _fills(figures: Figures) -> bool:
    """Return whether samples wait for the first transitions."""
    inserts, samples = _blocked(figures)
    return samples > inserts and not _value(figures, "replay/samples_per_insert")


def _value(figures: Figures, name: str) -> float:
    return figures.get(name) or 0.0
