"""The EnvironmentSpec of any gymnasium environment."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from actors.environments.fields import field_name, leaves_of
from actors.environments.guard import (
    EnvironmentFailedError,
)
from actors.environments.making import Makers, attribute, make_native, makers
from actors.environments.masks import MaskedBatch, MaskedObservation, has_mask
from actors.environments.vector import Transition, VectorEnvironment
from pdqn.errors import UsageError, first_line, with_place
from pdqn.specs import (
    ACTION_MASK,
    ALLOWED_DTYPES,
    MAX_CATEGORIES,
    EnvironmentSpec,
    FieldSpec,
    Observation,
)

_log = logging.getLogger("environment")
_EVERY_ZERO: Any = [0]  # a seed for each of one; the base class declares only one int
# What gymnasium.make and constructors raise for what they do not accept.
_NOT_MADE = (
    gymnasium.error.Error, TypeError, ValueError, ImportError, AssertionError, LookupError,
)  # fmt: skip


def describe_environment(
    env_id: str, env_args: Mapping[str, Any], frame_stack: int = 1
) -> EnvironmentSpec:
    """The spec of an environment, from making it once.

    Args:
        env_id: gymnasium id, ``module:id``, or ``module:factory``.
        env_args: keyword arguments of the environment.
        frame_stack: steps whose frames a network sees at once.

    Raises:
        UsageError: it cannot be made, or its spaces are not supported; the message says which.
    """
    with _refused(env_id):
        made = makers(env_id, env_args)
        with closing(_one(env_id, made)) as env:
            headline = attribute(env, "headline_metric")
            masked = has_mask(env) or _masks_in_info(env)
            spec = _spec_of(env_id, env, masked, headline)
        if made.single is not None:
            _check_batch(made, spec)
        _try_once(spec, env_args)
    return spec.stacked(frame_stack)


@contextmanager
def _refused(env_id: str) -> Iterator[None]:
    """Whatever an environment raises, in one line."""
    try:
        yield
    except UsageError:
        raise
    except _NOT_MADE as error:
        raise UsageError(f"environment {env_id}: {first_line(error)}") from error
    except EnvironmentFailedError as error:
        # What the environment raised, and was counted.
        raise UsageError(
            f"environment {env_id}: {with_place(error.__context__ or error)}"
        ) from error
    except Exception as error:
        raise UsageError(f"environment {env_id}: {with_place(error)}") from error


def _one(env_id: str, made: Makers) -> Any:
    """One environment, or a batch of one where there is no other way."""
    if made.single is not None:
        env = made.single()
    else:
        assert made.vector is not None
        env = made.vector(1)
    if not isinstance(env, gymnasium.Env | VectorEnv):
        raise UsageError(f"environment {env_id}: it made {type(env).__name__}, no gymnasium Env")
    return env


def _masks_in_info(env: Any) -> bool:
    """Whether an environment tells the valid actions in its info and not in its observation."""
    _, info = env.reset(seed=_EVERY_ZERO if isinstance(env, VectorEnv) else 0)
    return ACTION_MASK in info


def _spec_of(env_id: str, env: Any, masked: bool, headline: str | None) -> EnvironmentSpec:
    """What one environment, or a batch, looks like."""
    batch = isinstance(env, VectorEnv)
    if masked and not has_mask(env):
        env = MaskedBatch(env) if batch else MaskedObservation(env)
    actions = env.single_action_space if batch else env.action_space
    num_actions, first_action = _actions(env_id, actions)
    fields = _fields(env_id, env.single_observation_space if batch else env.observation_space)
    _check_mask(env_id, fields, num_actions)
    if not any(field.name != ACTION_MASK for field in fields):
        raise UsageError(f"environment {env_id} shows nothing but its action mask")
    return EnvironmentSpec(env_id, fields, num_actions, headline, first_action)


def _check_batch(made: Makers, spec: EnvironmentSpec) -> None:
    """Make what actors will step, where it is another thing than one environment."""
    native = make_native(made, 1, masked=spec.masked)
    if native is None:
        return
    with closing(native):
        found = _spec_of(spec.id, native, spec.masked, spec.headline_metric)
    if found != spec:
        raise UsageError(
            f"environment {spec.id}: its batch has the observations {_listed(found)} and "
            f"{found.num_actions} actions, a single one {_listed(spec)} and {spec.num_actions}"
        )


def suggests(spec: EnvironmentSpec, env_args: Mapping[str, Any]) -> bool:
    """Whether an environment tells what an expert would do, at its beginning or after a step."""
    with _quiet(), closing(VectorEnvironment(spec, env_args, 1)) as env:
        valid = env.reset([0]).get(ACTION_MASK)
        return env.suggested is not None or _step_once(env, valid).suggested is not None


def _try_once(spec: EnvironmentSpec, env_args: Mapping[str, Any]) -> None:
    """Reset and step it as an actor does: better one sentence now than one from every actor."""
    with _quiet(), closing(VectorEnvironment(spec, env_args, 1)) as env:
        first = env.reset([0])
        _check_finite(spec, first, np.zeros(1))
        transition = _step_once(env, first.get(ACTION_MASK))
        _check_finite(spec, transition.observation, transition.rewards)


def _check_finite(
    spec: EnvironmentSpec, observation: Observation, rewards: NDArray[np.float64]
) -> None:
    for name, values in {**observation, "reward": rewards}.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UsageError(
                f"environment {spec.id}: its {name} is not finite from the start; no network could "
                "learn from that"
            )


def _step_once(env: VectorEnvironment, valid: NDArray[np.bool_] | None) -> Transition:
    return env.step(np.zeros(1, np.int64) if valid is None else valid.argmax(axis=1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Gymnasium's advice and tracebacks are for an actor's log: this is a person's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _log.disabled = True
        try:
            yield
        finally:
            _log.disabled = False


def _listed(spec: EnvironmentSpec) -> str:
    return ", ".join(f"{f.name} {f.dtype}{list(f.shape)}" for f in spec.fields)


def _actions(env_id: str, space: gymnasium.Space[Any]) -> tuple[int, int]:
    """How many there are, and the first one."""
    if not isinstance(space, spaces.Discrete):
        raise UsageError(
            f"environment {env_id} has the actions {space}; only Discrete is supported: a "
            "Q-network has one value for each of a finite set of actions"
        )
    return int(space.n), int(space.start)


def _fields(env_id: str, space: gymnasium.Space[Any]) -> tuple[FieldSpec, ...]:
    leaves = [(field_name(path), leaf) for path, leaf in leaves_of(space)]
    if not any(math.prod(leaf.shape or ()) for _, leaf in leaves):
        raise UsageError(
            f"environment {env_id} has the observation {space}; one that holds values is needed"
        )
    name, times = Counter(name for name, _ in leaves).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"environment {env_id} has {times} observations of the name {name}; keys of Dict "
            "spaces may hold dots only where the names of all fields stay different"
        )
    fields = (_field(env_id, name, leaf) for name, leaf in leaves)
    return tuple(sorted(fields, key=lambda field: field.name))


def _field(env_id: str, name: str, space: gymnasium.Space[Any]) -> FieldSpec:
    supported = isinstance(
        space, spaces.Box | spaces.MultiBinary | spaces.Discrete | spaces.MultiDiscrete
    )
    if not supported or space.shape is None or str(space.dtype) not in ALLOWED_DTYPES:
        raise UsageError(
            f"environment {env_id} has the observation {name}: {space}; Box, MultiBinary, "
            "Discrete and MultiDiscrete, alone or in Dict and Tuple, are supported"
        )
    binary = (
        isinstance(space, spaces.MultiBinary) or str(space.dtype) == "bool" or name == ACTION_MASK
    )
    if isinstance(space, spaces.Discrete):
        categories, start = (int(space.n),), (int(space.start),)
    elif isinstance(space, spaces.MultiDiscrete):
        categories = tuple(map(int, space.nvec.ravel()))
        start = tuple(map(int, space.start.ravel()))
    else:
        categories = start = ()
    if sum(categories) > MAX_CATEGORIES:  # one-hot, they would make the largest layer by far
        categories = start = ()
    shape, dtype = tuple(space.shape), str(space.dtype)
    return FieldSpec(name, shape, dtype, binary, categories=categories, start=start)


def _check_mask(env_id: str, fields: tuple[FieldSpec, ...], num_actions: int) -> None:
    for field in fields:
        if field.name == ACTION_MASK and field.shape != (num_actions,):
            raise UsageError(
                f"environment {env_id} has an {ACTION_MASK} of shape {list(field.shape)}; "
                f"one value for each of its {num_actions} actions is needed"
            )
