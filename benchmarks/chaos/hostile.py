"""An environment that goes wrong every few hundred steps, in a way that its argument names."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

_LENGTH = 30
_LEAKED_BYTES = 400_000_000
_LEAKED: list[np.ndarray] = []


class Hostile(gymnasium.Env[np.ndarray, np.int64]):
    """A walk of thirty steps whose reward tells left from right.

    Args:
        how: the thing that it does.
        every: steps between two such things.
        marker: file that, once it exists, has it behave well.
    """

    def __init__(self, how: str = "well", every: int = 300, marker: str = "") -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._how, self._every, self._marker = how, every, marker
        self._steps = self._place = self._time = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin at the middle."""
        super().reset(seed=seed)
        self._place = self._time = 0
        return self._observed(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step to a side, or do what is hostile."""
        self._steps += 1
        self._time += 1
        self._place += 1 if action else -1
        observation, reward = self._observed(), float(self._place > 0)
        if self._steps % self._every == 0 and not (self._marker and Path(self._marker).exists()):
            observation, reward = self._misbehave(observation, reward)
        return observation, reward, self._time >= _LENGTH, False, {}

    def _observed(self) -> np.ndarray:
        return np.array([self._place / _LENGTH, self._time / _LENGTH], np.float32)

    def _misbehave(self, observation: np.ndarray, reward: float) -> tuple[np.ndarray, float]:
        if self._marker:
            Path(self._marker).touch()
        match self._how:
            case "nan observation":
                return np.full_like(observation, np.nan), reward
            case "nan reward":
                return observation, float("nan")
            case "raise":
                raise RuntimeError("the simulator is upset")
            case "hang":
                time.sleep(3600)
            case "exit":
                sys.exit(3)
            case "end":
                os._exit(0)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "leak":
                _LEAKED.append(np.ones(_LEAKED_BYTES, np.uint8))
            case "print":
                os.write(1, b"level loaded\n" * 10_000)
            case "fork" if not os.fork():
                os._exit(0)
        return observation, reward


def make(**arguments: Any) -> Hostile:
    """Make one, as a factory that a person names."""
    return Hostile(**arguments)
