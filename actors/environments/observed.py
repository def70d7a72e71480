"""Wrappers that move what infos tell of an observation into the observation, where actors look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from pdqn.specs import PLAIN_FIELD

Told = dict[str, NDArray[Any]]
# Reads the told fields, by name, from the info of an environment or from the infos of a batch.
Read = Callable[[Mapping[str, Any]], Told]


class ObservedInfo(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that adds fields from the info to the observation.

    Args:
        env: the environment.
        told: space of each field.
        read: reads the fields from an info.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        told: Mapping[str, gymnasium.Space[Any]],
        read: Read,
    ) -> None:
        super().__init__(env)
        self._read = read
        self.observation_space = _with_fields(env.observation_space, told)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**arguments)
        return _observed(observation, self._read(info)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _observed(observation, self._read(info)), reward, terminated, truncated, info


class ObservedInfos(VectorWrapper):
    """Wrapper for a batch, whose infos have one row for each environment.

    Args:
        env: the batch.
        told: space of each field of one environment.
        read: reads the fields of all environments from infos.
        read_final: reads those of final observations from ``infos["final_info"]``.
    """

    def __init__(
        self,
        env: VectorEnv,
        told: Mapping[str, gymnasium.Space[Any]],
        read: Read,
        read_final: Read,
    ) -> None:
        super().__init__(env)
        self._read, self._read_final = read, read_final
        self.single_observation_space = _with_fields(env.single_observation_space, told)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment."""
        observation, infos = self.env.reset(**arguments)
        return _observed(observation, self._read(infos)), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        observation, rewards, terminated, truncated, infos = self.env.step(actions)
        cut = np.flatnonzero(truncated & ~terminated)
        if len(cut):
            told = self._read_final(infos.get("final_info", {}))
            final = np.full(self.num_envs, None, object)
            for i in cut:
                own = {name: values[i] for name, values in told.items()}
                final[i] = _observed(infos["final_obs"][i], own)
            infos = {**infos, "final_obs": final}
        return _observed(observation, self._read(infos)), rewards, terminated, truncated, infos


def _with_fields(
    space: gymnasium.Space[Any], told: Mapping[str, gymnasium.Space[Any]]
) -> spaces.Dict:
    return spaces.Dict({**_parts(space, spaces.Dict, spaces.Tuple), **told})


def _observed(observation: Any, told: Told) -> dict[str, Any]:
    return {**_parts(observation, Mapping, tuple), **told}


def _parts(whole: Any, mapping: type, sequence: type) -> dict[str, Any]:
    """Split a space, or an observation, into parts by the names of their fields."""
    if isinstance(whole, mapping):
        return dict(whole.items())
    if isinstance(whole, sequence):
        return {str(index): part for index, part in enumerate(whole)}
    return {PLAIN_FIELD: whole}
