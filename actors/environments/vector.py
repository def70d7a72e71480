"""Any gymnasium environment as one batch, described by an EnvironmentSpec.

There is one autoreset mode, ``SAME_STEP``. The observation after a finished episode is the first of
the next one, and the final observation is kept separately. Environments with a native batch in this
mode use it. All others are stepped one after another, each with its own guard.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from actors.environments.beside import made_beside
from actors.environments.fields import field_name, leaves_of, part_of
from actors.environments.finite import Fault, FiniteCheck, first_of, renumbered, rows_of
from actors.environments.guard import (
    FAILED,
    Backoff,
    FailureRecord,
    GuardedEnvironment,
    close_quietly,
)
from actors.environments.guest import Guest
from actors.environments.infos import checked_scores, final_metrics, headlines, suggestions
from actors.environments.interface import CheckedEnvironment, InterfaceError
from actors.environments.making import Makers, baselines_of, makers
from actors.environments.masks import with_mask_observed
from actors.environments.rollouts import with_rollouts_observed
from actors.environments.serial import SerialBatch
from actors.environments.states import at_states, set_state, state_of
from pdqn.casting import as_array, as_mask, is_binary
from pdqn.seeds import rebuilt_seed
from pdqn.specs import ACTION_MASK, EnvironmentSpec, FieldSpec, Observation

# Less than an actor has for leaving in order.
_CLOSE_SECONDS, _LEAST_CLOSE_SECONDS = 8.0, 0.5
# An environment that has not given one finite step in this number of them has failed.
_MOST_FAULTS_IN_A_ROW = 1000
_log = logging.getLogger("environment")

Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Transition:
    """One step of all environments.

    Attributes:
        observation: fields [num_envs, ...]; where an episode ended, the first of the next one.
        rewards: float64[num_envs].
        terminated: bool[num_envs].
        truncated: bool[num_envs].
        final_observation: observations to bootstrap from. Fields [k, ...] of the k environments
            that were truncated and not terminated, in order.
        headline: float64[num_envs], the headline metric at the end of an episode; NaN elsewhere.
        failed: bool[num_envs], whether the environment raised and was rebuilt. Records of its
            episode are void, and ``observation`` is the first of another episode.
        began: bool[num_envs], whether ``observation`` is the first of an episode.
        faults: what was not finite in this step, by the index of its environment. Such a step is
            neither terminated nor truncated: records of its episode end with the observation
            before it. Numbers that are not finite are replaced in ``observation``.
        metrics: the environment's own metrics at the end of an episode, by its index.
        metrics_dropped: number of those that are not finite numbers, or too many.
        suggested: int64[num_envs], an expert's next action (``info["suggested_action"]``), -1 where
            there is none; None if the environment suggests nothing.
    """

    observation: Observation
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    final_observation: Observation
    headline: NDArray[np.float64]
    failed: NDArray[np.bool_]
    suggested: NDArray[np.int64] | None
    began: NDArray[np.bool_]
    faults: Mapping[int, Fault] = dataclasses.field(default_factory=dict)
    metrics: Mapping[int, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    metrics_dropped: int = 0

    @property
    def spoilt(self) -> NDArray[np.bool_]:
        """Steps that nothing can be learned from, bool[num_envs]."""
        return rows_of(self.faults, len(self.rewards))


class VectorEnvironment:
    """A batch of environments that uses maps of named arrays.

    Attributes:
        suggested: an expert's actions for the present observations, as in ``Transition``.
        odd_suggestion: text of the first suggestion that is not an action; empty without any.
        unusable: present observations that are not finite, by the index of their environment.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        env_args: Mapping[str, Any],
        num_envs: int,
        *,
        failures_allowed: int = 0,
        pause: Callable[[float], None] | None = None,
        rests: bool = False,
        made: Makers | None = None,
        largest_reward: float = math.inf,
    ) -> None:
        """Make the environments.

        Args:
            spec: spec from ``describe_environment``.
            env_args: keyword arguments of the environment.
            num_envs: size of the batch.
            failures_allowed: largest number of failures in a row after which an environment is
                rebuilt.
            pause: function that waits for a number of seconds before that; by default it sleeps.
            rests: whether an environment rests after its episode has ended or failed, until all are
                reset. Native batches ignore this. The observations of a resting environment are
                meaningless.
            made: makers of the environment; by default those of ``spec.id`` and ``env_args``.
            largest_reward: magnitude of a reward beyond which its step cannot be used.
        """
        self.spec = spec
        self.num_envs = num_envs
        self.suggested: NDArray[np.int64] | None = None
        self.odd_suggestion = ""
        self._guest = Guest()
        with self._guest:
            self._made = makers(spec.id, env_args) if made is None else made
        self._allowed = failures_allowed
        self._record = FailureRecord(failures_allowed)  # for a native batch
        self._rests = rests
        self._backoff = Backoff(pause)
        self._checked = [field for field in spec.fields if _must_be_checked(field)]
        self._seeds = [0] * num_envs
        self._infos: Mapping[str, Any] = {}
        self._finite = FiniteCheck(spec, largest_reward)
        self.unusable: Mapping[int, Fault] = {}
        self._in_a_row: dict[int, int] = {}  # number of faulty steps until now, where there are any
        with self._guest:
            self._make()
        self._guest.settle()
        leaves = leaves_of(self._env.single_observation_space)
        self._paths = {field_name(path): path for path, _ in leaves}

    @property
    def failures(self) -> int:
        """Number of failures so far; a native batch fails as a whole."""
        return self._record.total + sum(env.record.total for env in self._guarded)

    @property
    def failures_each(self) -> NDArray[np.int64]:
        """Number of failures of each environment, int64[num_envs]."""
        if not self._guarded:
            return np.full(self.num_envs, self._record.total)
        return np.array([env.record.total for env in self._guarded])

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Begin an episode in every environment; environment i uses ``seeds[i]``."""
        self._seeds = [int(seed) for seed in seeds]
        self._backoff.begin_step()
        every: Any = self._seeds  # the base class declares only one int
        with self._guest:
            observation, infos = self._env.reset(seed=every)
        self._infos = infos
        self.suggested = self._suggested(infos)
        named, self.unusable = self._batch(observation)
        self._in_a_row = {}
        return named

    def step(self, actions: NDArray[np.integer[Any]]) -> Transition:
        """Step with actions [num_envs], each 0 .. num_actions - 1.

        Raises:
            EnvironmentFailedError: an environment failed too often in a row.
        """
        self._backoff.begin_step()
        if self._guarded:
            return self._step(actions)
        try:
            return self._step(actions)
        except Exception:  # noqa: BLE001 - environments raise anything
            _log.exception("a batch of environments failed")
            return self._rebuilt(traceback.format_exc())

    def get_state(self) -> dict[str, Any]:
        """Return all that the future of these environments depends on, as plain data.

        Raises:
            StateError: they cannot be saved.
        """
        with at_states(self._guest):
            inner: list[Any] = [env.get_state() for env in self._guarded]
            inner = inner or [state_of(self._env)]
        return {
            "inner": inner,
            "record": self._record.get_state(),
            "seeds": self._seeds,
            "suggested": self.suggested,
            "odd_suggestion": self.odd_suggestion,
            "unusable": [[env, *fault] for env, fault in self.unusable.items()],
            "in_a_row": list(self._in_a_row.items()),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``get_state``, after a reset.

        Raises:
            StateError: they cannot, and must be reset again.
        """
        with at_states(self._guest):
            if not self._guarded:
                set_state(self._env, state["inner"][0])
            else:
                for env, inner in zip(self._guarded, state["inner"], strict=True):
                    env.set_state(inner)
                # A batch repeats these where other environments begin again.
                vars(self._env)["_env_obs"] = [env.last for env in self._guarded]
        self._record.set_state(state["record"])
        self._seeds, self.suggested = state["seeds"], state["suggested"]
        self.odd_suggestion = state["odd_suggestion"]
        self.unusable = {env: Fault(kind, value) for env, kind, value in state["unusable"]}
        self._in_a_row = dict(state["in_a_row"])

    def _step(self, actions: NDArray[np.integer[Any]]) -> Transition:
        with self._guest:
            observation, given, *ends, infos = self._env.step(actions + self.spec.first_action)
        terminated, truncated = (np.asarray(end, bool) for end in ends)
        failed = _failed(infos, self.num_envs)
        truncated = truncated & ~failed
        ended = terminated | truncated
        self._infos = infos
        self.suggested = self._suggested(infos)
        rewards = np.asarray(given, np.float64)
        named, unusable = self._batch(observation)
        cut = np.flatnonzero(truncated & ~terminated)
        metrics, dropped = final_metrics(infos, ended)
        final, of_final = self._final(infos, cut)
        transition = Transition(
            observation=named,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            final_observation=final,
            headline=_headline(infos, self.spec.headline_metric, ended),
            failed=failed,
            suggested=self.suggested,
            began=ended | failed,
            metrics=metrics,
            metrics_dropped=dropped,
        )
        of_rewards, before = self._finite.rewards(rewards), self.unusable
        if unusable or of_final or of_rewards or before:
            self.unusable = unusable
            now = {env: fault for env, fault in unusable.items() if not transition.began[env]}
            faults = first_of(before, of_rewards, renumbered(of_final, cut.tolist()), now)
            transition = self._without_faults(transition, faults)
        else:
            self._in_a_row = {}
        if ended.any() and (transition.terminated | transition.truncated).any():
            self._record.finished()
        return transition

    def _without_faults(self, step: Transition, faults: Mapping[int, Fault]) -> Transition:
        """Take what is not finite out of a step; begin another episode there if that is possible.

        It is possible with environments that are stepped one after another. Those of a native batch
        go on, and can be learned from once they are finite again.
        """
        spoilt = rows_of(faults, self.num_envs)
        self._end_endless(faults)
        named, again = step.observation, np.zeros(self.num_envs, bool)
        if self._guarded:
            again = (spoilt & ~step.began) | rows_of(self.unusable, self.num_envs)
        if again.any():
            named = self._begin_again(again)
        kept = ~spoilt[step.truncated & ~step.terminated]
        final = step.final_observation
        return dataclasses.replace(
            step,
            observation=named,
            terminated=step.terminated & ~spoilt,
            truncated=step.truncated & ~spoilt,
            final_observation={n: v[kept] for n, v in final.items()} if kept.any() else {},
            headline=np.where(spoilt, np.nan, step.headline),
            suggested=self.suggested,
            began=step.began | again,
            faults=faults,
        )

    def _end_endless(self, faults: Mapping[int, Fault]) -> None:
        """Let environments fail that give nothing finite any more; one that rests may do so."""
        if self._rests:
            return
        self._in_a_row = {env: self._in_a_row.get(env, 0) + 1 for env in faults}
        for env, number in self._in_a_row.items():
            if number >= _MOST_FAULTS_IN_A_ROW:
                self._in_a_row[env] = 0
                fault = f"the {faults[env].kind} was not finite in {number} steps in a row"
                if not self._guarded:
                    raise InterfaceError(fault)
                self._guarded[env].give_up(fault)

    def _begin_again(self, which: NDArray[np.bool_]) -> Observation:
        """Begin other episodes in some environments; return the observation of all."""
        with self._guest:
            observation, infos = self._env.reset(options={"reset_mask": which})
        fresh, before = self._suggested(infos), self.suggested
        if fresh is not None or before is not None:
            none = np.full(self.num_envs, -1, np.int64)
            self.suggested = np.where(
                which, none if fresh is None else fresh, none if before is None else before
            )
        named, self.unusable = self._batch(observation)
        return named

    def _rebuilt(self, trace: str) -> Transition:
        """Rebuild a native batch, which fails as a whole: all of its episodes are void."""
        observation = None
        while observation is None:
            self._backoff.wait(self._record, trace)
            try:
                observation = self._begin_anew()
            except Exception:  # noqa: BLE001 - environments raise anything
                _log.exception("a batch of environments could not be built anew")
                trace = traceback.format_exc()
        none, every = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        nothing = np.full(self.num_envs, np.nan)
        rewards = np.zeros(self.num_envs)
        return Transition(
            observation, rewards, none, none.copy(), {}, nothing, every, self.suggested, every
        )

    def _begin_anew(self) -> Observation:
        with self._guest:
            close_quietly(self._env)
            self._make()
        seeds = [rebuilt_seed(s, self._record.total) for s in self._seeds]
        _log.info("a batch of environments was built anew; its seeds are %s", seeds)
        return self.reset(seeds)

    def _make(self) -> None:
        self._guarded: list[GuardedEnvironment] = []
        native = native_batch(self._made, self.num_envs, self.spec)
        if native is not None:
            self._env = native
            return
        self._guarded = made_beside(self.spec.id, self._guard, self.num_envs)
        self._env = SerialBatch(self._guarded)

    def _guard(self) -> GuardedEnvironment:
        """Make a guarded environment for stepping one after another."""
        return GuardedEnvironment(
            partial(_single, self._made, self.spec),
            self._allowed,
            self._backoff,
            check=self._check_one,
            headline=self.spec.headline_metric,
            rests=self._rests,
        )

    def _suggested(self, infos: Mapping[str, Any]) -> NDArray[np.int64] | None:
        first, number = self.spec.first_action, self.spec.num_actions
        suggested, odd = suggestions(infos, self.num_envs, first, number)
        told = next((env.odd_suggestion for env in self._guarded if env.odd_suggestion), odd)
        self.odd_suggestion = self.odd_suggestion or told
        return suggested

    def present_headline(self) -> NDArray[np.float64]:
        """Return the headline metric of the episodes in progress, float64[num_envs].

        It is NaN where the info of the last step or reset does not have the metric.
        """
        name = self.spec.headline_metric
        if name is None:
            return np.full(self.num_envs, np.nan)
        return headlines(self._infos, name, self.num_envs)

    def has_baselines(self, method: str = "baselines") -> bool:
        """Return whether the environment has baselines of its own; this may raise anything."""
        with self._guest:
            return baselines_of((*self._guarded, self._env)[0], method) is not None

    def baselines(self, seeds: Sequence[int], method: str = "baselines") -> Scores:
        """Score its own baselines, or ``bounds`` or ``searches``, by name; empty without any."""
        with self._guest:
            compute = baselines_of((*self._guarded, self._env)[0], method)
            scores: Any = {} if compute is None else compute(list(seeds))
        return checked_scores(scores, len(seeds), method)

    def close(self) -> None:
        """Close all environments within a bounded time; errors go to the log."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        with self._guest:
            for env in self._guarded:
                env.close(max(_LEAST_CLOSE_SECONDS, deadline - time.monotonic()))
            close_quietly(self._env)

    def _named(self, observation: Any) -> Observation:
        return {name: part_of(observation, path) for name, path in self._paths.items()}

    def _batch(self, observation: Any) -> tuple[Observation, Mapping[int, Fault]]:
        """Name the parts of a batch's observation, each of its field's dtype; find its faults."""
        named = self._named(observation)
        named = {f.name: _fitting(named[f.name], f, self.num_envs) for f in self.spec.fields}
        named, faults = self._finite.cleaned(named)
        if not self._guarded:  # a guard has already checked
            _check(named, self._checked)
        return named, faults

    def _check_one(self, observation: Any, ended: bool) -> None:
        """Check what an environment gave; most have nothing to check, and no need of names."""
        if self._checked:
            _check(self._named(observation), self._checked, ended=ended)

    def _final(
        self, infos: Mapping[str, Any], which: NDArray[np.intp]
    ) -> tuple[Observation, Mapping[int, Fault]]:
        """Return the final observations of some environments, and the faults of their rows."""
        if len(which) == 0:
            return {}, {}
        if "final_obs" not in infos:
            raise KeyError('no infos["final_obs"], although an episode was truncated')
        finals = [self._named(infos["final_obs"][i]) for i in which]
        named, faults = self._finite.cleaned(
            {
                # They are as the environment made them: a Discrete may be a Python int.
                f.name: _fitting(np.stack([final[f.name] for final in finals]), f, len(which))
                for f in self.spec.fields
            }
        )
        if not self._guarded:  # a guard has already checked
            _check(named, self._checked, ended=True)
        return named, faults


# ---- from makers to gymnasium's batches ----


def native_batch(made: Makers, num_envs: int, spec: EnvironmentSpec) -> VectorEnv | None:
    """Make the environment's own batch; None if it has none that resets within a step.

    Args:
        made: makers of the environment.
        num_envs: size of the batch.
        spec: spec of the environment, which says what its infos tell.
    """
    if made.vector is None:
        return None
    native: Any = made.vector(num_envs)
    if not isinstance(native, VectorEnv):
        raise InterfaceError(
            f"the attribute vector of its factory made {type(native).__name__}, not a gymnasium "
            "VectorEnv; give a function of (num_envs, **env_args) that makes one, or rename vector"
        )
    metadata: Any = native.metadata
    mode = metadata.get("autoreset_mode") if isinstance(metadata, Mapping) else None
    if mode != AutoresetMode.SAME_STEP:
        native.close()
        return None
    return _with_infos_observed(native, spec)


def _failed(infos: Mapping[str, Any], num_envs: int) -> NDArray[np.bool_]:
    marks = infos.get("final_info", {}).get(FAILED)
    return np.zeros(num_envs, bool) if marks is None else np.asarray(marks, bool)


def _headline(
    infos: Mapping[str, Any], name: str | None, ended: NDArray[np.bool_]
) -> NDArray[np.float64]:
    if name is None or not ended.any():
        return np.full(len(ended), np.nan)
    return np.where(ended, headlines(infos.get("final_info", {}), name, len(ended)), np.nan)


def _must_be_checked(field: FieldSpec) -> bool:
    """Tell whether values of a field's dtype may be none of its space."""
    if field.name == ACTION_MASK:
        return True  # some action must be valid
    return bool(field.categories) or (field.binary and field.dtype != "bool")


