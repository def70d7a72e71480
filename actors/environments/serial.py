"""Environments that are stepped one after another, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from actors.environments.guard import GuardedEnvironment

# Spaces of one array.
_ARRAYS = (spaces.Box, spaces.MultiBinary, spaces.MultiDiscrete)


class SerialBatch(SyncVectorEnv):
    """gymnasium's SyncVectorEnv that resets within a step, in half of its time.

    It looks once for what gymnasium looks for at each environment, and makes the batch's array once
    where gymnasium fills one and copies it.

    Args:
        guarded: the environments, which give observations of their space's shape and dtype.
    """

    def __init__(self, guarded: Sequence[GuardedEnvironment]) -> None:
        super().__init__(
            [partial(_given, env) for env in guarded], autoreset_mode=AutoresetMode.SAME_STEP
        )
        space = self.single_observation_space
        self._is_array = isinstance(space, _ARRAYS) and len(space.shape) > 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments; one whose episode ends begins another."""
        observations: list[Any] = self._env_obs
        infos: dict[str, Any] = {}
        rewards, terminated, truncated = [], [], []
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observation, reward, ends, is_cut, info = env.step(action)
            rewards.append(reward)
            terminated.append(ends)
            truncated.append(is_cut)
            if ends or is_cut:
                told = {"final_obs": observation, "final_info": info}
                infos = self._add_info(infos, told, index)
                observation, info = env.reset()
            observations[index] = observation
            if info:
                infos = self._add_info(infos, info, index)
        self._terminations = np.array(terminated, np.bool_)
        self._truncations = np.array(truncated, np.bool_)
        return (
            self._joined(observations),
            np.array(rewards, np.float64),
            self._terminations.copy(),
            self._truncations.copy(),
            infos,
        )

    def _joined(self, observations: Sequence[Any]) -> Any:
        """Join observations to new arrays of the whole batch."""
        space = self.single_observation_space
        if self._is_array:
            joined: NDArray[Any] = np.concatenate(observations)
            return joined.reshape(self.num_envs, *(space.shape or ()))
        out = create_empty_array(space, self.num_envs, np.zeros)
        return concatenate(space, observations, out)


def _given(env: GuardedEnvironment) -> GuardedEnvironment:
    return env
