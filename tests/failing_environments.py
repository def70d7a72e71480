"""Environments that misbehave; real runs name one as ``failing_environments:broken``."""

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

LENGTH = 5
LEAKED_BYTES = 1_300_000_000
LEAKED: list[np.ndarray] = []
MALFORMED: dict[str, tuple[Any, Any]] = {
    "no observation": (None, 1.0),
    "another shape": (np.zeros(3, np.float32), 1.0),
    "another dtype": (np.array(["a", "b"]), 1.0),
    "no reward": (np.zeros(2, np.float32), None),
    "two rewards": (np.zeros(2, np.float32), np.ones(2)),
}


class Trap(gymnasium.Env[Any, Any]):
    """Episodes of five steps; at some seeds the third step goes wrong.

    Attributes:
        made: number of instances made so far.
    """

    made = 0

    def __init__(
        self, how: str = "raise", bad_seeds: tuple[int, ...] = (), marker: str = ""
    ) -> None:
        Trap.made += 1
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._how, self._bad, self._marker = how, bad_seeds, marker
        self._seed, self._step = 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = self._seed if seed is None else seed
        self._step = 0
        if self._how == "reset" and self._is_bad():
            raise RuntimeError("the reset went wrong")
        return self._observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        if self._step == 3 and self._is_bad():
            self._misbehave()
            if self._how == "nan":
                return self._observed(), float("nan"), False, False, {}
            if self._how in MALFORMED:
                observation, reward = MALFORMED[self._how]
                return observation, reward, False, False, {}
        return self._observed(), 1.0, self._step == LENGTH, False, {}

    def _is_bad(self) -> bool:
        """Decide by the seed, or with a marker, by whether that file does not exist yet."""
        if self._marker:
            return not Path(self._marker).exists()
        return not self._bad or self._seed in self._bad

    def _misbehave(self) -> None:
        if self._marker:
            Path(self._marker).touch()
        if self._how == "raise":
            raise RuntimeError("the simulator is upset")
        if self._how == "escape":
            raise RuntimeError("\x1b]0;owned\x07\x1b[2J\u202e upset")
        if self._how == "leak":
            LEAKED.append(np.ones(LEAKED_BYTES, np.uint8))
        if self._how == "hang":
            time.sleep(3600)
        if self._how == "exit":
            sys.exit()
        if self._how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)

    def _observed(self) -> np.ndarray:
        return np.array([self._seed, self._step], np.float32)


def broken(**arguments: Any) -> Trap:
    """Build a trap, as a factory that a user names."""
    return Trap(**arguments)
