"""Predicted rates beside those of real runs: ``python -m benchmarks.prediction``.

The costs are measured once for each environment, as ``pdqn bench`` does, and know nothing of the
cases. From them follow the rates of twelve runs: on one and two cores, with 2 to 32 actors, and 0.1
to 8 samples an insert. A run also reports its CPU time. If the model is right with the costs of the
run itself and the prediction is not, then the costs were measured wrongly. ``actor``, ``replay``
and ``learner`` are factors: the CPU time of a role in the run over what was predicted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.bench.whole.costs import Factors, factors_of, layout_of
from launcher.bench.whole.measured import Measured, measure_whole
from launcher.bench.whole.trial import Trial, run_trial
from launcher.kinds import PLACEMENT_ID, read_preset
from launcher.plan.inspector import Inspector
from launcher.plan.machine import Machine
from launcher.plan.prepare import prepare
from launcher.prediction.model import Layout, predict
from pdqn.config import Config, resolved
from pdqn.errors import RunError
from pdqn.layers import Layer, build
from pdqn.specs import EnvironmentSpec

_TARGET = 0.10
# With few samples an insert bursts of the learner, and with many those of actors, blur a rate.
_FEW_SAMPLES = 1.0
_ENVIRONMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "CartPole": ("CartPole-v1", {}),
    "placement 64": (PLACEMENT_ID, {"map_size": 64, "rollouts": "auto"}),
    "placement 128": (PLACEMENT_ID, {"rollouts": "auto"}),
}


@dataclass(frozen=True)
class Case:
    """A run to predict.

    Attributes:
        environment: its name here.
        cores: that the run may use.
        actors: actor processes.
        samples_per_insert: transitions sampled for each that arrives.
    """

    environment: str
    cores: int
    actors: int
    samples_per_insert: float

    @property
    def name(self) -> str:
        """The case in words."""
        return (
            f"{self.environment}, {self.cores} cores, {self.actors} actors, "
            f"{self.samples_per_insert:g} samples"
        )


CASES = (
    Case("CartPole", 1, 2, 0.1),
    Case("CartPole", 1, 8, 8.0),
    Case("CartPole", 2, 2, 1.0),
    Case("CartPole", 2, 8, 8.0),
    Case("CartPole", 2, 32, 2.0),
    Case("placement 64", 1, 2, 1.0),
    Case("placement 64", 2, 4, 0.1),
    Case("placement 64", 2, 16, 0.5),
    Case("placement 64", 2, 2, 8.0),
    Case("placement 128", 1, 4, 0.5),
    Case("placement 128", 2, 2, 0.5),
    Case("placement 128", 2, 32, 0.1),
)


@dataclass(frozen=True)
class Outcome:
    """A run beside its prediction; rates are environment steps per second.

    Attributes:
        case: the run.
        predicted: from costs that were measured before.
        limit: the resource that limits it by this prediction.
        by_parts: the same from parts that were measured one by one, without any real run.
        by_own_run: the same with each role's CPU time as in this run.
        measured: the run's.
        factors: CPU time of each role in this run over what was predicted.
        trial: all figures of the run.
    """

    case: Case
    predicted: float
    limit: str
    by_parts: float
    by_own_run: float
    measured: float
    factors: Factors
    trial: Trial

    @property
    def error(self) -> float:
        """The prediction over the measurement, less 1."""
        return self.error_of(self.predicted)

    def error_of(self, rate: float) -> float:
        """Return a rate over the measured one, less 1."""
        return rate / self.measured - 1.0


def main() -> int:
    """Measure, run and print; return 1 unless all predictions meet the target."""
    parser = argparse.ArgumentParser(description="Compare predicted rates with real runs.")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each measurement")
    parser.add_argument("--run-seconds", type=float, default=12.0, help="length of each run")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the cases, from 1")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    chosen = CASES if options.only is None else [CASES[number - 1] for number in options.only]
    cores = sorted(os.sched_getaffinity(0))
    if any(case.cores > len(cores) for case in chosen):
        sys.exit(f"this process may use {len(cores)} cores, and the cases need 2")
    os.sched_setaffinity(0, cores[:2])
    began, outcomes = time.monotonic(), list[Outcome]()
    bases: dict[str, Measured] = {}
    for case in chosen:
        if case.environment not in bases:
            print(f"costs of {case.environment}", file=sys.stderr)
            bases[case.environment] = measured(case.environment, options)
        print(case.name, file=sys.stderr)
        try:
            outcomes.append(outcome_of(case, bases[case.environment], cores, options.run_seconds))
        except RunError as error:
            print(f"{case.name}: {error}", file=sys.stderr)
    if outcomes:
        print("\n".join(report(outcomes)))
    print(f"{time.monotonic() - began:.0f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(as_data(outcomes, bases), indent=2) + "\n")
    good = [outcome for outcome in outcomes if abs(outcome.error) <= _TARGET]
    return 0 if len(good) == len(chosen) else 1


def measured(environment: str, options: argparse.Namespace) -> Measured:
    """Measure an environment's costs on two cores, for one actor and the plan's ratio."""
    chosen = configured(Case(environment, 2, 1, 0.0))
    config, spec, here = planned(chosen)
    own = [configured(case) for case in CASES if case.environment == environment]
    return measure_whole(
        chosen,
        config,
        spec,
        here,
        seconds=options.seconds,
        run_seconds=options.run_seconds,
        envs=[resolved(planned(one)[0].actor.envs_per_actor) for one in own],
    )


def configured(case: Case) -> Config:
    """Return a case's settings; a ratio of 0 is left to the plan."""
    env, env_args = _ENVIRONMENTS[case.environment]
    ratio = {"samples_per_insert": case.samples_per_insert} if case.samples_per_insert else {}
    settings = {
        "run": {"env": env, "env_args": env_args, "mode": "parallel"},
        "actor": {"count": case.actors},
        "learner": {"device": "cpu", "threads": 1},
        "replay": ratio,
        "evaluation": {"enabled": False},
    }
    layers: list[tuple[str, Layer]] = [("case", settings)]
    if env == PLACEMENT_ID:  # as for pdqn launch
        layers.insert(0, ("preset", read_preset("placement")))
    return build(*layers)


