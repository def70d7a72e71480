"""The costs of real runs over those of their parts, measured in three runs that differ much.

A part that is measured by itself misses the costs of company. These are wake-ups for single
messages, cold caches after a wait, and actors that share a core. Three short runs have them:

- the planned run, whose learner mostly gets many samples;
- an actor on each core, and few samples: actors never wait, and the learner mostly does;
- several actors on each core, and a sample for each transition. These actors wait, as crowded ones
  mostly do: the learner gets its share of the cores only while some actors wait.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.bench.whole.costs import Factors, Pieces, costs_of, factors_of, layout_of
from launcher.bench.whole.trial import Trial, run_trial
from launcher.numbers import plural
from launcher.plan.machine import Machine
from launcher.plan.plan import plan
from launcher.prediction.model import CROWD, Costs, cold_part
from pdqn import layers
from pdqn.config import Config, resolved
from pdqn.specs import EnvironmentSpec

# Larger machines are calibrated on some of their cores: a crowd on all of them takes its memory.
MOST_CORES = 2
FEW_SAMPLES, CROWD_SAMPLES = 0.1, 1.0
# The ratio with few samples is at most the planned one over this.
_APART = 2.0
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A real run.

    Attributes:
        config: with all that is left to auto filled in.
        cores: that it might use.
        trial: its figures.
    """

    config: Config
    cores: int
    trial: Trial

    @property
    def samples_per_insert(self) -> float:
        """The sampled transitions for each that arrived."""
        return self.trial.samples / max(1.0, self.trial.environment_steps)

    @property
    def learner_seconds(self) -> float:
        """The learner's CPU time of a sampled transition."""
        return self.trial.cpu["learner"] / max(1.0, self.trial.samples)

    @property
    def replay_seconds(self) -> float:
        """Replay's CPU time of a transition, its samples included."""
        return self.trial.cpu["replay"] / max(1.0, self.trial.environment_steps)

    @property
    def cold(self) -> float:
        """The coldness of caches before a learner step; see `cold_part`."""
        return cold_part(self.trial.samples, self.config.learner.batch_size, self.learner_seconds)


@dataclass(frozen=True)
class Calibration:
    """Changes of costs that are measured part by part.

    Attributes:
        actor: factor of the actor's costs.
        crowding: see `Costs`.
        inserting_seconds: replay's CPU time of a transition.
        sampling_seconds: replay's CPU time of a sampled transition and its new priority.
        learning_seconds: see `Costs`.
        cold_factor: see `Costs`.
    """

    actor: float
    crowding: float
    inserting_seconds: float
    sampling_seconds: float
    learning_seconds: float
    cold_factor: float

    def applied_to(self, costs: Costs) -> Costs:
        """Return costs that are changed by this; how a role's parts share its time stays."""
        inserting = self.inserting_seconds / costs.replay_seconds(0.0)
        parts = costs.sampling_seconds + costs.priority_seconds
        sampling = self.sampling_seconds / parts
        return dataclasses.replace(
            Factors(self.actor, inserting, 1.0).applied_to(costs),
            sampling_seconds=sampling * costs.sampling_seconds,
            priority_seconds=sampling * costs.priority_seconds,
            learning_seconds=self.learning_seconds,
            cold_factor=self.cold_factor,
            crowding=self.crowding,
        )


def edge_configs(chosen: Config, here: Machine, spec: EnvironmentSpec) -> list[Config]:
    """Plan the two runs beside the planned one, with an actor on each core and with several.

    Args:
        chosen: as a person wrote it.
        here: this machine.
        spec: the environment's.

    Returns:
        The configurations; none if this machine has no room for a run.
    """
    cores = min(MOST_CORES, here.cores)
    there = dataclasses.replace(here, cores=cores)
    ratio = chosen.replay.samples_per_insert
    few = FEW_SAMPLES if ratio is None else min(FEW_SAMPLES, ratio / _APART)
    some = CROWD_SAMPLES if ratio is None else min(CROWD_SAMPLES, ratio)
    asked = ((cores, few), (CROWD * cores, some))
    plans = [plan(there, _edge(chosen, *sizes), spec) for sizes in asked]
    return [] if any(found.errors for found in plans) else [found.config for found in plans]


