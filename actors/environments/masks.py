"""Action masks: detection in an environment, and their transfer into the observation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from actors.environments.interface import InterfaceError, is_number, reset_result, shown
from actors.environments.observed import ObservedInfo, ObservedInfos, Told
from pdqn.casting import as_mask
from pdqn.specs import ACTION_MASK

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

    An environment whose observation has a mask is returned unchanged. The mask of a batch's final
    observation is in ``infos["final_info"]``.
    """
    if _observes_mask(env):
        return env
    is_batch = isinstance(env, VectorEnv)
    actions = env.single_action_space if is_batch else env.action_space
    assert isinstance(actions, spaces.Discrete)
    number = int(actions.n)
    told = {ACTION_MASK: spaces.Box(0, 1, (number,), np.int8)}
    if is_batch:
        return ObservedInfos(env, told, _masks_of_batch, _masks_of_batch)
    return ObservedInfo(env, told, partial(_mask_of_one, number=number))


def _observes_mask(env: Environment | VectorEnv) -> bool:
    space = env.single_observation_space if isinstance(env, VectorEnv) else env.observation_space
    return isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces


def _masks_of_batch(infos: Mapping[str, Any]) -> Told:
    return {ACTION_MASK: _told_mask(infos)}


def _mask_of_one(info: Mapping[str, Any], number: int) -> Told:
    mask = _told_mask(info)
    if mask.shape != (number,):
        told = shown(info[ACTION_MASK])
        raise InterfaceError(
            f'info["{ACTION_MASK}"] is {told}; one value for each of the {number} actions is '
            "needed at every step, as at the first reset"
        )
    return {ACTION_MASK: mask}


def _told_mask(info: Mapping[str, Any]) -> NDArray[np.int8]:
    if ACTION_MASK not in info:
        raise KeyError(f'no info["{ACTION_MASK}"], although the first reset had one')
    # A copy, like the observation next to it: an environment may reuse a single mask.
    mask = np.array(info[ACTION_MASK])
    if mask.dtype == object:  # a batch: lists, and None for environments without a mask
        known = next(len(row) for row in mask if row is not None)
        mask = np.array([np.zeros(known) if row is None else row for row in mask])
    return as_mask(mask).astype(np.int8)
