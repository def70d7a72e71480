"""Any gymnasium environment as one batch, described by an EnvironmentSpec.

One autoreset mode is used throughout, ``SAME_STEP``: the observation after a finished episode is
the first of the next one, and the final observation is kept beside it. Environments with a
batch-native form that works this way use it; all others are stepped one after another by
gymnasium's SyncVectorEnv.

Dict and Tuple spaces, however deep, are flattened to fields: ``camera.left`` is the key ``left``
of the Dict at ``camera``, ``0.mask`` the key ``mask`` of the first entry of a Tuple.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from actors.environments import registration
from pdqn.errors import UsageError
from pdqn.specs import ACTION_MASK, ALLOWED_DTYPES, EnvironmentSpec, FieldSpec, Observation

PLAIN_FIELD = "observation"
# The keys and positions that lead to a part of an observation, from the outside in.
Path = tuple[Any, ...]
# What gymnasium.make and constructors raise for what they do not accept.
_NOT_MADE = (
    gymnasium.error.Error, TypeError, ValueError, ImportError, AssertionError, LookupError,
)  # fmt: skip


@dataclass(frozen=True)
class Transition:
    """One step of all environments.

    Attributes:
        observation: fields [num_envs, ...]; where an episode ended, the next one's first.
        rewards: float64[num_envs].
        terminated: bool[num_envs].
        truncated: bool[num_envs].
        final_observation: fields [k, ...] of the k environments that were truncated and not
            terminated, in order: the observation to bootstrap from.
        headline: float64[num_envs], the headline metric at the end, NaN elsewhere.
    """

    observation: Observation
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_observation: Observation
    headline: NDArray[np.float64]


def describe_environment(
    env_id: str, env_args: Mapping[str, Any], frame_stack: int = 1
) -> EnvironmentSpec:
    """The spec of an environment, from making it once.

    Args:
        env_id: gymnasium id.
        env_args: keyword arguments of the environment.
        frame_stack: steps whose frames a network sees at once.

    Raises:
        UsageError: it cannot be made, or its spaces are not supported; the message says which.
    """
    registration.register()
    try:
        env = gymnasium.make(env_id, **env_args)
    except _NOT_MADE as error:
        raise UsageError(f"environment {env_id}: {_first_line(error)}") from error
    try:
        headline = getattr(env.unwrapped, "headline_metric", None)
        fields = _fields(env_id, env.observation_space)
        num_actions = _num_actions(env_id, env.action_space)
        _check_mask(env_id, fields, num_actions)
        spec = EnvironmentSpec(env_id, fields, num_actions, headline)
        return spec.stacked(frame_stack)
    finally:
        env.close()


class VectorEnvironment:
    """A batch of environments that speaks in maps of named arrays."""

    def __init__(self, spec: EnvironmentSpec, env_args: Mapping[str, Any], num_envs: int) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self._env = _make_vector(spec.id, env_args, num_envs)
        leaves = _leaves(self._env.single_observation_space)
        self._paths = {_field_name(path): path for path, _ in leaves}
        self._dtypes = {field.name: np.dtype(field.dtype) for field in spec.fields}
        assert isinstance(self._env.single_action_space, spaces.Discrete)
        self._first_action = int(self._env.single_action_space.start)

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Begin an episode everywhere; environment i with ``seeds[i]``."""
        every: Any = [int(seed) for seed in seeds]  # the base class declares only one int
        observation, _ = self._env.reset(seed=every)
        return self._named(observation)

    def step(self, actions: NDArray[np.integer[Any]]) -> Transition:
        """Take actions [num_envs], each 0 .. num_actions - 1."""
        observation, rewards, terminated, truncated, infos = self._env.step(
            actions + self._first_action
        )
        bootstrapped = np.flatnonzero(truncated & ~terminated)
        return Transition(
            observation=self._named(observation),
            rewards=np.asarray(rewards, np.float64),
            terminated=terminated,
            truncated=truncated,
            final_observation=self._final(infos, bootstrapped),
            headline=self._headline(infos, terminated | truncated),
        )

    def baselines(self, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Scores of the environment's own baselines on these seeds, by name; empty without any."""
        compute = getattr(self._env.unwrapped, "baselines", None)
        return dict(compute(list(seeds))) if compute is not None else {}

    def close(self) -> None:
        """Close all environments."""
        self._env.close()

    def _named(self, observation: Any) -> Observation:
        return {name: _part(observation, path) for name, path in self._paths.items()}

    def _final(self, infos: Mapping[str, Any], which: NDArray[np.intp]) -> Observation:
        if len(which) == 0:
            return {}
        finals = [self._named(infos["final_obs"][i]) for i in which]
        return {
            # They come as the environment made them: a Discrete's may be an int of Python.
            name: np.stack([final[name] for final in finals]).astype(dtype, copy=False)
            for name, dtype in self._dtypes.items()
        }

    def _headline(self, infos: Mapping[str, Any], ended: NDArray[np.bool_]) -> NDArray[np.float64]:
        values = np.full(self.num_envs, np.nan)
        if self.spec.headline_metric is not None and ended.any():
            values[ended] = infos["final_info"][self.spec.headline_metric][ended]
        return values


class _CopiedObservation(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Keeps a final observation as it was when the reset reuses the environment's own array."""

    def observation(self, observation: Any) -> Any:
        return _copied(observation)


def _copied(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {name: _copied(value) for name, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_copied(value) for value in observation)
    return np.array(observation)


def _make_vector(env_id: str, env_args: Mapping[str, Any], num_envs: int) -> VectorEnv:
    """Batch-native where that resets in the same step, else one after another."""
    registration.register()
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    entry = gymnasium.registry.get(name)  # None for an id without its version
    if entry is not None and entry.vector_entry_point is not None:
        native = gymnasium.make_vec(
            env_id, num_envs, vectorization_mode="vector_entry_point", **env_args
        )
        if native.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
            return native
        native.close()
    return gymnasium.make_vec(
        env_id,
        num_envs,
        vectorization_mode="sync",
        wrappers=[_CopiedObservation],
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **env_args,
    )


def _num_actions(env_id: str, space: gymnasium.Space[Any]) -> int:
    if not isinstance(space, spaces.Discrete):
        raise UsageError(f"environment {env_id} has actions {space}; Discrete is supported")
    return int(space.n)


def _leaves(space: gymnasium.Space[Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The spaces inside Dicts and Tuples, and how to get there."""
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        inner = list(enumerate(space.spaces))
    else:
        yield path, space
        return
    for key, part in inner:
        yield from _leaves(part, (*path, key))


def _part(observation: Any, path: Path) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _field_name(path: Path) -> str:
    return ".".join(map(str, path)) if path else PLAIN_FIELD


def _fields(env_id: str, space: gymnasium.Space[Any]) -> tuple[FieldSpec, ...]:
    leaves = [(_field_name(path), leaf) for path, leaf in _leaves(space)]
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
    return FieldSpec(name, tuple(space.shape), str(space.dtype), binary)


def _check_mask(env_id: str, fields: tuple[FieldSpec, ...], num_actions: int) -> None:
    for field in fields:
        if field.name == ACTION_MASK and field.shape != (num_actions,):
            raise UsageError(
                f"environment {env_id} has an {ACTION_MASK} of shape {list(field.shape)}; "
                f"one value for each of its {num_actions} actions is needed"
            )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
