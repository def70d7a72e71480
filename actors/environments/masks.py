"""Action masks: detection in an environment, and their transfer into the observation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from actors.environments.interface import InterfaceError, is_number, reset_result, shown
from pdqn.casting import as_mask
from pdqn.specs import ACTION_MASK, PLAIN_FIELD

Environment = gymnasium.Env[Any, Any]


def info_of_reset(env: Environment | VectorEnv) -> Mapping[str, Any]:
    """Reset an environment to learn what its infos tell."""
    every_zero: Any = [0]  # one seed for the batch of one; the base class declares only an int
    return reset_result(env, env.reset(seed=every_zero if isinstance(env, VectorEnv) else 0))[1]


def tells_mask(env: Environment | VectorEnv, info: Mapping[str, Any]) -> bool:
    """Find out whether an environment has action masks, in its observation or in its info.

    An info may also have something else under the mask's key, such as a function or names of
    actions.

    Raises:
        InterfaceError: the mask of the info does not fit the actions.
    """
    if _observes_mask(env):
        return True
    is_batch = isinstance(env, VectorEnv)
    actions = env.single_action_space if is_batch else env.action_space
    if ACTION_MASK not in info or not isinstance(actions, spaces.Discrete):
        return False
    told = info[ACTION_MASK]
    return _is_mask(told[0] if is_batch else told, int(actions.n))


def _is_mask(told: Any, num_actions: int) -> bool:
    """Tell whether a value of the info is a mask: a row of numbers, and not something else.

    Raises:
        InterfaceError: it is a row of numbers, but not one from 0 to 1 for each action.
    """
    if not isinstance(told, list | tuple) and not hasattr(type(told), "__array__"):
        return False
    try:
        mask = np.asarray(told)
    except Exception:  # noqa: BLE001 - lists of different lengths
        return False
    if mask.ndim != 1 or not all(map(is_number, mask)):
        return False
    if mask.shape != (num_actions,) or not ((mask >= 0) & (mask <= 1)).all():
        raise InterfaceError(
            f'info["{ACTION_MASK}"] is {shown(told)}; one 0 or 1 for each of the {num_actions} '
            "actions is needed"
        )
    return True


def with_mask_observed(env: Any) -> Any:
    """Wrap an environment or a batch to move the mask from its info into its observation.

    An environment whose observation has a mask is returned unchanged.
    """
    if _observes_mask(env):
        return env
    return MaskedBatch(env) if isinstance(env, VectorEnv) else MaskedObservation(env)


def _observes_mask(env: Environment | VectorEnv) -> bool:
    space = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    return isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces


class MaskedObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that puts ``info["action_mask"]`` into the observation, where actors look."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self.observation_space = _masked_space(env.observation_space, env.action_space)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**arguments)
        return _with_mask(observation, self._mask(info)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _with_mask(observation, self._mask(info)), reward, terminated, truncated, info

    def _mask(self, info: Mapping[str, Any]) -> NDArray[np.int8]:
        mask = _told_mask(info)
        space = self.observation_space
        assert isinstance(space, spaces.Dict)
        if mask.shape != space[ACTION_MASK].shape:
            told, (number,) = shown(info[ACTION_MASK]), space[ACTION_MASK].shape or (0,)
            raise InterfaceError(
                f'info["{ACTION_MASK}"] is {told}; one value for each of the {number} actions is '
                "needed at every step, as at the first reset"
            )
        return mask


class MaskedBatch(VectorWrapper):
    """Wrapper for a batch, with ``infos["action_mask"]``, one row for each environment.

    The mask of a final observation is in ``infos["final_info"]``.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        space = _masked_space(env.single_observation_space, env.single_action_space)
        self.single_observation_space = space
        self.observation_space = batch_space(space, env.num_envs)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment."""
        observation, infos = self.env.reset(**arguments)
        return _with_mask(observation, _told_mask(infos)), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        observation, rewards, terminated, truncated, infos = self.env.step(actions)
        cut = np.flatnonzero(truncated & ~terminated)
        if len(cut):
            masks = _told_mask(infos.get("final_info", {}))
            final = np.full(self.num_envs, None, object)
            for i in cut:
                final[i] = _with_mask(infos["final_obs"][i], masks[i])
            infos = {**infos, "final_obs": final}
        return _with_mask(observation, _told_mask(infos)), rewards, terminated, truncated, infos


def _masked_space(inner: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> spaces.Dict:
    assert isinstance(actions, spaces.Discrete)
    mask = spaces.Box(0, 1, (int(actions.n),), np.int8)
    return spaces.Dict({**parts_of_space(inner), ACTION_MASK: mask})


def parts_of_space(space: gymnasium.Space[Any]) -> dict[str, Any]:
    """Split a space into parts by the names of their fields."""
    return _parts(space, spaces.Dict, spaces.Tuple)


def parts_of_observation(observation: Any) -> dict[str, Any]:
    """Split an observation into parts by the names of their fields."""
    return _parts(observation, Mapping, tuple)


def _parts(whole: Any, mapping: type, sequence: type) -> dict[str, Any]:
    if isinstance(whole, mapping):
        return dict(whole.items())
    if isinstance(whole, sequence):
        return {str(index): part for index, part in enumerate(whole)}
    return {PLAIN_FIELD: whole}


def _told_mask(info: Mapping[str, Any]) -> NDArray[np.int8]:
    if ACTION_MASK not in info:
        raise KeyError(f'no info["{ACTION_MASK}"], although the first reset had one')
    # A copy, like the observation next to it: an environment may reuse a single mask.
    mask = np.array(info[ACTION_MASK])
    if mask.dtype == object:  # a batch: lists, and None for environments without a mask
        known = next(len(row) for row in mask if row is not None)
        mask = np.array([np.zeros(known) if row is None else row for row in mask])
    return as_mask(mask).astype(np.int8)


def _with_mask(observation: Any, mask: NDArray[np.int8]) -> dict[str, Any]:
    return {**parts_of_observation(observation), ACTION_MASK: mask}
