"""The time after which circle placement can be expected above exact greedy. Pure.

The Q-map starts level with exact greedy. The learning that puts it above was measured with the
settings of ``--preset placement`` (docs/learning.md, one seed each, 64 transitions a step).
These are the first evaluations from which on all later ones were above exact greedy:

    ==============  ============  =======================
    maps            learner step  coverage beside greedy
    ==============  ============  =======================
    64, fixed       320           +0.0018 (rollouts, the first evaluation after the start)
    128, fixed      720           +0.0020 (rollouts)
    64, fixed       775           +0.0002
    128, fixed      2,538         +0.0014
    64, random      3,716         +0.0007
    128, random     4,550         +0.0010
    ==============  ============  =======================

The larger of both sizes is expected: 750 steps with rollouts and 2,500 without where all maps have
the same radii, and 4,500 where they differ. Until then the policy may be a little below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from launcher.prediction.model import PARALLEL_SHARE, speed_up
from pdqn.config import Config, resolved
from pdqn.messages import Evaluation
from pdqn.specs import EnvironmentSpec

# Sampled transitions: learner steps times 64.
SAMPLES_TOLD, SAMPLES_FIXED, SAMPLES_RANDOM = 750 * 64, 2500 * 64, 4500 * 64
# Returns are to the end of the episode, or nearly; the fixed radii are 13 circles.
_LONG_RETURNS = 10
# Seconds of a sampled transition on two cores, one of which acts: without the cells of a map, and
# for each of them. They give 15.3 learner steps/s at 128 x 128 and about 20 at 64 x 64
# (docs/measured.md, docs/performance.md).
_SAMPLE_SECONDS, _CELL_SECONDS = 0.045 / 64, 1.22e-6 / 64
# Share of the way from which on the present pace is taken.
_YOUNG = 0.04
# One process takes turns between acting and learning, which take about the same time.
_SINGLE = 2.0
_LEARNER_STEPS, _RATE = "learner_steps", "learner/steps_per_second"


def steps_above_greedy(config: Config, spec: EnvironmentSpec) -> int | None:
    """Return the learner steps after which the policy can be expected above exact greedy.

    Args:
        config: the run's, with the plan filled in.
        spec: the environment's.

    Returns:
        None for other environments, and for settings of which nothing was measured.
    """
    actor, env_args = config.actor, config.run.env_args
    overlaps = str(env_args.get("overlap", False)).lower() not in ("false", "0", "no", "")
    if not spec.circle_placement or overlaps or config.network.kind != "qmap":
        return None
    long = actor.returns == "n_step" and actor.n_step >= _LONG_RETURNS
    if not long or actor.exploration != "boltzmann":
        return None
    radii = str(env_args.get("radii", "fixed"))
    samples = SAMPLES_TOLD if spec.rollouts and config.learner.rollout_weight else SAMPLES_FIXED
    if radii == "random" or ".." in radii:
        samples = SAMPLES_RANDOM
    return math.ceil(samples / config.learner.batch_size)


def step_seconds(config: Config, spec: EnvironmentSpec) -> float | None:
    """Predict the time of a learner step on this machine; None on a GPU, where it is not known."""
    if config.learner.device == "cuda":
        return None
    cells = max(math.prod(field.shape) for field in spec.fields)
    sample = _SAMPLE_SECONDS + _CELL_SECONDS * cells
    seconds = sample * config.learner.batch_size
    if config.run.mode == "single":
        return _SINGLE * seconds
    return seconds / speed_up(PARALLEL_SHARE["large"], resolved(config.learner.threads))


def at_start(config: Config, spec: EnvironmentSpec) -> str:
    """Say what to expect of a run that begins, and when; empty where nothing was measured."""
    steps = steps_above_greedy(config, spec)
    if steps is None:
        return ""
    level, each = "the policy starts level with exact greedy", step_seconds(config, spec)
    if each is None:
        return f"{level}; expect it above from about learner step {steps:,} on"
    seconds = steps * each
    text = f"{level}; expect it above after about {about(seconds)} on this machine ({steps:,} "
    text += "learner steps)"
    limit = config.run.time_seconds
    if limit is not None and limit < seconds:
        text += f", which this run does not reach: --time {math.ceil(seconds / 60) + 1}m does"
    return text


def time_left(
    config: Config,
    spec: EnvironmentSpec,
    figures: Mapping[str, float | None],
    evaluation: Evaluation | None,
) -> str:
    """Say when a run that goes on can be expected above exact greedy.

    It takes the learner's present pace, and for the first part of the way the predicted one: the
    replay fills, and everything compiles.

    Args:
        config: the run's.
        spec: the environment's.
        figures: the present ones.
        evaluation: the newest one.

    Returns:
        at most 32 characters; empty once an evaluation was above the first one, where nothing was
        measured, and without evaluations.
    """
    steps = steps_above_greedy(config, spec)
    if steps is None or not config.evaluation.enabled:
        return ""
    if evaluation is not None and not evaluation.best_is_first:
        return ""
    left = steps - (figures.get(_LEARNER_STEPS) or 0)
    if left <= 0:
        return "not above exact greedy yet"
    rate = figures.get(_RATE) or 0.0
    if left > (1.0 - _YOUNG) * steps:
        each = step_seconds(config, spec)
        return "" if each is None else f"above exact greedy in ~{about(left * each)}"
    return f"above exact greedy in ~{about(left / rate)}" if rate > 0.0 else ""


def about(seconds: float) -> str:
    """Format an estimate of a time: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 85:
        return f"{max(10, 10 * round(seconds / 10))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
