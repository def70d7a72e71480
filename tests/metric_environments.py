"""Environments with metrics of their own, for tests that name them by their module."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

LENGTH = 3


class Car(gymnasium.Env[Any, Any]):
    """Episodes of three steps, of which the n-th has used n units of fuel."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self._episodes = self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self._episodes, self._steps = self._episodes + 1, 0
        return np.zeros(1, np.float32), {"metrics": {"fuel": 1000.0}}

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        self._steps += 1
        ended = self._steps == LENGTH
        fuel = self._episodes if ended else 500
        odd = {"map": np.zeros((2, 2)), "broken": float("nan"), 5: 1.0, "_hidden": 1.0}
        some = {"crashed": True} if self._episodes % 2 else {}
        return (
            np.zeros(1, np.float32),
            1.0,
            ended,
            False,
            {"metrics": {"fuel": fuel, **some, **odd}},
        )


class Noise(Car):
    """Something else under the same key."""

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        return *super().step(action)[:4], {"metrics": "accuracy"}


class Seeded(Car):
    """Cars whose fuel is their seed; those of even seeds tell whether they crashed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self._fuel = -1 if seed is None else seed
        return super().reset(seed=seed)

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        crashed = {} if self._fuel % 2 else {"crashed": self._fuel % 4 == 0}
        huge = {"huge": 1e308, "broken": float("nan")}
        return *super().step(action)[:4], {"metrics": {"fuel": self._fuel, **crashed, **huge}}


class Cars(VectorEnv[Any, Any, Any]):
    """A batch of its own: episodes of three steps in which car i uses i units of fuel."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int) -> None:
        self.num_envs, self._steps = num_envs, 0
        self.single_observation_space, self.single_action_space = (
            Car.observation_space,
            Car.action_space,
        )
        self.observation_space = spaces.Box(-1, 1, (num_envs, 1), np.float32)
        self.action_space = spaces.MultiDiscrete([2] * num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, Any]:
        self._steps = 0
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        self._steps += 1
        ended = np.full(self.num_envs, self._steps % LENGTH == 0)
        fuel = {
            "fuel": np.arange(self.num_envs, dtype=float),
            "_fuel": np.arange(self.num_envs) > 0,
        }
        infos = {"final_info": {"metrics": fuel}} if ended.all() else {}
        observation = np.zeros((self.num_envs, 1), np.float32)
        return observation, np.ones(self.num_envs), ended, np.zeros_like(ended), infos


def cars() -> Car:
    """Make one car; ``vector`` makes a batch."""
    return Car()


cars.vector = Cars  # pyright: ignore[reportFunctionMemberAccess]
