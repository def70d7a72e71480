"""Settings that change while a run goes on."""

from __future__ import annotations

from pdqn.config import CheckpointConfig, EvaluationConfig, LearnerConfig


def linear(first: float, final: float, steps: int, step: int) -> float:
    """Return the value at a step of a line from ``first`` to ``final``, which then stays constant.

    Args:
        first: value at step 0.
        final: value from step ``steps`` on.
        steps: length of the line, at least 1.
        step: the step, at least 0.
    """
    return first + (final - first) * min(1.0, step / steps)


def falls_with_run(settings: LearnerConfig) -> bool:
    """Return whether the step size depends on how much of the run is over."""
    changes = settings.learning_rate_final not in (None, settings.learning_rate)
    return changes and settings.learning_rate_decay_steps is None


def is_due(settings: EvaluationConfig | CheckpointConfig, seconds: float, steps: int) -> bool:
    """Return whether a period is over.

    Args:
        settings: the period in seconds and in learner steps; 0 steps means by time alone.
        seconds: time since the period began.
        steps: learner steps since the period began.
    """
    by_steps = settings.period_steps > 0 and steps >= settings.period_steps
    return by_steps or seconds >= settings.period_seconds
