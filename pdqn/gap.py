"""The share of a provable gap that a policy has closed."""

from __future__ import annotations

from collections.abc import Mapping

FROM, BOUND = "exact greedy", "dual bound"


def closed_gap(score: float, baselines: Mapping[str, float]) -> float | None:
    """Return how far a score is on the way from exact greedy to the bound.

    Args:
        score: mean score of a policy.
        baselines: mean scores of the environment's baselines and bounds on the same seeds.

    Returns:
        0 at exact greedy and 1 at the bound, below 0 under greedy; None if either is not known.
    """
    named = {name.replace("_", " "): value for name, value in baselines.items()}
    if FROM not in named or BOUND not in named or named[BOUND] <= named[FROM]:
        return None
    return (score - named[FROM]) / (named[BOUND] - named[FROM])


def closed_text(score: float, baselines: Mapping[str, float]) -> str:
    """Phrase the share of the provable gap; empty if it is not known."""
    share = closed_gap(score, baselines)
    # Adding 0 to -0% makes it 0%.
    return "" if share is None else f"{round(share, 2) + 0.0:.0%} of the provable gap closed"
