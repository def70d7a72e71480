"""The growth of a run with its actors: ``python -m benchmarks.scaling``.

Each run has a number of actors with one environment each, ``pdqn/Latency-v0``, whose step takes
5 ms and no processor. Twice the actors should make twice the steps, until the cores are full. The
settings are defaults but for one sample per insert and no evaluator.

The table has the rate, its share of the ideal (one step per latency and actor), and the cores in
use. It has each role's processor time for each transition, all threads included, as roles report
it; the forkserver's counts as the launcher's. ``--json`` writes the same to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.chaos import processes
from launcher.bench.whole.trial import slope

ACTORS = (1, 2, 4, 8, 16, 32, 64, 120)
ROLES = ("actor", "replay", "learner", "launcher")
_REPORTING = ("actor", "replay", "learner", "evaluator")
_SETTINGS = (
    "replay.samples_per_insert=1",
    "replay.min_size=256",
    "evaluation.enabled=false",
    "system.pictures=false",
    "system.metrics_seconds=0.5",
)
_START_SECONDS, _STOP_SECONDS, _POLL_SECONDS = 180.0, 60.0, 0.05
# The first reports are of actors that started at different times.
_SETTLE_SECONDS = 3.0
_FULL = 0.92  # share of a resource from which more actors cannot add much


@dataclass(frozen=True)
class Result:
    """The figures of one run.

    Attributes:
        actors: number of actors.
        steps_per_second: environment steps/s.
        share: share of the ideal rate.
        cores: cores that the whole run used.
        machine: share of all cores that was busy, with whatever else the machine did.
        microseconds: processor time for each transition, by role.
        wait_share: part of the actors' time spent waiting for replay.
        saturated: the resource that was full; empty if none was.
    """

    actors: int
    steps_per_second: float
    share: float
    cores: float
    machine: float
    microseconds: Mapping[str, float]
    wait_share: float
    saturated: str


def main() -> int:
    """Run each number of actors and print one table."""
    parser = argparse.ArgumentParser(description="Measure how a run grows with its actors.")
    parser.add_argument("--actors", type=int, nargs="+", default=list(ACTORS))
    parser.add_argument("--seconds", type=float, default=20.0, help="measured in each run")
    parser.add_argument("--latency", type=float, default=0.005, help="seconds of a step")
    parser.add_argument("--set", action="append", default=[], help="SECTION.KEY=VALUE, as launch")
    parser.add_argument("--json", type=Path, help="file for the same figures")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(
        f"one environment per actor, {1e3 * options.latency:g} ms a step; {cores} cores; "
        "us: processor time for each transition"
    )
    print(heading(), flush=True)
    results: list[Result] = []
    for actors in options.actors:
        results.append(measure(actors, options.seconds, options.latency, options.set))
        print(line(results[-1]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(one) for one in results], indent=1))
    return 0


def heading() -> str:
    """Return the heads of the table's columns."""
    heads = ["actors", "steps/s", "of ideal", "cores", "machine"]
    heads += [f"{role} us" for role in ROLES] + ["waits", "saturated"]
    return "".join(f"{head:>12}" for head in heads)


def line(result: Result) -> str:
    """Return a run's row of the table."""
    cells = [
        f"{result.actors}",
        f"{result.steps_per_second:,.0f}",
        f"{result.share:.1%}",
        f"{result.cores:.2f}",
        f"{result.machine:.0%}",
        *(f"{result.microseconds[role]:.1f}" for role in ROLES),
        f"{result.wait_share:.1%}",
        result.saturated or "nothing",
    ]
    return "".join(f"{cell:>12}" for cell in cells)


def measure(actors: int, seconds: float, latency: float, settings: Sequence[str]) -> Result:
    """Start a run, measure a part of it, and end it."""
    with tempfile.TemporaryDirectory(prefix="pdqn-scaling-") as folder:
        directory = Path(folder, "run")
        with subprocess.Popen(
            _command(actors, latency, settings, directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as run:
            try:
                return _observed(run, directory, actors, seconds, latency)
            finally:
                _end(run)


def _command(actors: int, latency: float, settings: Sequence[str], directory: Path) -> list[str]:
    command = [sys.executable, "-m", "pdqn", "launch", "--env", "pdqn/Latency-v0"]
    command += ["--preset", "none"]
    command += ["--env-arg", f"latency_seconds={latency}", "--console", "off"]
    command += ["--actors", str(actors), "--envs-per-actor", "1", "--time", "1h"]
    command += ["--run-dir", str(directory)]
    for setting in (*_SETTINGS, *settings):
        command += ["--set", setting]
    return command


def _observed(
    run: subprocess.Popen[bytes], directory: Path, actors: int, seconds: float, latency: float
) -> Result:
    """Measure a run from soon after its first learner step."""
    _await(run, lambda: any(line["learner_steps"] for line in _lines(directory)))
    time.sleep(_SETTLE_SECONDS)
    psutil.cpu_percent()
    before, started, told = launcher_seconds(run.pid), time.monotonic(), len(_lines(directory))
    time.sleep(seconds)
    of_launcher = (launcher_seconds(run.pid) - before) / (time.monotonic() - started)
    machine, lines = psutil.cpu_percent(), _lines(directory)[told:]
    rate = growth(lines, "environment_steps")
    used = {role: growth(lines, f"{role}/cpu_seconds") for role in ROLES}
    used["launcher"] = of_launcher
    waits = float(np.mean([line["actor/wait_share"] or 0.0 for line in lines]))
    return Result(
        actors,
        rate,
        rate * latency / actors,
        sum(used.values()),
        machine / 100,
        {role: 1e6 * used[role] / rate for role in ROLES},
        waits,
        saturated(used, machine / 100, waits),
    )


def growth(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the growth per second of a total, 0 where it is not counted.

    A line through all points makes good for reports that come late.
    """
    known = [line for line in lines if line.get(name) is not None]
    times = np.array([line["time_seconds"] for line in known])
    return slope(times, [line[name] for line in known]) if len(known) > 1 else 0.0


def saturated(cores_used: Mapping[str, float], machine: float, waits: float) -> str:
    """Name the resource that keeps more actors from adding steps; empty if there is none.

    Args:
        cores_used: cores that each role used. Replay, learner and launcher have one thread each
            that does most of their work.
        machine: share of all cores that was busy.
        waits: part of the actors' time spent waiting for replay.
    """
    full = [role for role in ("replay", "learner", "launcher") if cores_used[role] > _FULL]
    if full:
        return full[0]
    if machine > _FULL:
        return "cores"
    return "limiter" if waits > 1.0 - _FULL else ""


def launcher_seconds(session: int) -> float:
    """Return the processor seconds of launcher and forkserver so far."""
    seconds = 0.0
    for process in processes.members(session):
        words = processes.title(process).split()
        if words[:1] == ["pdqn"] and words[1] in _REPORTING:
            continue
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _lines(directory: Path) -> list[dict[str, Any]]:
    """Read the whole lines of metrics.jsonl that a report was in."""
    path = directory / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    read = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in read if "learner_steps" in line]


def _await(run: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not happened():
        if run.poll() is not None:
            raise SystemExit(f"the run ended with status {run.returncode} before it learned")
        if time.monotonic() > deadline:
            raise SystemExit(f"the run did not learn within {_START_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)


def _end(run: subprocess.Popen[bytes]) -> None:
    """End a run as Ctrl-C does; kill what is left of it after a while."""
    if run.poll() is None:
        run.send_signal(signal.SIGINT)
    try:
        run.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for process in processes.members(run.pid):
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
