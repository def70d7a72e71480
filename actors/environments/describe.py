"""The spec of an environment, from one instance: made, reset and stepped as an actor would.

``making`` finds the makers for a name. This module derives the spec from one instance. ``vector``
makes the batch that actors step.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from actors.environments.examination import Examination
from actors.environments.fields import fields_of
from actors.environments.guard import EnvironmentFailedError, close_quietly
from actors.environments.making import Makers, attribute, makers
from actors.environments.masks import tells_mask, with_mask_observed
from actors.environments.vector import VectorEnvironment, native_batch
from pdqn.errors import UsageError, first_line, with_place
from pdqn.specs import ACTION_MASK, EnvironmentSpec, FieldSpec, Observation

_log = logging.getLogger("environment")
# Errors of gymnasium.make and of constructors for arguments that they do not accept.
_NOT_MADE = (
    gymnasium.error.Error, TypeError, ValueError, ImportError, AssertionError, LookupError,
)  # fmt: skip


def describe_environment(
    env_id: str, env_args: Mapping[str, Any], frame_stack: int = 1
) -> EnvironmentSpec:
    """Examine an environment; return its spec, with frames stacked over ``frame_stack`` steps.

    Raises:
        UsageError: see ``examine_environment``.
    """
    return examine_environment(env_id, env_args).spec.stacked(frame_stack)


def examine_environment(env_id: str, env_args: Mapping[str, Any]) -> Examination:
    """Make, reset and step an environment once, in its own batch if it has one.

    Args:
        env_id: gymnasium id, ``module:id``, or ``module:factory``.
        env_args: keyword arguments of the environment.

    Raises:
        UsageError: it cannot be made, its spaces are not supported, or no actor could use its
            observations; the message gives the reason.
    """
    with contextmanager(examining)(env_id, env_args) as found:
        return found


def examining(env_id: str, env_args: Mapping[str, Any]) -> Iterator[Examination]:
    """Examine an environment, and close it once the findings are taken."""
    with _refused(env_id):
        made = makers(env_id, env_args)
        one = _one(env_id, made)
        with _closed_if_refused(one):
            spec = _spec_of(env_id, one)
            batch = _batch_around(one, made, spec)
        with _quiet(), closing(batch):
            yield Examination(spec, _try_once(batch))


@contextmanager
def _refused(env_id: str) -> Iterator[None]:
    """Convert any error of an environment to one line."""
    try:
        yield
    except UsageError:
        raise
    except _NOT_MADE as error:
        raise UsageError(f"environment {env_id}: {first_line(error)}") from error
    except EnvironmentFailedError as error:
        # The original error of the environment, which the guard has counted.
        raise UsageError(
            f"environment {env_id}: {with_place(error.__context__ or error)}"
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"environment {env_id}: {with_place(error)}") from error


def _one(env_id: str, made: Makers) -> Any:
    """Make one environment, or a batch of one if there is no single form."""
    if made.single is not None:
        env = made.single()
    else:
        assert made.vector is not None
        env = made.vector(1)
    if not isinstance(env, gymnasium.Env | VectorEnv):
        raise UsageError(f"environment {env_id}: it made {type(env).__name__}, not a gymnasium Env")
    return env


@contextmanager
def _closed_if_refused(env: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with _quiet():
            close_quietly(env)
        raise


def _spec_of(env_id: str, one: Any) -> EnvironmentSpec:
    """Read the attributes and the spaces of one environment, or of a batch of one."""
    headline = attribute(one, "headline_metric")
    placement = bool(attribute(one, "circle_placement"))
    fields, num_actions, first_action = _spaces_of(env_id, one, masked=tells_mask(one))
    return EnvironmentSpec(env_id, fields, num_actions, headline, first_action, placement)


def _spaces_of(env_id: str, env: Any, *, masked: bool) -> tuple[tuple[FieldSpec, ...], int, int]:
    """Read the spaces: the fields, the number of actions, and the first action."""
    shown = with_mask_observed(env) if masked else env
    batch = isinstance(shown, VectorEnv)
    actions = shown.single_action_space if batch else shown.action_space
    num_actions, first_action = _actions(env_id, actions)
    fields = fields_of(env_id, shown.single_observation_space if batch else shown.observation_space)
    _check_mask(env_id, fields, num_actions)
    if not any(field.name != ACTION_MASK for field in fields):
        raise UsageError(f"environment {env_id} shows nothing but its action mask")
    return fields, num_actions, first_action


def _batch_around(one: Any, made: Makers, spec: EnvironmentSpec) -> VectorEnvironment:
    """Make the batch of one that an actor would step.

    It takes over the existing environment, unless that has its own batch.
    """
    if made.single is None:
        return VectorEnvironment(spec, {}, 1, made=Makers(None, lambda _: one))
    native = native_batch(made, 1, masked=spec.masked)
    if native is None:
        return VectorEnvironment(spec, {}, 1, made=Makers(lambda: one, None))
    with _closed_if_refused(native):
        _check_batch(native, spec)
        one.close()
        return VectorEnvironment(spec, {}, 1, made=Makers(None, lambda _: native))


def _check_batch(native: VectorEnv, spec: EnvironmentSpec) -> None:
    """Reject a batch that observes or acts differently from a single environment."""
    fields, num_actions, first_action = _spaces_of(spec.id, native, masked=spec.masked)
    if (fields, num_actions, first_action) != (spec.fields, spec.num_actions, spec.first_action):
        raise UsageError(
            f"environment {spec.id}: its batch has the observations {_listed(fields)} and "
            f"{num_actions} actions, a single one {_listed(spec.fields)} and {spec.num_actions}"
        )


def _try_once(batch: VectorEnvironment) -> bool:
    """Reset it and step it as an actor does; return whether it suggests actions.

    One error now is better than one from every actor.
    """
    first = batch.reset([0])
    _check_finite(batch.spec, first, np.zeros(1))
    suggested_first = batch.suggested is not None
    mask = first.get(ACTION_MASK)
    step = batch.step(np.zeros(1, np.int64) if mask is None else mask.argmax(axis=1))
    _check_finite(batch.spec, step.observation, step.rewards)
    return suggested_first or step.suggested is not None


def _check_finite(
    spec: EnvironmentSpec, observation: Observation, rewards: NDArray[np.float64]
) -> None:
    for name, values in {**observation, "reward": rewards}.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UsageError(
                f"environment {spec.id}: its {name} is not finite from the start; no network could "
                "learn from that"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and tracebacks, which belong in an actor's log, off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _log.disabled = True
        try:
            yield
        finally:
            _log.disabled = False


def _listed(fields: tuple[FieldSpec, ...]) -> str:
    return ", ".join(f"{f.name} {f.dtype}{list(f.shape)}" for f in fields)


def _actions(env_id: str, space: gymnasium.Space[Any]) -> tuple[int, int]:
    """Return the number of actions, and the first one."""
    if not isinstance(space, spaces.Discrete):
        raise UsageError(
            f"environment {env_id} has the actions {space}; only Discrete is supported: a "
            "Q-network has one value for each of a finite set of actions"
        )
    return int(space.n), int(space.start)


def _check_mask(env_id: str, fields: tuple[FieldSpec, ...], num_actions: int) -> None:
    for field in fields:
        if field.name == ACTION_MASK and field.shape != (num_actions,):
            raise UsageError(
                f"environment {env_id} has an {ACTION_MASK} of shape {list(field.shape)}; "
                f"one value for each of its {num_actions} actions is needed"
            )
