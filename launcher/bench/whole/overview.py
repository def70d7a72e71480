"""The benchmark ``pdqn bench``: what a transition costs each role, and the rates that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from launcher.bench.whole.calibration import Calibration
from launcher.bench.whole.costs import Pieces, layout_of, rows, shared_part
from launcher.bench.whole.measured import Measured, measure_whole
from launcher.bench.whole.trial import Trial
from launcher.kinds import Names
from launcher.numbers import in_unit, number, percent, plural, size
from launcher.plan.inspector import Inspector
from launcher.plan.machine import Gpu, Machine
from launcher.plan.memory import GB
from launcher.plan.plan import plan as plan_run
from launcher.plan.prepare import prepare
from launcher.prediction.model import (
    CROWD,
    Costs,
    Layout,
    Prediction,
    predict,
    replays_worth,
    required_gpu_seconds,
    useful_actors,
)
from launcher.terminal import echo, echo_json, show
from pdqn import layers
from pdqn.config import Config, resolved
from pdqn.errors import UsageError
from pdqn.specs import EnvironmentSpec

OTHER_CORES = (16, 64, 128, 1024)
_MEASURED_THREADS = 2
# Enough for any plan: these machines are imagined.
_BYTES_PER_CORE = 16 * GB
_A_GPU = Gpu("assumed", 80 * GB, 80 * GB, (9, 0))
# What a person has chosen for this machine says nothing about others.
_OF_THIS_MACHINE = {
    "run": ("mode",),
    "actor": ("count", "envs_per_actor"),
    "learner": ("device", "precision", "threads"),
    "replay": ("shards", "decode_threads", "memory", "store"),
}


@dataclass(frozen=True)
class Place:
    """A machine with the run that is planned for it.

    Attributes:
        config: the run's.
        costs: of its work.
        layout: its processes.
        prediction: its rates.
    """

    config: Config
    costs: Costs
    layout: Layout
    prediction: Prediction


def bench(
    config: Config,
    seconds: float,
    run_seconds: float,
    gpu_sample_seconds: float | None,
    given: Names | None = None,
    *,
    as_json: bool,
) -> int:
    """Measure, predict and print; return the exit code.

    Args:
        config: as a person wrote it.
        seconds: length of each measurement.
        run_seconds: length of each real run; 0 for none.
        gpu_sample_seconds: time of a sampled transition on a GPU, if this machine has none.
        given: the settings that the person set, as ``prepare`` takes them.
        as_json: whether to print JSON.

    Raises:
        UsageError: the configuration cannot run here.
    """
    with Inspector(config.system) as inspector:
        spec, here, plan = prepare(config, inspector=inspector, given=given)
    if plan.errors:
        raise UsageError("; ".join(plan.errors))
    config, planned = plan.before, plan.config
    if planned.run.mode == "single":
        planned = _in_parallel(config, spec, here)
    others = [other_config(config, spec, here, *machine) for machine in _others()]
    measured = measure_whole(
        config,
        planned,
        spec,
        here,
        seconds=seconds,
        run_seconds=run_seconds,
        envs=[resolved(other.actor.envs_per_actor) for other in others],
        gpu_sample_seconds=gpu_sample_seconds,
        say=_say,
    )
    places = [
        _place(measured, other, *machine) for other, machine in zip(others, _others(), strict=True)
    ]
    if as_json:
        echo_json(as_data(measured, places), indent=2)
        return 0
    show(_cost_table(measured), "", *_here_lines(measured), "")
    show(_places_table(places), "", *_notes(measured, places))
    return 0


def _say(text: str) -> None:
    echo(f"measures {text}", err=True)


def _others() -> list[tuple[int, bool]]:
    return [(cores, gpu) for cores in OTHER_CORES for gpu in (False, True)]


def _in_parallel(config: Config, spec: EnvironmentSpec, here: Machine) -> Config:
    """Plan the run in several processes, which a machine with one core can have too."""
    parallel = layers.build(
        ("options", config.to_map()), ("benchmark", {"run": {"mode": "parallel"}})
    )
    return plan_run(here, parallel, spec).config


def other_config(
    config: Config, spec: EnvironmentSpec, here: Machine, cores: int, gpu: bool
) -> Config:
    """Plan a run for a machine with these cores, and with a GPU or without one."""
    there = dataclasses.replace(
        here, cores=cores, physical_cores=cores, logical_cores=cores,
        ram_total_bytes=cores * _BYTES_PER_CORE, ram_available_bytes=cores * _BYTES_PER_CORE,
        shm_free_bytes=cores * GB, gpus=(_A_GPU,) if gpu else (),
        versions={**here.versions, "torch": here.versions["torch"].removesuffix("+cpu")},
    )  # fmt: skip
    chosen = config.to_map()
    for section, keys in _OF_THIS_MACHINE.items():
        for key in keys:
            chosen[section].pop(key, None)
    return plan_run(there, layers.build(("options", chosen)), spec).config


def _place(measured: Measured, other: Config, cores: int, gpu: bool) -> Place:
    """Predict the rates of a run elsewhere, with as many replays as are worth their cores."""
    costs = measured.costs(resolved(other.actor.envs_per_actor))
    layout = layout_of(other, cores)
    layout = dataclasses.replace(layout, gpu=gpu, replays=replays_worth(costs, layout))
    return Place(other, costs, layout, predict(costs, layout))


# ---- report ----


def as_data(measured: Measured, places: list[Place]) -> dict[str, Any]:
    """Return everything as plain data."""
    own, costs, here = measured.layout, measured.costs(), measured.machine
    pieces, config, parts = measured.pieces, measured.config, measured.parts()
    trial, calibration = measured.trial, measured.calibration
    return {
        "environment": measured.spec.id,
        "machine": {"cores": here.cores, "system": here.system, "versions": dict(here.versions)},
        "config": config.to_map(),
        "costs": dataclasses.asdict(costs),
        "parts": [
            {"role": role, "part": part, "seconds": each, "times": times}
            for role, part, each, times in rows(pieces, config, parts)
        ],
        "learner_scaling": [
            {"batch_size": batch, "threads": threads, "seconds": found.wall_seconds}
            for (batch, threads), found in pieces.scaling.items()
        ],
        "run": None if trial is None else dataclasses.asdict(trial),
        "calibration": None if calibration is None else dataclasses.asdict(calibration),
        "here": _prediction_data(costs, own, predict(costs, own)),
        "predicted": [_prediction_data(p.costs, p.layout, p.prediction) for p in places],
        "gpu_is_told": pieces.gpu_is_told,
    }


def _prediction_data(costs: Costs, layout: Layout, found: Prediction) -> dict[str, Any]:
    return {
        **dataclasses.asdict(layout),
        **dataclasses.asdict(found),
        "samples": found.rate * layout.samples_per_insert,
        "episodes": found.rate / costs.episode_steps,
        "wire_bytes": found.rate * costs.wire_bytes,
        "required_gpu_seconds": required_gpu_seconds(costs, layout) if layout.gpu else None,
    }


def _cost_table(measured: Measured) -> Table:
    """Lay out what a transition costs each role, and what it has cost in a run."""
    envs, ratio = measured.config.actor.envs_per_actor, measured.samples_per_insert
    title = (
        f"{measured.spec.id}: CPU time of a transition, {envs} environments an actor, "
        f"{number(ratio)} samples an insert, {plural(measured.machine.cores, 'core')}"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    for name in ("role", "part"):
        table.add_column(name, no_wrap=True)
    for name in ("us each", "times", "us", "share", "us in a run"):
        table.add_column(name, justify="right", no_wrap=True)
    parts = list(rows(measured.pieces, measured.config, measured.parts()))
    whole = sum(each * times for *_, each, times in parts)
    for role in ("actor", "replay", "learner"):
        own = [part for part in parts if part[0] == role]
        spent = sum(each * times for *_, each, times in own)
        in_run = _in_run(measured.trial, role, ratio)
        table.add_section()
        table.add_row(role, "", "", "", f"{1e6 * spent:.2f}", percent(spent / whole), in_run)
        for _, part, each, times in own:
            cells = (f"{1e6 * each:.2f}", number(times), f"{1e6 * each * times:.2f}")
            table.add_row("", part, *cells, percent(each * times / whole), "")
    table.add_section()
    table.add_row("all", "", "", "", f"{1e6 * whole:.2f}", "", "")
    return table


def _in_run(trial: Trial | None, role: str, ratio: float) -> str:
    """Write a role's CPU time of a transition in the run; the learner's goes by its samples."""
    if trial is None:
        return ""
    transitions = trial.samples / ratio if role == "learner" else trial.environment_steps
    return f"{1e6 * trial.cpu[role] / max(1.0, transitions):.2f}"


def _here_lines(measured: Measured) -> Iterator[str]:
    """Describe this machine's rates, predicted and measured."""
    costs, own, pieces, trial = (
        measured.costs(), measured.layout, measured.pieces, measured.trial,
    )  # fmt: skip
    found = predict(costs, own)
    yield (
        f"this machine, as planned ({_described(own)}): {_rates(costs, own, found)}; "
        f"{found.limit} {_is(found.limit)} the bottleneck"
    )
    yield (
        "ceiling of its cores, if no process waited: "
        f"{in_unit(found.limits['cores'], '/s')} environment steps"
    )
    if trial is not None:
        parts = ", ".join(f"{role} {cpu:.2f}" for role, cpu in trial.cpu.items())
        yield (
            f"a real run: {in_unit(trial.environment_steps, '/s')} environment steps, "
            f"{in_unit(trial.episodes, '/s')} episodes, {in_unit(trial.samples, '/s')} samples; "
            f"cores in use: {parts}; actors wait {percent(trial.actor_waits)} of their time, the "
            f"learner {percent(trial.learner_waits)}"
        )
    if measured.calibration is not None:
        yield _calibration_line(measured.calibration)
    enough = useful_actors(costs, own)
    if enough < own.actors:
        yield f"{plural(enough, 'actor')} would be enough: --actors {enough}"
    if (worth := replays_worth(costs, own)) > own.replays:
        yield f"replay limits: --replays {worth}"
    for batch in sorted({batch for batch, _ in pieces.scaling}):
        yield _scaling_line(pieces, batch)