def _edge(chosen: Config, actors: int, samples_per_insert: float) -> Config:
    settings = chosen.to_map()
    settings["replay"].pop("samples_per_insert_tolerance", None)  # it goes with the ratio
    own = {
        "run": {"mode": "parallel"},
        "actor": {"count": actors},
        "replay": {"samples_per_insert": samples_per_insert},
        "evaluation": {"enabled": False},
        "learner": {"device": "cpu", "precision": "float32", "threads": 1},
    }
    return layers.build(("options", settings), ("benchmark", own))


def calibrated(
    pieces: Pieces,
    planned: Run,
    edges: list[Config],
    cores: list[int],
    seconds: float,
    say: Callable[[str], object] = lambda _text: None,
) -> Calibration:
    """Run the other two runs, and compare.

    Args:
        pieces: the measured parts, with the edges' numbers of environments.
        planned: the planned run.
        edges: configurations of the two other runs.
        cores: numbers of the cores of this process; empty where the system does not tell.
        seconds: time for which the rates of a run are counted.
        say: function that tells a person what is being measured.

    Raises:
        RunError: a run failed.
    """
    used, runs = cores[:MOST_CORES], list[Run]()
    count = min(MOST_CORES, planned.cores)
    for config in edges:
        say(f"a run of {plural(resolved(config.actor.count), 'actor')} on {plural(count, 'core')}")
        runs.append(Run(config, count, run_trial(config, seconds, used)))
    return calibrate(pieces, planned, *runs)


def calibrate(pieces: Pieces, planned: Run, alone: Run, crowded: Run) -> Calibration:
    """Solve for the costs of all three runs."""
    actor, among = _actor_factor(pieces, alone), _actor_factor(pieces, crowded)
    learning, cold_factor = _learning(pieces, planned, alone, crowded)
    runs = (planned, alone, crowded)
    sampled = [run.samples_per_insert * (1.0 + run.cold * (cold_factor - 1.0)) for run in runs]
    inserting, sampling = fit(sampled, [run.replay_seconds for run in runs])
    return Calibration(actor, max(1.0, among / actor), inserting, sampling, learning, cold_factor)


def fit(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return a constant and a slope, neither negative, by least squares of relative errors."""
    times = np.maximum(1e-12, np.array(seconds))
    rows = np.stack([np.ones_like(times), np.array(amounts)], axis=1) / times[:, None]
    constant, slope = np.linalg.lstsq(rows, np.ones_like(times))[0]
    if constant < 0.0:
        return 0.0, _through(rows[:, 1])
    return (float(constant), float(slope)) if slope >= 0.0 else (_through(rows[:, 0]), 0.0)


def _through(column: FloatArray) -> float:
    """Return the factor that brings a column nearest to 1."""
    return float(column.sum() / max(1e-30, (column**2).sum()))


def _actor_factor(pieces: Pieces, run: Run) -> float:
    envs = resolved(run.config.actor.envs_per_actor)
    costs = costs_of(pieces, run.config, run.trial, envs)
    return factors_of(costs, layout_of(run.config, run.cores), run.trial).actor


def _learning(pieces: Pieces, planned: Run, alone: Run, crowded: Run) -> tuple[float, float]:
    """Return a busy learner's seconds of a sample, and the factor of a learner that waits.

    A busy learner takes at least what it takes by itself, and at most what the planned run's takes.
    Between these, all runs decide. A planned run on several threads or a GPU does not tell what
    one thread takes.
    """
    settings, runs = planned.config.learner, [planned, alone, crowded]
    tells = settings.device == "cpu" and settings.threads == 1
    runs = runs if tells else runs[1:]
    cold, seconds = [run.cold for run in runs], [run.learner_seconds for run in runs]
    by_itself = costs_of(pieces, planned.config, planned.trial).learning_seconds
    least = max(by_itself, fit(cold, seconds)[0]) if tells else by_itself
    learning = min(least, seconds[0])
    # The colder the caches were, the more a run tells of what that adds.
    added = sum(each / learning - 1.0 for each in seconds) / max(1e-9, sum(cold))
    return learning, 1.0 + max(0.0, added)
