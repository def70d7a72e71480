"""The costs of a run's work on this machine: measured piece by piece, and put together."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from launcher.bench import recordings
from launcher.bench.replay import WARM_UP_SECONDS, Load, Processes, changed, encoded_counts
from launcher.bench.whole import stages
from launcher.bench.whole.stages import Acting, Learning, Replaying
from launcher.bench.whole.trial import Trial
from launcher.prediction.model import Costs, Layout, cold_share
from pdqn.apart import Apart, Task
from pdqn.config import Config, resolved
from pdqn.errors import RunError
from pdqn.specs import EnvironmentSpec

T = TypeVar("T")
# By process.
Loads = Mapping[str, Load]
_TASK_SECONDS = 300.0
_MOST_NEIGHBOURS = 31
_SERVED_STEPS = 64
_LEAST_SERVED_SECONDS, _ROUNDS = 0.7, 3
_UNLIMITED = 1e15
_EVALUATED_EPISODE_STEPS = 500  # where no episode ended


@dataclass(frozen=True)
class Serving:
    """CPU seconds of real processes over real sockets.

    Attributes:
        send: an actor's, of sending a transition that is encoded.
        insert: replay's, of a transition that arrives, while it waits between messages.
        sample: replay's, of a sampled transition and its new priority, in the same way.
        client: the learner's, of receiving a sampled transition and returning its priority.
        replay_busy: part of replay's CPU time that remains while it is always busy.
    """

    send: float
    insert: float
    sample: float
    client: float
    replay_busy: float = 1.0


@dataclass(frozen=True)
class Pieces:
    """The measured pieces.

    Attributes:
        acting: an actor's costs, by its number of environments.
        replaying: replay's, without sockets.
        serving: replay's, with sockets.
        learning: the learner's on one thread of this machine's CPU, beside busy actors.
        scaling: the same beside idle cores, by (batch size, threads).
        upkeep: CPU seconds per second of each actor.
        gpu_seconds: time of a sampled transition on a GPU, measured here or told; None without.
        gpu_is_told: whether a person has told it.
    """

    acting: dict[int, Acting]
    replaying: Replaying
    serving: Serving
    learning: Learning
    scaling: dict[tuple[int, int], Learning]
    upkeep: float
    gpu_seconds: float | None = None
    gpu_is_told: bool = False


def measure(
    config: Config,
    spec: EnvironmentSpec,
    cores: int,
    seconds: float,
    *,
    envs: Sequence[int] = (),
    say: Callable[[str], object] = lambda _text: None,
) -> Pieces:
    """Measure the pieces of a run, while actors keep the other cores busy.

    Args:
        config: with all that is left to auto filled in.
        spec: the environment's.
        cores: cores that this process may use.
        seconds: length of each measurement.
        envs: numbers of environments of an actor, beside the configured one.
        say: function that tells a person what is being measured.

    Raises:
        RunError: a process failed.
    """
    own = resolved(config.actor.envs_per_actor)
    on_cpu = changed(config, "learner", {"device": "cpu", "precision": "float32"})
    with Bench(cores, on_cpu, spec, seconds) as bench:
        acting = dict[int, Acting]()
        for count in sorted({own, *envs}):
            say(f"actors of {count} environments")
            acting[count] = bench.act(count)
        batches = acting[own].batches
        say("replay")
        replaying = bench.beside_actors(stages.measure_replay, on_cpu, spec, batches, seconds)
        say("learner")
        one_thread = (stages.measure_learning, on_cpu, spec, batches, 1, seconds)
        learning = bench.beside_actors(*one_thread)
        scaling = _measure_scaling(bench, on_cpu, spec, batches, seconds)
        upkeep = bench.alone(stages.measure_upkeep, on_cpu, spec, seconds)
        gpu = None
        if config.learner.device == "cuda":
            say("learner on the GPU")
            threads = resolved(config.learner.threads)
            task = (stages.measure_learning, config, spec, batches, threads, seconds)
            gpu = bench.alone(*task).wall_seconds
    say("replay, with its sockets")
    serving = _measure_serving(on_cpu, spec, seconds)
    return Pieces(acting, replaying, serving, learning, scaling, upkeep, gpu)


class Bench:
    """Processes that measure, as many as there are cores; a context manager that ends them.

    Attributes:
        cores: number of cores that there are.
    """

    def __init__(self, cores: int, config: Config, spec: EnvironmentSpec, seconds: float) -> None:
        self.cores = cores
        self._config, self._spec, self._seconds = config, spec, seconds
        self._neighbours = min(_MOST_NEIGHBOURS, cores - 1)
        self._stack = ExitStack()
        self._processes: list[Apart] = []

    def __enter__(self) -> Bench:
        """Start the processes."""
        for number in range(1 + self._neighbours):
            process = Apart(f"bench {number}")
            self._stack.callback(process.close)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self._stack.close()

    def act(self, envs: int) -> Acting:
        """Measure one actor among as many as there are cores; the figures are their medians."""
        config = changed(self._config, "actor", {"envs_per_actor": envs})
        arguments = (stages.measure_acting, config, self._spec, self._seconds)
        found = [task.result() for task in [self._begin(p, *arguments) for p in self._processes]]
        return sorted(found, key=lambda acting: acting.seconds)[len(found) // 2]

    def beside_actors(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in a process of its own, while actors keep the other cores busy."""
        busy = (stages.measure_acting, self._config, self._spec, self._seconds)
        tasks = [self._begin(process, *busy) for process in self._processes[1:]]
        found = self._begin(self._processes[0], function, *arguments).result()
        for task in tasks:
            task.result()
        return found

    def alone(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in a process of its own, while the others have nothing to do."""
        return self._begin(self._processes[0], function, *arguments).result()

    def _begin(self, process: Apart, function: Callable[..., T], *arguments: Any) -> Task[T]:
        if not process.is_ready(_TASK_SECONDS):
            raise RunError("a process of the benchmark is not ready")
        return process.begin(function, *arguments, seconds=_TASK_SECONDS)


def _measure_scaling(
    bench: Bench, config: Config, spec: EnvironmentSpec, batches: list[bytes], seconds: float
) -> dict[tuple[int, int], Learning]:
    """Measure the learner by batch size and threads, with all cores to itself."""
    size, found = config.learner.batch_size, dict[tuple[int, int], Learning]()
    for batch in (size, 4 * size):
        sizes = {"batch_size": batch, "micro_batch_size": batch}
        for threads in range(1, 1 + min(2, bench.cores)):
            changed_config = changed(config, "learner", sizes)
            task = (stages.measure_learning, changed_config, spec, batches, threads, seconds)
            found[batch, threads] = bench.alone(*task)
    return found


def _measure_serving(config: Config, spec: EnvironmentSpec, seconds: float) -> Serving:
    """Measure a real replay, between a writer and a client in the places of actor and learner."""
    envs = resolved(config.actor.envs_per_actor)
    recording = recordings.play(spec, config.run.env_args, envs, _SERVED_STEPS)
    encoding = stages.median_seconds(encoded_counts(recording, config), seconds, time.process_time)
    free = {"samples_per_insert_tolerance": _UNLIMITED, "shards": 1}
    with Processes(recording, changed(config, "replay", free)) as bench:
        least = resolved(config.replay.min_size)
        inserted = 0.0
        while inserted < 2 * least:  # nothing is handed out before
            inserted += WARM_UP_SECONDS * bench.phase({"writer": WARM_UP_SECONDS})["writer"].rate
        rounds = [_served(bench, max(_LEAST_SERVED_SECONDS, seconds)) for _ in range(_ROUNDS)]
    return median_of([serving_of(*loads, encoding) for loads in rounds])


def _served(bench: Processes, seconds: float) -> tuple[Loads, Loads, Loads]:
    """Let the writer work, then the client, then both; return the loads of each phase."""
    found = [
        bench.phase(dict.fromkeys(names, seconds))
        for names in (("writer",), ("client",), ("writer", "client"))
    ]
    return found[0], found[1], found[2]


def median_of(found: Sequence[Serving]) -> Serving:
    """Return the median of each cost, since a process may be held up in one of the phases."""
    columns = zip(*(dataclasses.astuple(one) for one in found), strict=True)
    return Serving(*map(statistics.median, columns))


def serving_of(
    wrote: Loads,
    drew: Loads,
    both: Loads,
    encoding_seconds: float,
) -> Serving:
    """Make the costs out of three phases: with a writer, with a client, and with both.

    A replay that waits for single messages wakes up for each of them. That is what it does in a
    run, unless it is the bottleneck; the phase with both says how much less it takes then. The
    client also waits for each batch, as a learner mostly does.

    Args:
        wrote: loads of writer and replay.
        drew: loads of client and replay.
        both: loads of all three.
        encoding_seconds: CPU time in which a writer records and encodes a transition.
    """
    insert = wrote["replay"].busy / max(1.0, wrote["writer"].rate)
    sample = drew["replay"].busy / max(1.0, drew["client"].rate)
    apart = both["writer"].rate * insert + both["client"].rate * sample
    factor = min(1.0, both["replay"].busy / max(1e-9, apart))
    written = both["writer"].busy / max(1.0, both["writer"].rate)
    client = drew["client"].busy / max(1.0, drew["client"].rate)
    send = max(0.0, written - encoding_seconds)
    return Serving(send, insert, sample, client, factor)


def costs_of(
    pieces: Pieces, config: Config, trial: Trial | None = None, envs: int | None = None
) -> Costs:
    """Put the costs of a run together.

    A role that waits spends more on each unit, since it wakes up for a few of them at a time.
    Replay does so, unless it limits the run. Actors and learner are taken to be busy.

    Args:
        pieces: as measured.
        config: of the run, with all that is left to auto filled in.
        trial: a real run; None to do without the launcher's part and the length of episodes.
        envs: environments of an actor; by default the configured number.
    """
    acting = pieces.acting[envs or resolved(config.actor.envs_per_actor)]
    replaying, serving = pieces.replaying, pieces.serving
    inserting = max(serving.insert, replaying.intake + replaying.journal)
    sampling = max(serving.sample, replaying.sampling + replaying.priority)
    steps = acting.episode_steps if trial is None else trial.episode_steps
    steps = steps if math.isfinite(steps) else _EVALUATED_EPISODE_STEPS
    recording = acting.seconds - acting.environment_seconds - acting.values_seconds
    return Costs(
        environment_seconds=acting.environment_seconds,
        acting_seconds=acting.values_seconds,
        recording_seconds=max(0.0, recording) + serving.send,
        intake_seconds=inserting - replaying.journal,
        journal_seconds=replaying.journal,
        sampling_seconds=sampling - replaying.priority,
        priority_seconds=replaying.priority,
        learning_seconds=pieces.learning.cpu_seconds + serving.client,
        step_samples=config.learner.batch_size,
        replay_busy=serving.replay_busy,
        parallel_share=shared_part(pieces, config.learner.batch_size) or 0.0,
        gpu_seconds=pieces.gpu_seconds,
        wait_seconds=acting.wait_seconds,
        upkeep_seconds=pieces.upkeep,
        fixed_cores=(trial.cpu["launcher"] if trial else 0.0) + _evaluator(config, acting, steps),
        wire_bytes=acting.wire_bytes,
        sample_bytes=pieces.learning.sample_bytes,
        episode_steps=steps,
    )


def layout_of(config: Config, cores: int) -> Layout:
    """Return the processes of a configuration with all that is left to auto filled in."""
    return Layout(
        cores=cores,
        actors=resolved(config.actor.count),
        replays=config.replay.shards,
        threads=resolved(config.learner.threads),
        samples_per_insert=resolved(config.replay.samples_per_insert),
        gpu=config.learner.device == "cuda",
    )


@dataclass(frozen=True)
class Factors:
    """The CPU time of each role in a real run, over what its costs say.

    Attributes:
        actor: of the actors.
        replay: of the replays.
        learner: of the learner.
    """

    actor: float
    replay: float
    learner: float

    def applied_to(self, costs: Costs) -> Costs:
        """Return costs that are changed by these factors."""
        return dataclasses.replace(
            costs,
            environment_seconds=self.actor * costs.environment_seconds,
            acting_seconds=self.actor * costs.acting_seconds,
            recording_seconds=self.actor * costs.recording_seconds,
            intake_seconds=self.replay * costs.intake_seconds,
            journal_seconds=self.replay * costs.journal_seconds,
            sampling_seconds=self.replay * costs.sampling_seconds,
            priority_seconds=self.replay * costs.priority_seconds,
            learning_seconds=self.learner * costs.learning_seconds,
        )


def factors_of(costs: Costs, layout: Layout, trial: Trial) -> Factors:
    """Compare the CPU time of a real run with its costs, for a learner with one thread."""
    steps, samples, cpu = trial.environment_steps, trial.samples, trial.cpu
    cold = cold_share(costs, layout, steps)
    inserting = costs.replay_seconds(0.0)
    sampling = costs.replay_seconds(1.0, cold) - inserting
    acting, learning = costs.crowded_seconds(layout), costs.sample_seconds(1, cold)
    return Factors(
        actor=(cpu["actor"] - layout.actors * costs.upkeep_seconds) / (steps * acting),
        replay=cpu["replay"] / (steps * inserting + samples * sampling),
        learner=cpu["learner"] / (samples * learning),
    )


def shared_part(pieces: Pieces, batch_size: int) -> float | None:
    """Return the part of a learner's step that threads share; None where there is one core."""
    one, two = (pieces.scaling.get((batch_size, threads)) for threads in (1, 2))
    return parallel_share_of(one.wall_seconds, two.wall_seconds) if one and two else None


def parallel_share_of(one: float, two: float) -> float:
    """Return the part that threads share evenly, from the times of a step on one and on two.

    It is 0 where two are not faster, and at most 1.
    """
    return min(1.0, max(0.0, 2.0 * (1.0 - two / one)))


def _evaluator(config: Config, acting: Acting, episode_steps: float) -> float:
    """Estimate the CPU seconds per second of the evaluator, which acts as an actor does."""
    if not config.evaluation.enabled:
        return 0.0
    episodes = resolved(config.evaluation.episodes)
    each = acting.environment_seconds + acting.values_seconds
    return episodes * episode_steps * each / config.evaluation.period_seconds


def rows(pieces: Pieces, config: Config, costs: Costs) -> Iterator[tuple[str, str, float, float]]:
    """Yield the parts of a transition's cost.

    Yields:
        role, part, its CPU seconds for one unit, and the units of a transition.
    """
    ratio = resolved(config.replay.samples_per_insert)
    replaying, send = pieces.replaying, pieces.serving.send
    yield "actor", "environment step", costs.environment_seconds, 1.0
    yield "actor", "values of the actions", costs.acting_seconds, 1.0
    yield "actor", "explore, record, compress", costs.recording_seconds - send, 1.0
    yield "actor", "send", send, 1.0
    yield "replay", "check, insert", replaying.intake, 1.0
    yield "replay", "journal", costs.journal_seconds, 1.0
    yield "replay", "receive, acknowledge", costs.intake_seconds - replaying.intake, 1.0
    yield "replay", "sample", replaying.sampling, ratio
    yield "replay", "new priority", costs.priority_seconds, ratio
    yield "replay", "hand out", costs.sampling_seconds - replaying.sampling, ratio
    yield "learner", "step", pieces.learning.cpu_seconds, ratio
    yield "learner", "receive, return priorities", pieces.serving.client, ratio


def with_gpu(pieces: Pieces, told_seconds: float | None) -> Pieces:
    """Return the pieces with a GPU's time that a person tells; a measured one stays."""
    if told_seconds is None or pieces.gpu_seconds is not None:
        return pieces
    return dataclasses.replace(pieces, gpu_seconds=told_seconds, gpu_is_told=True)
