"""N-step returns, discounts and bootstrap frames. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Targets:
    """Targets of consecutive steps.

    Attributes:
        returns: float32[count].
        discounts: float32[count], gamma^k, or 0 where the return needs no bootstrap.
        bootstrap: int32[count], index of the frame to bootstrap from; the transition's own frame
            where the discount is 0.
    """

    returns: NDArray[np.float32]
    discounts: NDArray[np.float32]
    bootstrap: NDArray[np.int32]


def n_step_targets(
    rewards: NDArray[np.float64], count: int, n: int, discount: float, *, terminated: bool
) -> Targets:
    """Compute targets of the first ``count`` steps of a run of consecutive steps of one episode.

    Args:
        rewards: [horizon], horizon >= count; the frame after the last reward can be bootstrapped
            from unless the episode terminated there.
        count: number of transitions wanted.
        n: n_step.
        discount: gamma.
        terminated: whether the last reward ended the episode.
    """
    powers, reversed_weights = _powers(n, discount)
    start = np.arange(count, dtype=np.int32)
    steps = np.minimum(n, np.arange(len(rewards), len(rewards) - count, -1, dtype=np.int32))
    # The full convolution is the right one: its sums stop at the last reward.
    returns = np.convolve(rewards, reversed_weights)[n - 1 : n - 1 + count]
    discounts, bootstrap = powers[steps], start + steps
    if terminated:
        within_reach = slice(max(0, len(rewards) - n), None)
        discounts[within_reach] = 0.0
        bootstrap[within_reach] = start[within_reach]
    return Targets(returns.astype(np.float32), discounts, bootstrap)


@lru_cache(maxsize=8)
def _powers(n: int, discount: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Compute the powers 0 .. n of gamma, and the weights of n rewards, last one first."""
    powers = np.power(discount, np.arange(n + 1, dtype=np.float64))
    return powers.astype(np.float32), powers[n - 1 :: -1].copy()
