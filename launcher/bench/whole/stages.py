"""CPU time of a run's work, each piece by itself on played data of the run's own environment.

Each function is for a process of its own. A figure is the median of slices, because other programs
can only slow a slice down.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from actors.environments.vector import VectorEnvironment
from actors.evaluation import random_act
from actors.rollout import Identity, Rollout
from actors.segments import Segment, join_segments
from learner.learner import Learner
from pdqn import parameters, wire
from pdqn.config import Config, resolved
from pdqn.networks import build_network
from pdqn.parameters import Parameters, matches
from pdqn.policy import action_values
from pdqn.process import keep_freed_memory, keep_little_free_memory
from pdqn.specs import EnvironmentSpec, Observation
from pdqn.stacking import FrameStacker
from pdqn.telemetry import Telemetry
from replay.buffer import PrioritizedBuffer, make_buffer
from replay.journal import Journal, SegmentHead
from replay.samples import Sample, SampleLayout

_RUN = "bench"
_SLICE_SECONDS, _LEAST_SLICES = 0.05, 3
_WARM_UP_SECONDS = 0.3
_BATCHES_KEPT = 400
_TELEMETRY_STEPS = 1000
_QUIET = 0.1  # quantile of an environment's waits: the others are waits for a core

Clock = Callable[[], float]
# Yields the number of units after each piece of work.
Work = Iterator[int]


@dataclass(frozen=True)
class Acting:
    """The costs of an actor for each transition.

    Attributes:
        environment_seconds: CPU time of the environment.
        wait_seconds: time in which it waits.
        values_seconds: CPU time of the actions' values.
        seconds: CPU time of all that an actor does but sockets.
        wire_bytes: bytes of a transition on the wire.
        episode_steps: mean length of an episode of an untrained policy; nan if none ended.
        batches: messages with transitions.
    """

    environment_seconds: float
    wait_seconds: float
    values_seconds: float
    seconds: float
    wire_bytes: float
    episode_steps: float
    batches: list[bytes]


@dataclass(frozen=True)
class Replaying:
    """CPU seconds of replay but for its sockets.

    Attributes:
        intake: of a transition, checked and inserted.
        journal: of a transition, written to the journal.
        sampling: of a sampled one.
        priority: of a new priority.
    """

    intake: float
    journal: float
    sampling: float
    priority: float


@dataclass(frozen=True)
class Learning:
    """The costs of the learner for each sampled transition.

    Attributes:
        cpu_seconds: CPU time of all threads.
        wall_seconds: time by the wall clock.
        sample_bytes: bytes of a sampled transition.
    """

    cpu_seconds: float
    wall_seconds: float
    sample_bytes: float


def measure_acting(config: Config, spec: EnvironmentSpec, seconds: float) -> Acting:
    """Measure an actor with the run's network, untrained, and its number of environments."""
    torch.set_num_threads(1)
    envs = resolved(config.actor.envs_per_actor)
    keep_little_free_memory(spec, envs)  # as actors do
    environment, wait, observation = _measure_environment(config, spec, envs, seconds)
    network = build_network(spec, config.network)

    def values() -> Work:
        while True:
            action_values(network, observation)
            yield envs

    rollout, telemetry = Rollout(config, spec, network, Identity(0, 0)), Telemetry()
    batches: list[tuple[bytes, int]] = []
    lengths: list[int] = []

    def act() -> Work:
        for gathered in _gathered(config, rollout, telemetry, lengths):
            if gathered:
                columns, blocks = join_segments(gathered, spec)
                batch = wire.TransitionBatch(_RUN, 0, 0, len(batches), 0, columns, blocks)
                batches.append((wire.encode_transitions(batch), batch.count))
                del batches[:-_BATCHES_KEPT]
            yield envs

    # First: what it keeps is what the others need. All clocks see the same number of slices.
    acting = act()
    whole = median_seconds(acting, seconds, time.process_time)
    deadline = time.monotonic() + 60.0
    while sum(count for _, count in batches) < _enough(config) and time.monotonic() < deadline:
        next(acting)
    of_values = median_seconds(values(), seconds, time.process_time)
    rollout.close()
    count = sum(count for _, count in batches)
    return Acting(
        environment_seconds=environment,
        wait_seconds=wait,
        values_seconds=of_values,
        seconds=whole,
        wire_bytes=sum(len(data) for data, _ in batches) / max(1, count),
        episode_steps=statistics.fmean(lengths) if lengths else float("nan"),
        batches=[data for data, _ in batches],
    )