def _calibration_line(found: Calibration) -> str:
    return (
        f"in a run, an actor takes {found.actor:.2f} times its parts with a core of its "
        f"own, and {found.crowding:.2f} times that as one of {CROWD} on a core; after a long wait "
        f"a sample takes {found.cold_factor:.2f} times as much as without"
    )


def _scaling_line(pieces: Pieces, batch: int) -> str:
    one = pieces.scaling[batch, 1].wall_seconds
    line = f"learner, batches of {batch}: {1e6 * one:.2f} us a sample on one thread"
    share = shared_part(pieces, batch)
    if share is None:
        return line
    two = pieces.scaling[batch, 2].wall_seconds
    return f"{line}, {1e6 * two:.2f} us on two: threads share {percent(share)} of a step"


def _is(limit: str) -> str:
    return "are" if limit.endswith("s") else "is"


def _described(layout: Layout) -> str:
    device = "a GPU" if layout.gpu else plural(layout.threads, "learner thread")
    return f"{plural(layout.actors, 'actor')}, {plural(layout.replays, 'replay')}, {device}"


def _rates(costs: Costs, layout: Layout, found: Prediction) -> str:
    return (
        f"{in_unit(found.rate, '/s')} environment steps, "
        f"{in_unit(found.rate / costs.episode_steps, '/s')} episodes, "
        f"{in_unit(found.rate * layout.samples_per_insert, '/s')} samples"
    )