def planned(config: Config) -> tuple[Config, EnvironmentSpec, Machine]:
    """Fill in all that is left to auto."""
    with Inspector(config.system) as inspector:
        spec, here, plan = prepare(config, inspector=inspector)
    return plan.config, spec, here


def outcome_of(case: Case, base: Measured, cores: list[int], seconds: float) -> Outcome:
    """Predict a case, run it, and compare."""
    config = planned(configured(case))[0]
    envs, layout = resolved(config.actor.envs_per_actor), layout_of(config, case.cores)
    costs = base.costs(envs)
    predicted = predict(costs, layout)
    trial = run_trial(config, seconds, cores[: case.cores])
    own = factors_of(costs, layout, trial)
    return Outcome(
        case=case,
        predicted=predicted.rate,
        limit=predicted.limit,
        by_parts=predict(base.parts(envs), layout).rate,
        by_own_run=predict(own.applied_to(costs), layout).rate,
        measured=measured_rate(trial, layout),
        factors=own,
        trial=trial,
    )


def measured_rate(trial: Trial, layout: Layout) -> float:
    """Return a run's environment steps per second, by the steadier of its two rates."""
    if layout.samples_per_insert < _FEW_SAMPLES:
        return trial.environment_steps
    return trial.samples / layout.samples_per_insert


def report(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the lines of a Markdown table, and a summary."""
    yield (
        "| environment | cores | actors | samples an insert | predicted, steps/s | limit "
        "| measured | error | by parts alone | with its own costs | actor | replay | learner "
        "| cores in use |"
    )
    yield "|---" * 14 + "|"
    for one in outcomes:
        case, used = one.case, sum(one.trial.cpu.values())
        factors = " | ".join(f"{factor:.2f}" for factor in vars(one.factors).values())
        yield (
            f"| {case.environment} | {case.cores} | {case.actors} | {case.samples_per_insert:g} "
            f"| {one.predicted:.1f} | {one.limit} | {one.measured:.1f} | {one.error:+.1%} "
            f"| {one.error_of(one.by_parts):+.1%} | {one.error_of(one.by_own_run):+.1%} "
            f"| {factors} | {used:.2f} |"
        )
    errors = [abs(one.error) for one in outcomes]
    yield (
        f"within {_TARGET:.0%}: {sum(error <= _TARGET for error in errors)} of {len(errors)}; "
        f"median {statistics.median(errors):.1%}, largest {max(errors):.1%}"
    )


def as_data(outcomes: list[Outcome], bases: dict[str, Measured]) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "outcomes": [dataclasses.asdict(one) | {"error": one.error} for one in outcomes],
        "costs": {name: dataclasses.asdict(base.costs()) for name, base in bases.items()},
        "parts": {name: dataclasses.asdict(base.parts()) for name, base in bases.items()},
        "trials": {
            name: dataclasses.asdict(base.trial) for name, base in bases.items() if base.trial
        },
    }


if __name__ == "__main__":
    sys.exit(main())
