"""The costs of a run's work on this machine: measured piece by piece, and put together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from launcher.bench import recordings
from launcher.bench.replay import WARM_UP_SECONDS, Processes, changed
from launcher.bench.whole import stages
from launcher.bench.whole.stages import Acting, Learning, Replaying
from launcher.bench.whole.trial import Trial
from launcher.plan.model import Costs, parallel_share_of
from pdqn.apart import Apart, Task
from pdqn.config import Config, resolved
from pdqn.errors import RunError
from pdqn.specs import EnvironmentSpec

T = TypeVar("T")
_TASK_SECONDS = 300.0
_MOST_NEIGHBOURS = 31
_SERVED_STEPS = 64
_UNLIMITED = 1e15
_EVALUATED_EPISODE_STEPS = 500  # where no episode ended


@dataclass(frozen=True)
class Serving:
    """CPU seconds of real processes over real sockets.

    Attributes:
        insert: replay's, of a transition that arrives.
        sample: replay's, of a sampled transition and its new priority.
        client: the learner's, of receiving a sampled transition and returning its priority.
    """

    insert: float
    sample: float
    client: float


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
    """Measure a real replay that first takes transitions in, and then hands out samples."""
    envs = resolved(config.actor.envs_per_actor)
    recording = recordings.play(spec, config.run.env_args, envs, _SERVED_STEPS)
    free = {"samples_per_insert_tolerance": _UNLIMITED, "shards": 1}
    with Processes(recording, changed(config, "replay", free)) as bench:
        least = resolved(config.replay.min_size)
        inserted = 0.0
        while inserted < 2 * least:  # nothing is handed out before
            inserted += WARM_UP_SECONDS * bench.phase({"writer": WARM_UP_SECONDS})["writer"].rate
        wrote = bench.phase({"writer": seconds})
        drew = bench.phase({"client": seconds})
    insert = wrote["replay"].busy / max(1.0, wrote["writer"].rate)
    sampled = max(1.0, drew["client"].rate)
    return Serving(insert, drew["replay"].busy / sampled, drew["client"].busy / sampled)


def costs_of(
    pieces: Pieces, config: Config, trial: Trial | None = None, envs: int | None = None
) -> Costs:
    """Put the costs of a run together.

    A real run knows more than the pieces: its roles also keep in touch, wake up, and share caches.
    What it took is taken over, and the pieces say how it is divided.

    Args:
        pieces: as measured.
        config: of the real run, with all that is left to auto filled in.
        trial: that run; None to do without.
        envs: environments of an actor; by default the configured number.
    """
    own = resolved(config.actor.envs_per_actor)
    acting = pieces.acting[envs or own]
    overhead, replay_factor, learning = _beyond_the_pieces(pieces, config, trial)
    replaying, serving = pieces.replaying, pieces.serving
    inserting = max(serving.insert, replaying.intake + replaying.journal)
    sampling = max(serving.sample, replaying.sampling + replaying.priority)
    steps = acting.episode_steps if trial is None else trial.episode_steps
    steps = steps if math.isfinite(steps) else _EVALUATED_EPISODE_STEPS
    recording = acting.seconds - acting.environment_seconds - acting.values_seconds
    return Costs(
        environment_seconds=acting.environment_seconds,
        acting_seconds=acting.values_seconds,
        # What a step costs beyond the pieces is shared by its environments.
        recording_seconds=max(0.0, recording + overhead * own / (envs or own)),
        intake_seconds=replay_factor * (inserting - replaying.journal),
        journal_seconds=replay_factor * replaying.journal,
        sampling_seconds=replay_factor * (sampling - replaying.priority),
        priority_seconds=replay_factor * replaying.priority,
        learning_seconds=learning,
        parallel_share=shared_part(pieces, config.learner.batch_size) or 0.0,
        gpu_seconds=pieces.gpu_seconds,
        wait_seconds=acting.wait_seconds,
        upkeep_seconds=pieces.upkeep,
        fixed_cores=(trial.cpu["launcher"] if trial else 0.0) + _evaluator(config, acting, steps),
        wire_bytes=acting.wire_bytes,
        sample_bytes=pieces.learning.sample_bytes,
        episode_steps=steps,
    )


def _beyond_the_pieces(
    pieces: Pieces, config: Config, trial: Trial | None
) -> tuple[float, float, float]:
    """Compare a run with the pieces.

    Returns:
        An actor's further CPU seconds of a transition, the factor of replay's, and the learner's
        CPU seconds of a sampled transition on one thread.
    """
    learning = pieces.learning.cpu_seconds + pieces.serving.client
    if trial is None:
        return 0.0, 1.0, learning
    acting = pieces.acting[resolved(config.actor.envs_per_actor)]
    kept_up = resolved(config.actor.count) * pieces.upkeep
    overhead = (trial.cpu["actor"] - kept_up) / trial.environment_steps - acting.seconds
    inserting = max(pieces.serving.insert, pieces.replaying.intake + pieces.replaying.journal)
    sampling = max(pieces.serving.sample, pieces.replaying.sampling + pieces.replaying.priority)
    predicted = trial.environment_steps * inserting + trial.samples * sampling
    if config.learner.device == "cpu" and config.learner.threads == 1:
        learning = trial.cpu["learner"] / max(1.0, trial.samples)
    return overhead, trial.cpu["replay"] / predicted, learning


def shared_part(pieces: Pieces, batch_size: int) -> float | None:
    """Return the part of a learner's step that threads share; None where there is one core."""
    one, two = (pieces.scaling.get((batch_size, threads)) for threads in (1, 2))
    return parallel_share_of(one.wall_seconds, two.wall_seconds) if one and two else None


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
    acting = pieces.acting[resolved(config.actor.envs_per_actor)]
    recording = acting.seconds - acting.environment_seconds - acting.values_seconds
    yield "actor", "environment step", costs.environment_seconds, 1.0
    yield "actor", "values of the actions", costs.acting_seconds, 1.0
    yield "actor", "explore, record, compress", recording, 1.0
    yield "actor", "send, keep in touch", costs.recording_seconds - recording, 1.0
    replaying = pieces.replaying
    yield "replay", "check, insert", replaying.intake, 1.0
    yield "replay", "journal", costs.journal_seconds, 1.0
    yield "replay", "receive, acknowledge", costs.intake_seconds - replaying.intake, 1.0
    yield "replay", "sample", replaying.sampling, ratio
    yield "replay", "new priority", costs.priority_seconds, ratio
    yield "replay", "hand out", costs.sampling_seconds - replaying.sampling, ratio
    step = pieces.learning.cpu_seconds
    yield "learner", "step", step, ratio
    yield "learner", "receive, return priorities", costs.learning_seconds - step, ratio


def with_gpu(pieces: Pieces, told_seconds: float | None) -> Pieces:
    """Return the pieces with a GPU's time that a person tells; a measured one stays."""
    if told_seconds is None or pieces.gpu_seconds is not None:
        return pieces
    return dataclasses.replace(pieces, gpu_seconds=told_seconds, gpu_is_told=True)
