"""A measurement of how well an environment's frames compress, on a sample of what actors send."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from actors.environments.vector import VectorEnvironment
from actors.segments import Segment, SegmentRecorder, join_segments
from launcher import safe_path
from pdqn import seeds
from pdqn.config import Config, resolved
from pdqn.errors import RunError, UsageError
from pdqn.specs import ACTION_MASK, EnvironmentSpec, Observation

_MOST_SECONDS = 1.0
_ENOUGH_TRANSITIONS = 300
_START_SECONDS = 20.0  # in which a process imports what it needs, on a busy machine


def block_bytes_per_transition(config: Config, spec: EnvironmentSpec) -> float | None:
    """Measure the bytes of compressed frames that actors will send for each transition.

    A policy that chooses at random among the valid actions plays for about a second, or 300
    transitions. The frames are cut and compressed as in an actor. This happens in another process:
    an environment may end it or hang, and no supervisor is there yet to notice.

    Args:
        config: with the actors' settings filled in.
        spec: the environment's.

    Returns:
        None if the environment ended the process or hung.

    Raises:
        RunError: the environment raised too often.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender, config, spec))
    with safe_path.safe_path():
        process.start()
    sender.close()
    try:
        seconds = config.system.heartbeat_timeout_seconds + _START_SECONDS
        found = receiver.recv() if receiver.poll(seconds) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if isinstance(found, str):
        raise RunError(found)
    return found


def _tell(sender: Connection, config: Config, spec: EnvironmentSpec) -> None:
    """Measure, and send the figure, or the reason why there is none."""
    safe_path.forget()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person interrupts the launcher, not this
    try:
        sender.send(measure(config, spec))
    except (RunError, UsageError) as error:
        sender.send(str(error))


def measure(config: Config, spec: EnvironmentSpec) -> float:
    """Measure the same in this process."""
    segments = _play(config, spec)
    transitions = sum(segment.count for segment in segments)
    if not transitions:
        return float(spec.observation_bytes)  # a single step took the whole second
    _, blocks = join_segments(segments, spec)
    return sum(len(block.body) for block in blocks) / transitions


def _play(config: Config, spec: EnvironmentSpec) -> list[Segment]:
    seed, actor = config.run.seed, config.actor
    rng = seeds.generator(seed, "probe")
    recorder = SegmentRecorder(
        spec,
        1,
        n_step=actor.n_step,
        discount=resolved(actor.discount),
        segment_length=resolved(actor.segment_length),
    )
    environment = VectorEnvironment(
        spec, config.run.env_args, 1, failures_allowed=actor.environment_failures - 1
    )
    try:
        observation = environment.reset(seeds.environment_seeds(seed, 0, 1, 0))
        segments: list[Segment] = []
        deadline = time.monotonic() + _MOST_SECONDS
        for _ in range(_ENOUGH_TRANSITIONS):
            observation, completed = _step(environment, recorder, observation, rng)
            segments += completed
            if time.monotonic() >= deadline:
                break
        return segments + recorder.flush()
    finally:
        environment.close()


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
    )
    return result.observation, segments


def _random_actions(
    observation: Observation, spec: EnvironmentSpec, rng: np.random.Generator
) -> NDArray[np.int64]:
    mask = observation.get(ACTION_MASK)
    if mask is None:
        return rng.integers(spec.num_actions, size=1)
    return rng.choice(np.flatnonzero(mask[0]), size=1)
