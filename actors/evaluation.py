"""Greedy episodes on given seeds, compared with the environment's baselines."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.environments.beside import CrowdedError
from actors.environments.vector import VectorEnvironment
from pdqn.config import MAX_EPISODE_STEPS
from pdqn.episodes import MAX_METRICS
from pdqn.errors import RunError, UsageError, type_and_first_line
from pdqn.specs import ACTION_MASK, EnvironmentSpec, Observation
from pdqn.stacking import FrameStacker

Act = Callable[[Observation], NDArray[np.int64]]
MOST_ENVIRONMENTS = 16
_FAILURES_ALLOWED = 4
_ROUNDING = 1e-9  # share of sums over long episodes that may be rounding
_log = logging.getLogger("environment")


@dataclass(frozen=True)
class Scores:
    """Results of episodes on held-out seeds.

    Attributes:
        returns: float64[episodes], undiscounted; NaN where the environment failed.
        lengths: int64[episodes], in steps.
        headline: float64[episodes], the environment's headline metric in the last step of each; NaN
            where the environment's info did not have it.
        cut: bool[episodes], whether the episode was cut off before its end.
        own: object[episodes], the environment's own metrics at the end of each, by name.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    headline: NDArray[np.float64]
    cut: NDArray[np.bool_]
    own: NDArray[np.object_]

    def part(self, which: slice | NDArray[np.bool_]) -> Scores:
        """Select episodes."""
        return Scores(*(getattr(self, field.name)[which] for field in fields(self)))


def play(
    act: Act,
    spec: EnvironmentSpec,
    env_args: Mapping[str, Any],
    seeds: Sequence[int],
    should_stop: Callable[[], bool] = lambda: False,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    begun: Callable[[VectorEnvironment], object] = lambda _: None,
    ended: Callable[[int], object] = lambda _: None,
    making: AbstractContextManager[object] | None = None,
    most_environments: int = MOST_ENVIRONMENTS,
) -> Scores | None:
    """Play one episode for every seed; None if stopped before the end.

    An environment that fails is rebuilt for the next seed.

    Args:
        act: function from a batch of observations, stacked as in the spec, to actions int64[batch].
        spec: spec of the environment.
        env_args: keyword arguments of the environment.
        seeds: seeds of the episodes.
        should_stop: called at every step; True stops.
        max_episode_steps: steps after which an episode is cut off and counts as it is.
        begun: called with the environments once they are made.
        ended: called with the number of episodes that have ended since the last call.
        making: context in which environments are made, which may take long.
        most_environments: number that are stepped as one batch, at most.

    Raises:
        RunError: no episode counts, an environment failed for several seeds in a row, or no
            environment could be made or reset. Another attempt may succeed.
    """
    width = min(most_environments, len(seeds))
    with _in_one_line(f"environment {spec.id} cannot be made"), making or nullcontext():
        env = _players(spec, env_args, width)
    with closing(env):
        begun(env)
        scores = _play_all(act, env, seeds, should_stop, max_episode_steps, ended)
    if scores is not None and not _counted(scores, spec).any():
        raise RunError(
            f"none of {len(seeds)} held-out episodes of {spec.id} could be played to its end "
            "with a score that is finite"
        )
    return scores


def _players(spec: EnvironmentSpec, env_args: Mapping[str, Any], width: int) -> VectorEnvironment:
    """Make environments that play one episode each, or one if a process can have only one."""
    players = partial(
        VectorEnvironment, spec, env_args, failures_allowed=_FAILURES_ALLOWED, rests=True
    )
    try:
        return players(width)
    except CrowdedError as error:
        _log.warning("episodes are played one after another: %s", error)
        return players(1)


def baseline_scores(
    spec: EnvironmentSpec,
    env_args: Mapping[str, Any],
    seeds: Sequence[int],
    method: str = "baselines",
) -> dict[str, NDArray[np.float64]]:
    """Score the environment's own baselines on these seeds, by name; empty without baselines.

    Args:
        spec: spec of the environment.
        env_args: keyword arguments of the environment.
        seeds: seeds of the episodes.
        method: ``baselines``, ``bounds`` or ``searches``.

    Raises:
        RunError: the environment cannot be made, or its baselines fail or are not scores.
    """
    with _in_one_line(unplayed(spec)), closing(VectorEnvironment(spec, env_args, 1)) as env:
        scores = env.baselines(seeds, method)
        for name, values in scores.items():
            if not np.isfinite(values).any():
                raise RunError(
                    f"{unplayed(spec)}: {name} gave {values.tolist()!s:.80}, not a score for each "
                    f"of {len(seeds)} seeds"
                )
        return scores