def _enough(config: Config) -> int:
    """Return the transitions that replay and learner need for a measurement."""
    return max(4 * config.learner.batch_size, resolved(config.actor.batch_transitions))


def _gathered(
    config: Config, rollout: Rollout, telemetry: Telemetry, lengths: list[int]
) -> Iterator[list[Segment]]:
    """Step; yield the segments of a batch when there are enough, and else nothing."""
    segments: list[Segment] = []
    enough, steps = resolved(config.actor.batch_transitions), 0
    while True:
        segments += rollout.step(telemetry)
        steps += 1
        if steps % _TELEMETRY_STEPS == 0:  # it collects episodes
            lengths += [episode.length for episode in telemetry.report().episodes]
        if sum(segment.count for segment in segments) >= enough:
            yield segments
            segments = []
        else:
            yield []


def _measure_environment(
    config: Config, spec: EnvironmentSpec, envs: int, seconds: float
) -> tuple[float, float, Observation]:
    """Measure an environment that random actions step.

    Returns:
        Its CPU seconds of a transition, the seconds in which it waits, and an observation.
    """
    environment = VectorEnvironment(
        spec, config.run.env_args, envs, failures_allowed=config.actor.environment_failures - 1
    )
    act = random_act(spec, np.random.default_rng(0))
    observation = environment.reset(range(envs))
    spent: list[float] = []
    waits: list[float] = []
    end = time.monotonic() + _WARM_UP_SECONDS + seconds
    while time.monotonic() < end or not spent:
        actions = act(observation)
        wall, cpu = time.perf_counter(), time.process_time()
        observation = environment.step(actions).observation
        cpu = time.process_time() - cpu
        spent.append(cpu)
        waits.append(time.perf_counter() - wall - cpu)
    environment.close()
    # A mean, because some steps are many times as dear as others: those that begin an episode.
    kept = spent[len(spent) // 10 :]
    wait = float(np.quantile(waits, _QUIET))
    shown = FrameStacker(spec, envs).reset(observation)
    return statistics.fmean(kept) / envs, max(0.0, wait) / envs, shown


def measure_replay(
    config: Config, spec: EnvironmentSpec, batches: list[bytes], seconds: float
) -> Replaying:
    """Measure replay on these messages."""
    torch.set_num_threads(1)
    buffer, sample = filled(config, spec, batches)
    fresh = np.random.default_rng(0).random(sample.count).astype(np.float32)

    def draw() -> Work:
        while True:
            buffer.sample_into(sample)
            yield sample.count

    def update() -> Work:
        while True:
            buffer.update_priorities(sample.keys, fresh)
            yield sample.count

    clock = time.process_time
    found = Replaying(
        intake=median_seconds(taken_in(buffer, spec, cycle(batches)), seconds, clock),
        journal=_measure_journal(config, spec, batches, seconds),
        sampling=median_seconds(draw(), seconds, clock),
        priority=median_seconds(update(), seconds, clock),
    )
    buffer.close()
    return found


def _measure_journal(
    config: Config, spec: EnvironmentSpec, batches: list[bytes], seconds: float
) -> float:
    """Measure the CPU seconds of a transition and of the updates that follow it; 0 without one."""
    if config.replay.journal == "off":
        return 0.0
    counts = [wire.decode_transitions(data, spec, _RUN).count for data in batches]
    size = config.learner.batch_size
    keys, new = np.arange(size, dtype=np.int64), np.ones(size, np.float32)
    ratio = resolved(config.replay.samples_per_insert)
    with tempfile.TemporaryDirectory(prefix="pdqn-", dir="/var/tmp") as folder:
        journal = Journal(Path(folder), lambda: SegmentHead(_RUN, "", 0, 0, {}))

        def write() -> Work:
            sampled = 0.0
            for data, count in cycle(zip(batches, counts, strict=True)):
                journal.store(0, 1.0, data)
                sampled += ratio * count
                while sampled >= size:
                    journal.update(keys, new, 1.0)
                    sampled -= size
                journal.write()
                yield count

        found = median_seconds(write(), seconds, time.process_time)
        journal.close()
    return found


def measure_learning(
    config: Config,
    spec: EnvironmentSpec,
    batches: list[bytes],
    threads: int,
    seconds: float,
) -> Learning:
    """Measure the learner on samples of these messages."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as learners do
    buffer, sample = filled(config, spec, batches)
    learner = Learner(config, spec)

    def learn() -> Work:
        while True:
            learner.step(learner.tensors(sample))
            yield sample.count

    cpu, wall = median_times(learn(), seconds, time.process_time, time.perf_counter)
    layout = SampleLayout(spec, sample.count)
    buffer.close()
    return Learning(cpu, wall, layout.nbytes / sample.count)


def measure_upkeep(config: Config, spec: EnvironmentSpec, seconds: float) -> float:
    """Measure the CPU seconds per second in which an actor follows parameters and reports."""
    torch.set_num_threads(1)
    network = build_network(spec, config.network)
    encoded = parameters.encode(Parameters(_RUN, 0, 0, network.state_dict()))
    telemetry = Telemetry()

    def follow() -> Work:
        while True:
            tensors = parameters.decode(encoded).tensors
            if matches(tensors, network):
                network.load_state_dict(tensors)
            yield 1

    def report() -> Work:
        while True:
            telemetry.count("environment_steps", 1)
            telemetry.report().encoded  # noqa: B018 - it is computed when it is asked for
            yield 1

    clock = time.process_time
    each = max(config.learner.publish_seconds, 0.1)  # actors look no more often
    follows = median_seconds(follow(), seconds, clock) / each
    return follows + median_seconds(report(), seconds, clock) / config.system.telemetry_seconds


def filled(
    config: Config, spec: EnvironmentSpec, batches: list[bytes]
) -> tuple[PrioritizedBuffer, Sample]:
    """Fill a buffer with these messages, and draw a sample."""
    buffer = make_buffer(config, spec)
    for _ in taken_in(buffer, spec, batches):
        pass
    layout = SampleLayout(spec, config.learner.batch_size)
    sample = layout.view(bytearray(layout.nbytes))
    buffer.sample_into(sample)
    return buffer, sample


def taken_in(buffer: PrioritizedBuffer, spec: EnvironmentSpec, batches: Iterable[bytes]) -> Work:
    """Decode messages, and insert them."""
    for data in batches:
        batch = wire.decode_transitions(data, spec, _RUN)
        yield len(buffer.insert(batch.columns, batch.blocks, batch.parameter_version))


def median_seconds(work: Work, seconds: float, clock: Clock) -> float:
    """Return the seconds of a unit: the median of slices, after a short warm-up."""
    return median_times(work, seconds, clock)[0]


def median_times(work: Work, seconds: float, *clocks: Clock) -> list[float]:
    """Return the seconds of a unit by several clocks, the first of which divides the slices."""
    end = time.monotonic() + _WARM_UP_SECONDS
    next(work)  # compiles
    while time.monotonic() < end:
        next(work)
    found: list[list[float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(found) < _LEAST_SLICES:
        began, units = [clock() for clock in clocks], 0
        while clocks[0]() - began[0] < _SLICE_SECONDS or not units:
            units += next(work)
        found.append([(clock() - b) / units for clock, b in zip(clocks, began, strict=True)])
    return [statistics.median(column) for column in zip(*found, strict=True)]
