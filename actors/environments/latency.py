"""Environment that takes time and no processor, as a simulator on other hardware does.

It shows how a run grows with its actors on a machine that has fewer cores.
"""

from __future__ import annotations

import math
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

ACTIONS = 2


class LatencyEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """Environment whose steps end at equal intervals, on a clock that waits for nobody.

    A step ends one latency after the step before it ended. If the actor calls too late for that,
    the step ends at once, and the next interval begins then: lost time is not made up. The
    observation is noise, and the reward the action.

    Args:
        latency_seconds: time between the ends of two steps; 0 for none.
        observation_size: length of the observation.
        episode_length: steps of an episode, after which it is truncated.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        latency_seconds: float = 0.005,
        observation_size: int = 8,
        episode_length: int = 200,
    ) -> None:
        if not 0.0 <= latency_seconds < math.inf:
            raise ValueError(f"latency_seconds = {latency_seconds}: expected 0 or more")
        for name, value in (
            ("observation_size", observation_size),
            ("episode_length", episode_length),
        ):
            if value < 1:
                raise ValueError(f"{name} = {value}: expected at least 1")
        self.observation_space = spaces.Box(-1.0, 1.0, (observation_size,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)
        self._latency_seconds = latency_seconds
        self._episode_length = episode_length
        self._steps = 0
        self._ended: float | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode at once; return float32[observation_size] and an empty info."""
        super().reset(seed=seed, options=options)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Wait for the step's end; return float32[observation_size] and the action as reward."""
        self._await_the_end()
        self._steps += 1
        truncated = self._steps >= self._episode_length
        return self._observation(), float(action), False, truncated, {}

    def _await_the_end(self) -> None:
        now = time.monotonic()
        before = now if self._ended is None else self._ended
        self._ended = max(now, before + self._latency_seconds)
        if self._ended > now:
            time.sleep(self._ended - now)

    def _observation(self) -> NDArray[np.float32]:
        size = self.observation_space.shape
        return self.np_random.random(size, np.float32) * np.float32(2) - np.float32(1)
