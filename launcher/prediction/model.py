"""The rates of a run, from the CPU time of its work. Pure.

A transition costs each role a known CPU time. The limiter ties samples to inserts, so one rate
describes the whole run. The most heavily used resource limits it: the actors' processes, the
replays' processes, the learner, or the cores together.

Two costs depend on the layout. Actors that share a core evict each other's caches, so a transition
costs more the more of them there are. A sample costs learner and replay more the longer the learner
has waited: both find their caches cold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Every core beyond this share runs an actor; the share is for the other roles.
CORES_PER_OTHER_CORE = 16
# Another learner thread is worth its core if it speeds a step up by this factor.
THREAD_GAIN = 1.1
# Parts of a learner's step that several threads share evenly, by the size of observations. Steps on
# compiled arrays have one thread. That of large ones is the Q-map's, as pdqn bench measured it.
PARALLEL_SHARE = {"small": 0.0, "large": 0.7}
_SECONDS_MIN = 1e-12
# Actors on each core, for which `Costs.crowding` holds.
CROWD = 8
# A wait of this length between two learner steps makes half of what `Costs.cold_factor` adds.
COOLING_SECONDS = 0.008
# The rate decides for how long the learner waits, and that decides the rate.
_TURNS = 20


@dataclass(frozen=True)
class Costs:
    """The measured costs of a run's work; CPU time is that of one busy core.

    Attributes:
        environment_seconds: an actor's CPU time of a transition for stepping its environment.
        acting_seconds: for the values of the actions.
        recording_seconds: for exploring, recording, cutting, compressing, sending, and all else.
        intake_seconds: replay's CPU time of a transition for receiving, checking and inserting it.
        journal_seconds: for the journal.
        sampling_seconds: replay's CPU time of a sampled transition for drawing and handing it out.
        priority_seconds: for its new priority.
        learning_seconds: the learner's CPU time of a sampled transition, on one thread, while it is
            always busy.
        cold_factor: learner's and replay's CPU time of a sampled transition after a long wait, over
            that of a learner that is always busy.
        step_samples: sampled transitions of a learner step.
        crowding: an actor's CPU time of a transition among `CROWD` actors on each core, over that
            of an actor with a core of its own.
        replay_busy: part of replay's CPU time that remains while it is always busy. It then wakes
            up for many messages at once.
        parallel_share: part of a learner's step that several threads share evenly; 0 to 1.
        gpu_seconds: time of a sampled transition on a GPU; None where nobody has measured it.
        wait_seconds: time of a transition in which its environment waits without computing.
        upkeep_seconds: CPU seconds per second for each actor's parameters and reports.
        fixed_cores: CPU seconds per second of launcher and evaluator.
        wire_bytes: bytes of a transition between actor and replay.
        sample_bytes: bytes of a sampled transition between replay and learner.
        episode_steps: environment steps of an episode.
    """

    environment_seconds: float
    acting_seconds: float
    recording_seconds: float
    intake_seconds: float
    journal_seconds: float
    sampling_seconds: float
    priority_seconds: float
    learning_seconds: float
    cold_factor: float = 1.0
    step_samples: int = 64
    crowding: float = 1.0
    replay_busy: float = 1.0
    parallel_share: float = 0.0
    gpu_seconds: float | None = None
    wait_seconds: float = 0.0
    upkeep_seconds: float = 0.0
    fixed_cores: float = 0.0
    wire_bytes: float = 0.0
    sample_bytes: float = 0.0
    episode_steps: float = 1.0

    @property
    def actor_seconds(self) -> float:
        """The CPU time of a transition of an actor with a core of its own."""
        return self.environment_seconds + self.acting_seconds + self.recording_seconds

    def crowded_seconds(self, layout: Layout) -> float:
        """Return the actor's CPU time of a transition: each doubling on a core adds the same."""
        part = math.log(max(1.0, layout.actors / layout.cores), CROWD)
        return self.actor_seconds * (1.0 + part * (self.crowding - 1.0))

    def replay_seconds(self, samples_per_insert: float, cold: float = 0.0) -> float:
        """Return replay's CPU time of a transition, its samples included; see `cold_part`."""
        sampled = (self.sampling_seconds + self.priority_seconds) * self.sample_factor(cold)
        return self.intake_seconds + self.journal_seconds + samples_per_insert * sampled

    def sample_seconds(self, threads: int, cold: float = 0.0) -> float:
        """Return the learner's wall time of a sampled transition on this number of threads."""
        seconds = self.learning_seconds * self.sample_factor(cold)
        return seconds / speed_up(self.parallel_share, threads)

    def sample_factor(self, cold: float) -> float:
        """Return the factor of a sample's costs by the wait before it; see `cold_part`."""
        return 1.0 + cold * (self.cold_factor - 1.0)


@dataclass(frozen=True)
class Layout:
    """The processes of a run, and the cores that they share.

    Attributes:
        cores: of the machine.
        actors: actor processes.
        replays: replay processes.
        threads: CPU threads of the learner.
        samples_per_insert: transitions sampled for each that arrives.
        gpu: whether the learner computes on a GPU.
    """

    cores: int
    actors: int
    replays: int
    threads: int
    samples_per_insert: float
    gpu: bool = False


