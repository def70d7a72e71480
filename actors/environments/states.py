"""States of environments, from which others go on in the middle of an episode.

An environment, batch or wrapper that can be saved has two methods::

    def get_state(self): ...         # all that its future depends on, as plain data (pdqn.plain)
    def set_state(self, state): ...  # continue from there; called after a reset

It answers for everything that it wraps. The classics of gymnasium below need no methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from actors.environments.guest import EnvironmentQuitError, Guest
from actors.environments.interface import CheckedEnvironment
from actors.environments.observed import ObservedInfo, ObservedInfos
from pdqn import plain
from pdqn.errors import type_and_first_line

_CLASSICS: dict[type, tuple[str, ...]] = {
    CartPoleEnv: ("state", "steps_beyond_terminated"),
    MountainCarEnv: ("state",),
    AcrobotEnv: ("state",),
}
# After a reset, their future depends on nothing but what they wrap.
_STATELESS = (
    CheckedEnvironment, ObservedInfo, ObservedInfos, OrderEnforcing, PassiveEnvChecker,
)  # fmt: skip


class StateError(Exception):
    """An environment that cannot be saved, or a state from which it cannot continue."""


@contextmanager
def at_states(guest: Guest) -> Iterator[None]:
    """Call environments' methods for states within a guest's settings.

    Raises:
        StateError: one of them cannot be saved, or cannot continue.
    """
    try:
        with guest:
            yield
    except (EnvironmentQuitError, ValueError) as error:
        raise StateError(str(error)) from error


def state_of(env: Any) -> bytes:
    """Return all that the future of an environment, or of a batch, depends on.

    Raises:
        StateError: it cannot be saved; the text says which class cannot, and why.
    """
    *wrappers, inner = levels(env)
    elapsed = [_elapsed(level) for level in wrappers if type(level) is TimeLimit]
    try:
        own = _classic_state(inner) if type(inner) in _CLASSICS else inner.get_state()
        own = plain.pack(own, f"{type(inner).__name__}.get_state()")
        return plain.pack({"elapsed": elapsed, "own": own})
    except plain.NotPlainError as error:
        raise StateError(str(error)) from error
    except Exception as error:
        said = type_and_first_line(error)
        raise StateError(f"{type(inner).__name__}.get_state() failed: {said}") from error


def set_state(env: Any, state: bytes) -> None:
    """Continue from ``state_of`` an environment with the same arguments.

    Args:
        env: environment or batch, after a reset.
        state: what ``state_of`` returned.

    Raises:
        StateError: it cannot; it must be reset before it is used.
    """
    *wrappers, inner = levels(env)
    limits: list[Any] = [level for level in wrappers if type(level) is TimeLimit]
    try:
        content = plain.unpack(state)
        own = plain.unpack(content["own"])
        if len(content["elapsed"]) != len(limits):
            raise ValueError(f"{len(content['elapsed'])} limits of time, not {len(limits)}")
        for limit, steps in zip(limits, content["elapsed"], strict=True):
            limit._elapsed_steps = int(steps)
        if type(inner) in _CLASSICS:
            _set_classic_state(inner, own)
        else:
            inner.set_state(own)
    except Exception as error:
        said = type_and_first_line(error)
        raise StateError(f"{type(inner).__name__}.set_state() failed: {said}") from error


def levels(env: Any) -> Iterator[Any]:
    """Yield the wrappers of an environment, and at last what can be saved.

    Raises:
        StateError: a wrapper, or the environment itself, cannot be saved.
    """
    while type(env) not in _CLASSICS and not _has_pair(env):
        if type(env) not in (TimeLimit, *_STATELESS):
            raise StateError(f"{type(env).__name__} has no methods get_state() and set_state()")
        yield env
        env = env.env
    yield env


def _has_pair(env: Any) -> bool:
    """Tell whether an environment's class defines both methods, with these arguments."""
    if not isinstance(env, gymnasium.Env | VectorEnv):
        return False
    try:
        for name, arguments in (("get_state", ()), ("set_state", (None,))):
            inspect.getattr_static(type(env), name)
            inspect.signature(getattr(env, name)).bind(*arguments)
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def _elapsed(limit: Any) -> int:
    return int(limit._elapsed_steps or 0)


def _classic_state(env: Any) -> dict[str, Any]:
    own = {name: getattr(env, name) for name in _CLASSICS[type(env)]}
    return {**own, "random": plain.generator_state(env.np_random)}


def _set_classic_state(env: Any, state: Any) -> None:
    for name in _CLASSICS[type(env)]:
        setattr(env, name, state[name])
    plain.set_generator_state(env.np_random, state["random"])