def _places_table(places: list[Place]) -> Table:
    """Lay out the rates of other machines."""
    table = Table(
        title="predicted for other machines, with cores like these", title_justify="left",
        box=None, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    names = ("cores", "GPU", "actors", "replays", "threads", "steps/s", "episodes/s", "samples/s")
    for name in (*names, "wire"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for place in places:
        layout, found, costs = place.layout, place.prediction, place.costs
        most = "" if found.known else "<"
        rates = (found.rate, found.rate / costs.episode_steps)
        table.add_row(
            str(layout.cores), "yes" if layout.gpu else "no", str(layout.actors),
            str(layout.replays), "" if layout.gpu else str(layout.threads),
            *(most + number(rate) for rate in (*rates, found.rate * layout.samples_per_insert)),
            size(found.rate * costs.wire_bytes) + "/s", found.limit,
        )  # fmt: skip
    return table


def _notes(measured: Measured, places: list[Place]) -> Iterator[str]:
    """Say what is assumed."""
    pieces = measured.pieces
    if pieces.gpu_seconds is None:
        needed = ", ".join(
            f"{1e6 * required_gpu_seconds(p.costs, p.layout):.2f} us with {p.layout.cores} cores"
            for p in places
            if p.layout.gpu
        )
        yield (
            "No GPU was measured: with one, rates are upper bounds (<) that leave the learner out. "
            f"For them, the GPU must take at most this time for a sample: {needed}. "
            "--gpu-sample-us takes a measured time."
        )
    else:
        how = "assumed, by --gpu-sample-us" if pieces.gpu_is_told else "measured here"
        yield f"A GPU's time of a sample: {1e6 * pieces.gpu_seconds:.2f} us ({how})."
    if any(not p.layout.gpu and p.layout.threads > _MEASURED_THREADS for p in places):
        yield (
            f"Assumption: more than {_MEASURED_THREADS} learner threads follow Amdahl's law; they "
            "were not measured."
        )
    yield (
        "Assumptions: cores, caches and memory are as fast as here when all are busy, there is "
        "enough memory, and one host has all cores. For several hosts see pdqn bench hosts."
    )
