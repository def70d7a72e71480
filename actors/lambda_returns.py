"""Lambda returns of consecutive steps, by the values with which an actor acted. Pure functions.

With V(s) the largest Q over the valid actions of s, the return of step t is

    R_t = r_t + gamma V(s_{t+1}) + gamma lambda (R_{t+1} - V(s_{t+1}))

which is ``r_t + gamma [(1 - lambda) V(s_{t+1}) + lambda R_{t+1}]``. At the end of the recording,
``R = V``, and 0 if the episode terminated there. So lambda = 0 is the one-step return, and lambda =
1 sums all rewards up to the end of the segment.

These are Peng's Q(lambda) returns (Peng and Williams 1996) as PQN makes them (Gallici et al. 2025,
algorithm 1): an exploratory action does not cut them. Watkins's would, and would be one-step
returns for all environments that explore often. They are therefore biased towards what the acting
policy does, the less the younger the data is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def lambda_returns(
    rewards: NDArray[np.float64],
    values: NDArray[np.float32],
    discount: float,
    trace_decay: float,
    *,
    terminated: bool,
) -> NDArray[np.float32]:
    """Compute the returns of consecutive steps of one episode, float32[count].

    Args:
        rewards: [count].
        values: largest Q over the valid actions of the frame before each step, [count]. Unless the
            episode terminated, also that of the frame after the last step, [count + 1].
        discount: gamma.
        trace_decay: lambda.
        terminated: whether the last reward ended the episode.

    Raises:
        ValueError: the number of values is another one.
    """
    expected = len(rewards) + (not terminated)
    if len(values) != expected:
        raise ValueError(f"{len(values)} values for {len(rewards)} rewards, not {expected}")
    # Of some tens of steps, this takes as long as a few calls of numpy.
    following = after = 0.0 if terminated else float(values[-1])
    returns: list[float] = []
    for reward, value in zip(
        reversed(rewards.tolist()), reversed(values[: len(rewards)].tolist()), strict=True
    ):
        after = reward + discount * (following + trace_decay * (after - following))
        returns.append(after)
        following = value
    return np.array(returns[::-1], np.float32)