def _check(observation: Observation, fields: Sequence[FieldSpec], *, ended: bool = False) -> None:
    """Reject observations of one or several environments that no policy could use."""
    if not observation:
        return
    for field in fields:
        values = observation[field.name]
        if field.name == ACTION_MASK:
            if not as_mask(values).any(axis=-1).all() and not ended:
                raise ValueError("no action is valid, and the episode has not ended")
        elif not (is_binary(np.asarray(values)) if field.binary else field.is_known(values)):
            given = f"{np.asarray(values).tolist()!s:.80}"
            raise ValueError(f"the {field.name} {given} is outside of its space")


def _single(made: Makers, spec: EnvironmentSpec) -> Any:
    assert made.single is not None, "a batch that is the only way resets within a step"
    return _with_infos_observed(CheckedEnvironment(made.single()), spec)


def _with_infos_observed(env: Any, spec: EnvironmentSpec) -> Any:
    """Move what the infos tell of actions into the observation."""
    return with_rollouts_observed(with_mask_observed(env) if spec.masked else env, spec.rollouts)


def _fitting(values: Any, field: FieldSpec, count: int) -> NDArray[Any]:
    """Return the values of a batch, copied only if they are not of the field's dtype.

    Raises:
        ValueError: the space does not have them.
    """
    shape = (count, *field.shape)
    if isinstance(values, np.ndarray) and values.dtype == field.dtype and values.shape == shape:
        return values
    if field.name == ACTION_MASK:
        return as_mask(values).astype(field.dtype)
    try:
        return as_array(values, field.dtype, shape)
    except ValueError as error:
        raise ValueError(f"the {field.name} is outside of its space: {error}") from error
