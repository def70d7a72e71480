"""Any gymnasium environment as one batch, described by an EnvironmentSpec.

One autoreset mode is used throughout, ``SAME_STEP``: the observation after a finished episode is
the first of the next one, and the final observation is kept beside it. Environments with a
batch-native form that works this way use it; all others are stepped one after another by
gymnasium's SyncVectorEnv.

Dict and Tuple spaces, however deep, are flattened to fields: ``camera.left`` is the key ``left``
of the Dict at ``camera``, ``0.mask`` the key ``mask`` of the first entry of a Tuple.
"""

from __future__ import annotations

import logging
import math
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from actors.environments.guard import (
    FAILED,
    RAISED,
    Backoff,
    EnvironmentFailedError,
    FailureRecord,
    close_broken,
)
from actors.environments.making import (
    Makers,
    MaskedBatch,
    MaskedObservation,
    has_mask,
    make_guarded,
    make_native,
    makers,
)
from pdqn.errors import UsageError, first_line, with_place
from pdqn.seeds import rebuilt_seed
from pdqn.specs import (
    ACTION_MASK,
    ALLOWED_DTYPES,
    MAX_CATEGORIES,
    PLAIN_FIELD,
    EnvironmentSpec,
    FieldSpec,
    Observation,
)

SUGGESTED = "suggested_action"
_EVERY_ZERO: Any = [0]  # a seed for each of one; the base class declares only one int
_log = logging.getLogger("environment")
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
        failed: bool[num_envs], where the environment raised and was built anew: what was recorded
            of its episode is void, and ``observation`` is the first of another one.
        suggested: int64[num_envs], the action that an expert would take next, -1 where there is no
            telling; None where the environment suggests nothing (``info["suggested_action"]``).
    """

    observation: Observation
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_observation: Observation
    headline: NDArray[np.float64]
    failed: NDArray[np.bool_]
    suggested: NDArray[np.int64] | None


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
            headline = _attribute(env, "headline_metric")
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


def _attribute(env: Any, name: str) -> Any:
    """What an environment says of itself, or the wrapper that is nearest to us; None if nothing."""
    while env is not None:
        if hasattr(env, name):
            return getattr(env, name)
        env = getattr(env, "env", None)
    return None


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


class VectorEnvironment:
    """A batch of environments that speaks in maps of named arrays."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        env_args: Mapping[str, Any],
        num_envs: int,
        *,
        failures_allowed: int = 0,
        pause: Callable[[float], None] | None = None,
        rests: bool = False,
    ) -> None:
        """Make the environments.

        Args:
            spec: what ``describe_environment`` found.
            env_args: keyword arguments.
            num_envs: of the batch.
            failures_allowed: in a row; an environment that raises is built anew so often.
            pause: waits for so many seconds before it is; by default it sleeps.
            rests: whether an environment whose episode has ended or failed rests until all are
                reset, where they are stepped one after the other; what it shows means nothing.
        """
        self.spec = spec
        self.num_envs = num_envs
        self.suggested: NDArray[np.int64] | None = None
        self._made = makers(spec.id, env_args)
        self._allowed = failures_allowed
        self._record = FailureRecord(failures_allowed)  # of a native batch
        self._rests = rests
        self._backoff = Backoff(pause)
        self._checked = [f for f in spec.fields if f.categories or f.name == ACTION_MASK]
        self._seeds = [0] * num_envs
        self._make()
        leaves = _leaves(self._env.single_observation_space)
        self._paths = {_field_name(path): path for path, _ in leaves}
        self._dtypes = {field.name: np.dtype(field.dtype) for field in spec.fields}

    @property
    def failures(self) -> int:
        """How often environments have raised so far; a native batch raises as a whole."""
        return self._record.total + sum(env.record.total for env in self._guarded)

    @property
    def failures_each(self) -> NDArray[np.int64]:
        """The same for each environment, int64[num_envs]."""
        if not self._guarded:
            return np.full(self.num_envs, self._record.total)
        return np.array([env.record.total for env in self._guarded])

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Begin an episode everywhere; environment i with ``seeds[i]``."""
        self._seeds = [int(seed) for seed in seeds]
        self._backoff.begin_step()
        every: Any = self._seeds  # the base class declares only one int
        observation, infos = self._env.reset(seed=every)
        self.suggested = self._suggested(infos)
        named = self._named(observation)
        if not self._guarded:  # a guard has looked already
            self._check(named)
        return named

    def step(self, actions: NDArray[np.integer[Any]]) -> Transition:
        """Take actions [num_envs], each 0 .. num_actions - 1.

        Raises:
            EnvironmentFailedError: an environment failed too often in a row.
        """
        self._backoff.begin_step()
        if self._guarded:
            return self._step(actions)
        try:
            return self._step(actions)
        except RAISED:
            _log.exception("a batch of environments failed")
            return self._rebuilt(traceback.format_exc())

    def _step(self, actions: NDArray[np.integer[Any]]) -> Transition:
        observation, rewards, *ends, infos = self._env.step(actions + self.spec.first_action)
        terminated, truncated = (np.asarray(end, bool) for end in ends)
        failed = self._failed(infos)
        truncated = truncated & ~failed
        ended = terminated | truncated
        if ended.any():
            self._record.finished()
        self.suggested = self._suggested(infos)
        named = self._named(observation)
        final = self._final(infos, np.flatnonzero(truncated & ~terminated))
        if not self._guarded:  # a guard has looked already
            self._check(named)
            self._check(final, ended=True)
        return Transition(
            observation=named,
            rewards=np.asarray(rewards, np.float64),
            terminated=terminated,
            truncated=truncated,
            final_observation=final,
            headline=self._headline(infos, ended),
            failed=failed,
            suggested=self.suggested,
        )

    def _rebuilt(self, trace: str) -> Transition:
        """A native batch fails as a whole: all of its episodes are void."""
        observation = None
        while observation is None:
            self._backoff.wait(self._record, trace)
            try:
                observation = self._begin_anew()
            except RAISED:
                _log.exception("a batch of environments could not be built anew")
                trace = traceback.format_exc()
        none, every = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        nothing = np.full(self.num_envs, np.nan)
        rewards = np.zeros(self.num_envs)
        return Transition(
            observation, rewards, none, none.copy(), {}, nothing, every, self.suggested
        )

    def _begin_anew(self) -> Observation:
        close_broken(self._env)
        self._make()
        seeds = [rebuilt_seed(s, self._record.total) for s in self._seeds]
        _log.info("a batch of environments was built anew; its seeds are %s", seeds)
        return self.reset(seeds)

    def _make(self) -> None:
        masked, self._guarded = self.spec.masked, []
        native = make_native(self._made, self.num_envs, masked=masked)
        if native is not None:
            self._env = native
            return
        headline = self.spec.headline_metric
        self._env, self._guarded = make_guarded(
            self._made,
            self.num_envs,
            masked=masked,
            failures_allowed=self._allowed,
            backoff=self._backoff,
            check=lambda observation, ended: self._check(self._named(observation), ended=ended),
            told=(SUGGESTED,) if headline is None else (SUGGESTED, headline),
            rests=self._rests,
        )

    def _failed(self, infos: Mapping[str, Any]) -> NDArray[np.bool_]:
        marks = infos.get("final_info", {}).get(FAILED)
        return np.zeros(self.num_envs, bool) if marks is None else np.asarray(marks, bool)

    def _suggested(self, infos: Mapping[str, Any]) -> NDArray[np.int64] | None:
        if SUGGESTED not in infos:
            return None
        told = np.asarray(infos[SUGGESTED])
        known = np.asarray(infos.get(f"_{SUGGESTED}", np.ones(self.num_envs, bool)), bool)
        if told.dtype == object:  # None where an environment has nothing to suggest
            known = known & [value is not None for value in told]
        suggested = np.full(self.num_envs, -1, np.int64)
        suggested[known] = told[known].astype(np.int64) - self.spec.first_action
        return suggested

    def baselines(self, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Scores of the environment's own baselines on these seeds, by name; empty without any."""
        env = self._guarded[0] if self._guarded else self._env
        compute = _attribute(env, "baselines")
        if not callable(compute):
            return {}
        scores: Any = compute(list(seeds))
        return dict(scores)

    def close(self) -> None:
        """Close all environments."""
        self._env.close()

    def _named(self, observation: Any) -> Observation:
        return {name: _part(observation, path) for name, path in self._paths.items()}

    def _check(self, observation: Observation, *, ended: bool = False) -> None:
        """Refuse what no policy could act on or learn from; of one environment, or of several."""
        if not observation:
            return
        for field in self._checked:
            values = observation[field.name]
            if field.name != ACTION_MASK:
                if not field.is_known(values):
                    shown = f"{np.asarray(values).tolist()!s:.80}"
                    raise ValueError(f"the {field.name} {shown} is outside of its space")
            elif not ended and not np.any(values, axis=-1).all():
                raise ValueError("no action is valid, and the episode has not ended")

    def _final(self, infos: Mapping[str, Any], which: NDArray[np.intp]) -> Observation:
        if len(which) == 0:
            return {}
        if "final_obs" not in infos:
            raise KeyError('no infos["final_obs"], though an episode was cut')
        finals = [self._named(infos["final_obs"][i]) for i in which]
        return {
            # They come as the environment made them: a Discrete's may be an int of Python.
            name: np.stack([final[name] for final in finals]).astype(dtype, copy=False)
            for name, dtype in self._dtypes.items()
        }

    def _headline(self, infos: Mapping[str, Any], ended: NDArray[np.bool_]) -> NDArray[np.float64]:
        values = np.full(self.num_envs, np.nan)
        name, told = self.spec.headline_metric, infos.get("final_info", {})
        if name in told:
            known = ended & told.get(f"_{name}", True)
            values[known] = told[name][known]
        return values


def _actions(env_id: str, space: gymnasium.Space[Any]) -> tuple[int, int]:
    """How many there are, and the first one."""
    if not isinstance(space, spaces.Discrete):
        raise UsageError(
            f"environment {env_id} has the actions {space}; only Discrete is supported: a "
            "Q-network has one value for each of a finite set of actions"
        )
    return int(space.n), int(space.start)


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