@dataclass(frozen=True)
class Prediction:
    """The rates of a run.

    Attributes:
        rate: environment steps per second, each of which makes a transition.
        limit: the resource that is used up: actors, replay, learner, or cores.
        limits: environment steps per second that each resource would permit alone.
        known: False where a GPU's time is not measured, so that the learner is left out.
    """

    rate: float
    limit: str
    limits: dict[str, float]
    known: bool = True


def predict(costs: Costs, layout: Layout) -> Prediction:
    """Predict the rates of a run that has been filled, and whose limiter holds its ratio."""
    found = _predicted(costs, layout, 0.0)
    for _ in range(0 if layout.gpu or costs.cold_factor == 1.0 else _TURNS):
        found = _predicted(costs, layout, cold_share(costs, layout, found.rate))
    return found


def cold_share(costs: Costs, layout: Layout, rate: float) -> float:
    """Return how cold caches are at these environment steps/s; 0 to 1."""
    sample = costs.sample_seconds(layout.threads)
    return cold_part(rate * layout.samples_per_insert, costs.step_samples, sample)


def cold_part(samples: float, step_samples: int, sample_seconds: float) -> float:
    """Return how cold caches are when a learner takes these samples/s; 0 to 1."""
    wait_seconds = step_samples * max(0.0, 1.0 / max(samples, 1e-9) - sample_seconds)
    return wait_seconds / (wait_seconds + COOLING_SECONDS)


def _predicted(costs: Costs, layout: Layout, cold: float) -> Prediction:
    """Predict the rates of a run whose caches are as cold as that."""
    ratio, upkeep = layout.samples_per_insert, layout.actors * costs.upkeep_seconds
    replay, acting = costs.replay_seconds(ratio, cold), costs.crowded_seconds(layout)
    computed = acting + replay
    limits = {
        "actors": layout.actors * _actor_rate(costs, layout),
        "replay": layout.replays / _seconds(costs.replay_busy * costs.replay_seconds(ratio)),
    }
    if not layout.gpu:
        # A thread that waits for the others keeps its core.
        sample = costs.sample_seconds(layout.threads, cold)
        limits["learner"] = 1.0 / _seconds(ratio * costs.sample_seconds(layout.threads))
        computed += ratio * sample * layout.threads
    elif costs.gpu_seconds is not None:
        limits["learner"] = 1.0 / _seconds(ratio * costs.gpu_seconds)
        computed += ratio * costs.gpu_seconds  # its process feeds the GPU, and waits for it
    limits["cores"] = max(0.0, layout.cores - costs.fixed_cores - upkeep) / _seconds(computed)
    limit = min(limits, key=lambda name: limits[name])
    return Prediction(limits[limit], limit, limits, not layout.gpu or costs.gpu_seconds is not None)


def _actor_rate(costs: Costs, layout: Layout) -> float:
    """Return the environment steps per second of an actor that always has a core."""
    each = costs.crowded_seconds(layout) + costs.wait_seconds
    return max(0.0, 1.0 - costs.upkeep_seconds) / _seconds(each)


def speed_up(parallel_share: float, threads: int) -> float:
    """Return how many times as fast a step is on several threads, by Amdahl's law."""
    return 1.0 / (1.0 - parallel_share + parallel_share / threads)


def threads_worth(parallel_share: float, most: int) -> int:
    """Return the number of learner threads up to which each one is worth its core."""
    threads = 1
    while threads < most:
        gain = speed_up(parallel_share, threads + 1) / speed_up(parallel_share, threads)
        if gain < THREAD_GAIN:
            break
        threads += 1
    return threads


def actors_for(cores: int) -> int:
    """Return the number of actors for these cores; one core in sixteen is for the other roles.

    On fewer cores, actors use the time that the other roles leave, for these take precedence.
    """
    return max(1, cores - cores // CORES_PER_OTHER_CORE)


def replays_worth(costs: Costs, layout: Layout) -> int:
    """Return the number of replays from which on something else limits a run of this layout.

    It is at most the number of cores beside actors and learner, and at least one.
    """
    rest = [limit for name, limit in predict(costs, layout).limits.items() if name != "replay"]
    needed = min(rest) * costs.replay_busy * costs.replay_seconds(layout.samples_per_insert)
    learner = 1 if layout.gpu else layout.threads
    left = max(1, layout.cores - layout.actors - learner)
    return max(1, min(left, math.ceil(round(needed, 6))))


def useful_actors(costs: Costs, layout: Layout) -> int:
    """Return the number of actors from which on something else limits a run of this layout."""
    rest = [limit for name, limit in predict(costs, layout).limits.items() if name != "actors"]
    each = _actor_rate(costs, layout)
    return max(1, math.ceil(round(min(rest) / _seconds(each), 6)))


def required_gpu_seconds(costs: Costs, layout: Layout) -> float:
    """Return the time of a sampled transition below which a GPU does not limit a run."""
    limits = predict(costs, layout).limits
    return (
        1.0
        / _seconds(min(limits[name] for name in limits if name != "learner"))
        / (layout.samples_per_insert)
    )


def _seconds(seconds: float) -> float:
    return max(_SECONDS_MIN, seconds)
