"""All that a machine was measured to cost, from which predictions start."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.bench.whole.calibration import (
    MOST_CORES,
    Calibration,
    Run,
    calibrated,
    edge_configs,
)
from launcher.bench.whole.costs import Pieces, costs_of, layout_of, measure, with_gpu
from launcher.bench.whole.trial import Trial, run_trial
from launcher.plan.machine import Machine
from launcher.prediction.model import Costs, Layout
from pdqn.config import Config, resolved
from pdqn.specs import EnvironmentSpec


@dataclass(frozen=True)
class Measured:
    """A run's costs on this machine.

    Attributes:
        spec: the environment's.
        machine: this one.
        config: of the planned run, with all that is left to auto filled in.
        pieces: the parts.
        trial: the planned run; None if it was left out.
        calibration: of the parts by real runs; None if they were left out.
    """

    spec: EnvironmentSpec
    machine: Machine
    config: Config
    pieces: Pieces
    trial: Trial | None = None
    calibration: Calibration | None = None

    @property
    def layout(self) -> Layout:
        """The processes of the planned run."""
        return layout_of(self.config, self.machine.cores)

    @property
    def samples_per_insert(self) -> float:
        """The planned run's."""
        return resolved(self.config.replay.samples_per_insert)

    def parts(self, envs: int | None = None) -> Costs:
        """Return the costs by parts alone, for this number of environments of an actor."""
        return costs_of(self.pieces, self.config, self.trial, envs)

    def costs(self, envs: int | None = None) -> Costs:
        """Return the costs in a run, as far as runs were measured."""
        parts = self.parts(envs)
        return parts if self.calibration is None else self.calibration.applied_to(parts)


def measure_whole(
    chosen: Config,
    planned: Config,
    spec: EnvironmentSpec,
    here: Machine,
    *,
    seconds: float,
    run_seconds: float,
    envs: Sequence[int] = (),
    gpu_sample_seconds: float | None = None,
    say: Callable[[str], object] = lambda _text: None,
) -> Measured:
    """Measure the parts of a run, and the runs that calibrate them.

    Args:
        chosen: configuration as a person wrote it.
        planned: the same with all that is left to auto filled in.
        spec: the environment's.
        here: this machine.
        seconds: length of each measurement.
        run_seconds: length of each real run; 0 for none.
        envs: numbers of environments of an actor, beside the planned one.
        gpu_sample_seconds: time of a sampled transition on a GPU, if this machine has none.
        say: function that tells a person what is being measured.

    Raises:
        RunError: a process or a run failed.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    can_crowd = bool(cores) or here.cores <= MOST_CORES  # without affinity, actors would spread
    edges = edge_configs(chosen, here, spec) if run_seconds and can_crowd else []
    envs = [*envs, *(resolved(config.actor.envs_per_actor) for config in edges)]
    pieces = measure(planned, spec, here.cores, seconds, envs=envs, say=say)
    pieces = with_gpu(pieces, gpu_sample_seconds)
    if not run_seconds:
        return Measured(spec, here, planned, pieces)
    say(f"the planned run for {run_seconds:g} s")
    trial = run_trial(planned, run_seconds)
    if not edges:
        say("no run of actors that share a core: this machine has no room, or no CPU affinity")
        return Measured(spec, here, planned, pieces, trial)
    own = Run(planned, here.cores, trial)
    calibration = calibrated(pieces, own, edges, cores, run_seconds, say)
    return Measured(spec, here, planned, pieces, trial, calibration)
