"""Settings that change while a run goes on."""

from __future__ import annotations


def linear(first: float, final: float, steps: int, step: int) -> float:
    """The value at a step of a straight line from ``first`` to ``final``, which then stays.

    Args:
        first: at step 0.
        final: from step ``steps`` on.
        steps: at least 1.
        step: at least 0.
    """
    return first + (final - first) * min(1.0, step / steps)
