"""The rule by which a policy counts as better than another one on the same episodes. Pure."""

from __future__ import annotations

# A run of ten minutes has thirty evaluations, of which it keeps the best. A policy that is 1.3
# standard errors worse would pass a bound of one error in 1% of them, and so in a quarter of the
# runs. It passes a bound of two in one of 2,300 evaluations.
ERRORS_ABOVE = 2.0


def is_above(mean: float, error: float) -> bool:
    """Return whether differences paired by episode are above 0, beyond what chance explains.

    Args:
        mean: mean of the differences.
        error: standard error of that mean. It is 0 for a single episode, which has none: then the
            sign decides.
    """
    return mean > 0.0 and mean >= ERRORS_ABOVE * error
