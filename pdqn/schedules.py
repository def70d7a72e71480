"""Settings that change while a run goes on."""

from __future__ import annotations

from pdqn.config import CheckpointConfig, EvaluationConfig


def linear(first: float, final: float, steps: int, step: int) -> float:
    """The value at a step of a straight line from ``first`` to ``final``, which then stays.

    Args:
        first: at step 0.
        final: from step ``steps`` on.
        steps: at least 1.
        step: at least 0.
    """
    return first + (final - first) * min(1.0, step / steps)


def is_due(settings: EvaluationConfig | CheckpointConfig, seconds: float, steps: int) -> bool:
    """Whether a period is over, after so many seconds and learner steps since it began."""
    by_steps = settings.period_steps > 0 and steps >= settings.period_steps
    return by_steps or seconds >= settings.period_seconds
