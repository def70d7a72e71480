"""Environments beside each other in one process: each stands for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium

from actors.environments.guard import close_quietly
from actors.environments.interface import told_with_place
from pdqn.errors import RunError

E = TypeVar("E", bound=gymnasium.Env[Any, Any])
_ONE = "if there can be only one, set actor.envs_per_actor=1"


class CrowdedError(RunError):
    """Failure of an environment beside others, although the first one could be made."""


def made_beside(env_id: str, make: Callable[[], E], count: int) -> list[E]:
    """Make environments for one process.

    A simulator may have a port that the first one takes. A factory may return the same object each
    time: its episodes would mix.

    Args:
        env_id: name of the environment.
        make: function that makes one.
        count: number of environments.

    Raises:
        CrowdedError: another one than the first cannot be made, or is one of those before.
    """
    made: list[E] = []
    known: set[int] = set()
    try:
        for number in range(1, count + 1):
            try:
                made.append(make())
            except Exception as error:
                if number == 1:
                    raise
                raise CrowdedError(
                    f"environment {env_id}: number {number} of {count} in one process cannot be "
                    f"made: {told_with_place(error)}; {_ONE}"
                ) from error
            inner = _innermost(made[-1])
            if id(inner) in known:
                raise CrowdedError(
                    f"environment {env_id}: its factory returns the same object each time "
                    f"({type(inner).__name__}); create a new one at each call, or set "
                    "actor.envs_per_actor=1"
                )
            known.add(id(inner))
    except BaseException:
        for env in made:
            close_quietly(env)
        raise
    return made


def _innermost(env: Any) -> Any:
    """Return what wrappers of gymnasium wrap in the end; others may answer to any name."""
    while isinstance(env, gymnasium.Wrapper) and "env" in vars(env):
        env = env.env
    return env
