"""A measurement of how well an environment's frames compress, on a sample of what actors send."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
from numpy.typing import NDArray

from actors.environments.vector import VectorEnvironment
from actors.segments import Segment, SegmentRecorder, join_segments, recorder_for
from pdqn import seeds
from pdqn.config import Config
from pdqn.specs import ACTION_MASK, EnvironmentSpec, Observation

_MOST_SECONDS = 1.0
_ENOUGH_TRANSITIONS = 300


def measure(config: Config, spec: EnvironmentSpec) -> float:
    """Measure the bytes of compressed frames that actors will send for each transition.

    A policy that chooses at random among the valid actions plays for about a second, or 300
    transitions. The frames are cut and compressed as in an actor.

    Args:
        config: with the actors' settings filled in.
        spec: the environment's.

    Raises:
        RunError: the environment raised too often.
    """
    with contextmanager(measuring)(config, spec) as found:
        return found


def measuring(config: Config, spec: EnvironmentSpec) -> Iterator[float]:
    """Measure the same, and close the environment once the figure is taken."""
    environment = VectorEnvironment(
        spec, config.run.env_args, 1, failures_allowed=config.actor.environment_failures - 1
    )
    with closing(environment):
        segments = _play(config, environment)
        transitions = sum(segment.count for segment in segments)
        if transitions:
            _, blocks = join_segments(segments, spec)
            yield sum(len(block.body) for block in blocks) / transitions
        else:
            yield float(spec.observation_bytes)  # a single step took the whole second


def _play(config: Config, environment: VectorEnvironment) -> list[Segment]:
    seed, actor = config.run.seed, config.actor
    rng = seeds.generator(seed, "probe")
    recorder = recorder_for(actor, environment.spec, 1)
    observation = environment.reset(seeds.environment_seeds(seed, 0, 1, 0))
    segments: list[Segment] = []
    deadline = time.monotonic() + _MOST_SECONDS
    for _ in range(_ENOUGH_TRANSITIONS):
        observation, completed = _step(environment, recorder, observation, rng)
        segments += completed
        if time.monotonic() >= deadline:
            break
    return segments + recorder.flush()


def _step(
    environment: VectorEnvironment,
    recorder: SegmentRecorder,
    observation: Observation,
    rng: np.random.Generator,
) -> tuple[Observation, list[Segment]]:
    """Take one step; return the next observation and the segments that are complete."""
    spec, no_value = environment.spec, np.zeros(1, np.float32)
    actions = _random_actions(observation, spec, rng)
    recorder.record(spec.pack(observation), actions, no_value, no_value)
    result = environment.step(actions)
    recorder.drop(result.failed)
    final = result.final_observation
    segments = recorder.finish(
        result.rewards,
        result.terminated,
        result.truncated,
        spec.pack(final) if final else {},
        no_value[: 1 if final else 0],
        result.spoilt,
    )
    return result.observation, segments


def _random_actions(
    observation: Observation, spec: EnvironmentSpec, rng: np.random.Generator
) -> NDArray[np.int64]:
    mask = observation.get(ACTION_MASK)
    if mask is None:
        return rng.integers(spec.num_actions, size=1)
    return rng.choice(np.flatnonzero(mask[0]), size=1)
