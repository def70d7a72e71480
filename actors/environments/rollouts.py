"""Rollouts: returns of other actions that an environment tells, moved into the observation.

An environment that can be tried out may tell what would have become of k other actions::

    info["rollout_actions"]  k actions of the present observation, -1 for none
    info["rollout_returns"]  k discounted returns from here on, had they been taken

As fields of the observation they travel and are stored with their frame, once. Networks do not see
them; the learner fits the values of these actions to their returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actors.environments.interface import InterfaceError, shown
from actors.environments.masks import parts_of_observation, parts_of_space
from pdqn.specs import ROLLOUT_ACTIONS, ROLLOUT_RETURNS

MOST_ROLLOUTS = 1024

Environment = gymnasium.Env[Any, Any]


def told_rollouts(info: Mapping[str, Any], *, batch: bool) -> int:
    """Return the number of rollouts that the info of a reset tells; 0 for none.

    Args:
        info: of one environment, or of a batch.
        batch: whether it is that of a batch.

    Raises:
        InterfaceError: they are not two rows of as many numbers.
    """
    if ROLLOUT_ACTIONS not in info or ROLLOUT_RETURNS not in info:
        return 0
    actions, returns = (
        _rows(info[name][0] if batch else info[name], name)
        for name in (ROLLOUT_ACTIONS, ROLLOUT_RETURNS)
    )
    if actions.ndim != 1 or actions.shape != returns.shape or len(actions) > MOST_ROLLOUTS:
        raise InterfaceError(
            f'info["{ROLLOUT_ACTIONS}"] has the shape {list(actions.shape)} and '
            f'info["{ROLLOUT_RETURNS}"] {list(returns.shape)}; both need one row of the same '
            f"number of values, at most {MOST_ROLLOUTS}"
        )
    return len(actions)


def with_rollouts_observed(env: Any, count: int) -> Any:
    """Wrap an environment or a batch to move rollouts from its info into its observation.

    Args:
        env: environment or batch.
        count: rollouts of an observation; without any, the environment is returned unchanged.
    """
    if not count:
        return env
    if isinstance(env, VectorEnv):
        return RolloutBatch(env, count)
    return RolloutObservation(env, count)


class RolloutObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that puts the rollouts of the info into the observation."""

    def __init__(self, env: Environment, count: int) -> None:
        super().__init__(env)
        self._count = count
        self.observation_space = _space(env.observation_space, env.action_space, count)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**arguments)
        return self._observed(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observed(observation, info), reward, terminated, truncated, info

    def _observed(self, observation: Any, info: Mapping[str, Any]) -> dict[str, Any]:
        return {**parts_of_observation(observation), **_fields(info, (self._count,))}


class RolloutBatch(VectorWrapper):
    """Wrapper for a batch, with a row of rollouts for each environment in its infos.

    Final observations have none: nothing is done from there.
    """

    def __init__(self, env: VectorEnv, count: int) -> None:
        super().__init__(env)
        self._count = count
        space = _space(env.single_observation_space, env.single_action_space, count)
        self.single_observation_space = space
        self.observation_space = batch_space(space, env.num_envs)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment."""
        observation, infos = self.env.reset(**arguments)
        return self._observed(observation, infos), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        observation, rewards, terminated, truncated, infos = self.env.step(actions)
        cut = np.flatnonzero(truncated & ~terminated)
        if len(cut):
            final = np.full(self.num_envs, None, object)
            none = _fields({}, (self._count,))
            for i in cut:
                final[i] = {**parts_of_observation(infos["final_obs"][i]), **none}
            infos = {**infos, "final_obs": final}
        return self._observed(observation, infos), rewards, terminated, truncated, infos

    def _observed(self, observation: Any, infos: Mapping[str, Any]) -> dict[str, Any]:
        shape = (self.num_envs, self._count)
        return {**parts_of_observation(observation), **_fields(infos, shape)}


def _fields(info: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Return both fields, without rollouts where the info tells none."""
    if ROLLOUT_ACTIONS not in info or ROLLOUT_RETURNS not in info:
        return {
            ROLLOUT_ACTIONS: np.full(shape, -1, np.int32),
            ROLLOUT_RETURNS: np.zeros(shape, np.float32),
        }
    actions, returns = (_rows(info[n], n) for n in (ROLLOUT_ACTIONS, ROLLOUT_RETURNS))
    if actions.shape != shape or returns.shape != shape:
        raise InterfaceError(
            f'info["{ROLLOUT_ACTIONS}"] has the shape {list(actions.shape)} and '
            f'info["{ROLLOUT_RETURNS}"] {list(returns.shape)}; both need {list(shape)}, as at the '
            "first reset"
        )
    # Copies, like the observation beside them: an environment may reuse its arrays.
    return {ROLLOUT_ACTIONS: actions.astype(np.int32), ROLLOUT_RETURNS: returns.astype(np.float32)}


def _rows(told: Any, name: str) -> NDArray[Any]:
    try:
        rows = np.asarray(told)
    except Exception:  # noqa: BLE001 - of lists of different lengths, and any object
        rows = np.empty((), object)
    if rows.dtype.kind not in "iuf":
        raise InterfaceError(f'info["{name}"] is {shown(told)}; numbers are needed')
    return rows


def _space(inner: gymnasium.Space[Any], actions: gymnasium.Space[Any], count: int) -> spaces.Dict:
    assert isinstance(actions, spaces.Discrete)
    return spaces.Dict(
        {
            **parts_of_space(inner),
            ROLLOUT_ACTIONS: spaces.Box(-1, int(actions.n) - 1, (count,), np.int32),
            ROLLOUT_RETURNS: spaces.Box(-np.inf, np.inf, (count,), np.float32),
        }
    )
