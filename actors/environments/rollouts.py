"""Rollouts: returns of other actions that an environment tells, moved into the observation.

An environment that can be tried out may tell what would have become of k other actions::

    info["rollout_actions"]  k actions of the present observation, -1 for none
    info["rollout_returns"]  k discounted returns from here on, had they been taken

As fields of the observation they travel and are stored with their frame, once. Networks do not see
them; the learner fits the values of these actions to their returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from actors.environments.interface import InterfaceError, shown
from actors.environments.observed import ObservedInfo, ObservedInfos, Told
from pdqn.specs import ROLLOUT_ACTIONS, ROLLOUT_RETURNS

MOST_ROLLOUTS = 1024


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
    is_batch = isinstance(env, VectorEnv)
    actions = env.single_action_space if is_batch else env.action_space
    assert isinstance(actions, spaces.Discrete)
    told = {
        ROLLOUT_ACTIONS: spaces.Box(-1, int(actions.n) - 1, (count,), np.int32),
        ROLLOUT_RETURNS: spaces.Box(-np.inf, np.inf, (count,), np.float32),
    }
    if is_batch:
        shape = env.num_envs, count
        # Nothing is done from a final observation.
        return ObservedInfos(env, told, partial(_fields, shape=shape), lambda _: _none(shape))
    return ObservedInfo(env, told, partial(_fields, shape=(count,)))


def _fields(info: Mapping[str, Any], shape: tuple[int, ...]) -> Told:
    """Return both fields, without rollouts where the info tells none."""
    if ROLLOUT_ACTIONS not in info or ROLLOUT_RETURNS not in info:
        return _none(shape)
    actions, returns = (_rows(info[n], n) for n in (ROLLOUT_ACTIONS, ROLLOUT_RETURNS))
    if actions.shape != shape or returns.shape != shape:
        raise InterfaceError(
            f'info["{ROLLOUT_ACTIONS}"] has the shape {list(actions.shape)} and '
            f'info["{ROLLOUT_RETURNS}"] {list(returns.shape)}; both need {list(shape)}, as at the '
            "first reset"
        )
    # Copies, like the observation beside them: an environment may reuse its arrays.
    return {ROLLOUT_ACTIONS: actions.astype(np.int32), ROLLOUT_RETURNS: returns.astype(np.float32)}


def _none(shape: tuple[int, ...]) -> Told:
    return {
        ROLLOUT_ACTIONS: np.full(shape, -1, np.int32),
        ROLLOUT_RETURNS: np.zeros(shape, np.float32),
    }


def _rows(told: Any, name: str) -> NDArray[Any]:
    try:
        rows = np.asarray(told)
    except Exception:  # noqa: BLE001 - of lists of different lengths, and any object
        rows = np.empty((), object)
    if rows.dtype.kind not in "iuf":
        raise InterfaceError(f'info["{name}"] is {shown(told)}; numbers are needed')
    return rows
