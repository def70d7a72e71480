"""Settings that change while a run goes on."""

from __future__ import annotations

from pdqn.config import CheckpointConfig, EvaluationConfig


def linear(first: float, final: float, steps: int, step: int) -> float:
    """Return the value at a step of a line from ``first`` to ``final``, which then stays constant.

    Args:
        first: value at step 0.
        final: value from step ``steps`` on.
        steps: length of the line, at least 1.
        step: the step, at least 0.
    """
    return first + (final - first) * min(1.0, step / steps)


def is_due(settings: EvaluationConfig | CheckpointConfig, seconds: float, steps: int) -> bool:
    """Return whether a period is over.

    Args:
        settings: the period in seconds and in learner steps; 0 steps means by time alone.
        seconds: time since the period began.
        steps: learner steps since the period began.
    """
    by_steps = settings.period_steps > 0 and steps >= settings.period_steps
    return by_steps or seconds >= settings.period_seconds
