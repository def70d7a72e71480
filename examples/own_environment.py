"""An environment of your own: a corridor with a door at one end.

Run these in the checkout. The first command tries the environment, the second one trains on it:

    pdqn check --env examples.own_environment:make --env-arg length=12
    pdqn launch --env examples.own_environment:make --env-arg length=12 --time 20s

Outside the checkout, copy this file to where you work, and write ``own_environment:make``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Observation = NDArray[np.float32]
LEFT, RIGHT = 0, 1


class Corridor(gymnasium.Env[Observation, np.int64]):
    """A walk from a random cell to the door at the right end.

    Action: 0 is a step to the left, 1 a step to the right.
    Observation: float32[length], 1 in the cell of the walker and 0 elsewhere.
    Reward: 1 at the door, -0.01 for every other step.
    """

    def __init__(self, length: int = 8) -> None:
        """Create the corridor.

        Args:
            length: number of cells, the door's included.
        """
        self.length = length
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(0, 1, (length,), np.float32)
        self._cell = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in any cell but the door's."""
        super().reset(seed=seed)  # seeds self.np_random
        self._cell = int(self.np_random.integers(self.length - 1))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one step; the walls stop it."""
        self._cell = max(0, self._cell + (1 if action == RIGHT else -1))
        at_the_door = self._cell == self.length - 1
        return self._observe(), 1.0 if at_the_door else -0.01, at_the_door, False, {}

    def _observe(self) -> Observation:
        return np.eye(self.length, dtype=np.float32)[self._cell]


def make(length: int = 8) -> gymnasium.Env[Observation, np.int64]:
    """Build the environment from the ``--env-arg`` values; the limit makes every episode end."""
    return gymnasium.wrappers.TimeLimit(Corridor(length), max_episode_steps=10 * length)