def unplayed(spec: EnvironmentSpec) -> str:
    """Begin the sentence that says why there are no baselines."""
    return f"the baselines of environment {spec.id} cannot be played"


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Convert any error of an environment to one that a run survives: it may be transient."""
    try:
        yield
    except (RunError, UsageError):
        raise
    except Exception as error:
        raise RunError(f"{what}: {type_and_first_line(error)}") from error


def _play_all(
    act: Act,
    env: VectorEnvironment,
    seeds: Sequence[int],
    should_stop: Callable[[], bool],
    max_episode_steps: int,
    ended: Callable[[int], object],
) -> Scores | None:
    """Play batch after batch; None if stopped before the end."""
    parts: list[Scores] = []
    for start in range(0, len(seeds), env.num_envs):
        # The last batch is filled with seeds whose episodes are not counted.
        batch = [*seeds[start : start + env.num_envs], *seeds][: env.num_envs]
        part = _play_batch(act, env, batch, should_stop, max_episode_steps)
        if part is None:
            return None
        parts.append(part)
        ended(min(env.num_envs, len(seeds) - start))
    whole = (np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Scores))
    return Scores(*whole).part(slice(len(seeds)))


def _play_batch(
    act: Act,
    env: VectorEnvironment,
    seeds: Sequence[int],
    should_stop: Callable[[], bool],
    max_episode_steps: int,
) -> Scores | None:
    returns = np.zeros(env.num_envs)
    lengths = np.zeros(env.num_envs, np.int64)
    headline = np.full(env.num_envs, np.nan)
    own = np.array([{} for _ in range(env.num_envs)], object)
    stacker = FrameStacker(env.spec, env.num_envs)
    failures = env.failures_each
    with _in_one_line(f"environment {env.spec.id} cannot be reset"):
        first = env.reset(seeds)
    observation = stacker.reset(first)
    # Where a reset failed, another seed's episode has begun.
    playing = env.failures_each == failures
    returns[~playing] = np.nan
    while playing.any() and lengths.max() < max_episode_steps:
        if should_stop():
            return None
        transition = env.step(act(observation))
        ended = transition.terminated | transition.truncated
        observation = stacker.push(transition.observation, transition.began)
        void = transition.failed | transition.spoilt
        returns[playing] += transition.rewards[playing]
        returns[playing & void] = np.nan
        lengths[playing] += 1
        ended &= playing
        headline[ended] = transition.headline[ended]
        for index in transition.metrics.keys() & set(np.flatnonzero(ended).tolist()):
            own[index] = transition.metrics[index]
        playing &= ~(ended | void)
    if playing.any():
        with _in_one_line(f"the {env.spec.headline_metric} of {env.spec.id} cannot be read"):
            headline[playing] = env.present_headline()[playing]
    return Scores(returns, lengths, headline, playing, own)


def scored(scores: Scores, spec: EnvironmentSpec) -> NDArray[np.float64]:
    """Return the compared scores, float64[episodes]: the headline metric, or the return.

    An episode has no score (NaN) if its headline metric or its return is not finite.
    """
    values = scores.returns if spec.headline_metric is None else scores.headline
    return np.where(np.isfinite(values) & np.isfinite(scores.returns), values, np.nan)


def _counted(scores: Scores, spec: EnvironmentSpec) -> NDArray[np.bool_]:
    """Return which episodes count, bool[episodes]: those with a score, and those cut before it.

    To leave out the latter would favour policies by their short episodes.
    """
    return np.isfinite(scored(scores, spec)) | (scores.cut & np.isfinite(scores.returns))


def random_act(spec: EnvironmentSpec, rng: np.random.Generator) -> Act:
    """Make a policy that chooses uniformly among the valid actions."""

    def act(observation: Observation) -> NDArray[np.int64]:
        mask = observation.get(ACTION_MASK)
        if mask is None:
            batch = len(next(iter(observation.values())))
            return rng.integers(spec.num_actions, size=batch)
        return np.array([rng.choice(np.flatnonzero(row)) for row in mask])

    return act


def standard_error(values: NDArray[np.float64], magnitude: float | None = None) -> float:
    """Compute the standard error of the mean; 0 for a single value, and where it is rounding.

    Args:
        values: float64[n].
        magnitude: largest of the numbers that the values were computed from; by default, of the
            values.
    """
    if len(values) < 2:
        return 0.0
    largest = float(np.abs(values).max()) if magnitude is None else magnitude
    deviation = float(values.std(ddof=1))
    return deviation / math.sqrt(len(values)) if deviation > _ROUNDING * largest else 0.0


def dropped_text(result: Mapping[str, Any]) -> str:
    """Describe how many episodes of a ``describe`` result have no score; empty if all do."""
    dropped, whole = result["dropped"], result["dropped"] + result["episodes"]
    parts = [f"{dropped} of {whole} held-out episodes have no score"] if dropped else []
    if unscored := result["unscored"]:
        parts.append(
            f"{unscored} of {whole} held-out episodes were cut before the environment gave their "
            "headline metric, so only their returns count, and this policy cannot become the best "
            "one: give the metric in the info of every step, or raise evaluation.max_episode_steps"
        )
    return "; ".join(parts)


def describe(
    scores: Scores, spec: EnvironmentSpec, baselines: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """Summarise an evaluation as plain data: means with standard errors, and the baselines.

    Episodes without a score of the policy or of a baseline are left out of all means. The exception
    are episodes that were cut before their headline metric was known (``unscored``). Their returns
    and lengths count; means of the headline metric and differences are over the others. If none is
    left, there are no such means, and no baselines to compare with.

    Args:
        scores: scores of the policy.
        spec: spec of the environment.
        baselines: float64[episodes], scores of each baseline on the same seeds: headline metric, or
            return without one.

    Returns:
        episodes, dropped, cut, unscored, return_mean, return_error, length_mean, metrics {name:
        mean}, errors {name: standard error}, baselines {name: mean} and baseline_errors. Also
        differences {name: [mean, standard error]} of the policy minus each baseline, paired by
        seed.

    Raises:
        RunError: there are no episodes to average.
    """
    kept = _with_all_scores(scores, spec, baselines)
    scores = scores.part(kept)
    compared = scored(scores, spec)
    known = np.isfinite(compared)
    baselines = {name: values[kept] for name, values in baselines.items()} if known.any() else {}
    result: dict[str, Any] = {
        "episodes": len(scores.returns),
        "dropped": int((~kept).sum()),
        "cut": int(scores.cut.sum()),
        "unscored": int((~known).sum()),
        "return_mean": float(scores.returns.mean()),
        "return_error": standard_error(scores.returns),
        "length_mean": float(scores.lengths.mean()),
        "metrics": {},
        "errors": {},
        "baselines": {name: float(values.mean()) for name, values in baselines.items()},
        "baseline_errors": {name: standard_error(values) for name, values in baselines.items()},
        "differences": {
            name: difference(compared[known], values[known]) for name, values in baselines.items()
        },
    }
    if (name := spec.headline_metric) is not None and known.any():
        mean, error = _mean_and_error(compared[known])
        result |= {"metrics": {name: mean}, "errors": {name: error}}
    return result


def describe_own(scores: Scores, spec: EnvironmentSpec) -> dict[str, dict[str, float]]:
    """Summarise the environment's own metrics of an evaluation, as plain data.

    Args:
        scores: scores of the policy.
        spec: spec of the environment.

    Returns:
        mean, standard error, and number of the episodes that tell it, for each metric. As in
        training, a metric beyond the first ``MAX_METRICS`` is left out. So is one whose values are
        too large for these.
    """
    values: dict[str, list[float]] = {}
    for metrics in scores.part(_counted(scores, spec)).own:
        for name, value in metrics.items():
            if name in values or len(values) < MAX_METRICS:
                values.setdefault(name, []).append(value)
    described: dict[str, dict[str, float]] = {}
    for name, told in values.items():
        with np.errstate(over="ignore", invalid="ignore"):
            mean, error = _mean_and_error(np.array(told, np.float64))
        if math.isfinite(mean) and math.isfinite(error):
            described[name] = {"mean": mean, "error": error, "episodes": len(told)}
    return described


def _mean_and_error(values: NDArray[np.float64]) -> list[float]:
    return [float(values.mean()), standard_error(values)]


def difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> list[float]:
    """Compute the mean and the standard error of differences that are paired by seed.

    Args:
        ours: float64[n], finite scores.
        theirs: float64[n], finite scores on the same seeds.

    Returns:
        both; the mean is 0 where it is rounding.
    """
    magnitude = float(max(np.abs(ours).max(), np.abs(theirs).max()))
    mean = float((ours - theirs).mean())
    mean = mean if abs(mean) > _ROUNDING * magnitude else 0.0
    return [mean, standard_error(ours - theirs, magnitude)]


def _with_all_scores(
    scores: Scores, spec: EnvironmentSpec, baselines: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.bool_]:
    """Return which episodes count and have a score of every baseline, bool[episodes]."""
    kept = _counted(scores, spec)
    for values in baselines.values():
        kept &= np.isfinite(values)
    if not kept.any():
        raise RunError(
            f"none of {len(kept)} held-out episodes of {spec.id} has a score of the policy and of "
            "every baseline"
        )
    return kept
