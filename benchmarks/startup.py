"""The time until a command answers and a run begins: ``python -m benchmarks.startup``.

Each measurement is a process of its own, several times over; the table has the medians. Wall time
depends on what else the machine does. The processor time of all processes until then hardly does.
A run's moments come from its ``events.jsonl``. The first steps are those that a report has told
the launcher, up to a fifth of a second after they were taken.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PDQN = (sys.executable, "-c", "from launcher.cli.main import run_program; run_program()")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "pdqn --help": (*PDQN, "--help"),
    "pdqn check": (*PDQN, "check"),
    "pdqn check --env CartPole-v1": (*PDQN, "check", "--env", "CartPole-v1"),
}
IMPORTS = ("torch", "numba", "gymnasium", "numpy", "matplotlib")
# The goals of a machine with two idle cores, in seconds of wall time.
GOALS = {
    "pdqn --help": 0.3,
    "pdqn check": 2.5,
    "pdqn check --env CartPole-v1": 1.5,
    "first frame": 1.5,
    "first environment step": 4.0,
    "first environment step, 120 actors": 10.0,
}
MOMENTS = {"environment_steps": "first environment step", "learner_steps": "first learner step"}
REPORT_SECONDS, LOOK_SECONDS, PATIENCE_SECONDS = 0.2, 0.02, 120.0

# Wall and processor seconds.
Cost = tuple[float, float]


def main() -> None:
    """Measure everything, and print one table."""
    parser = argparse.ArgumentParser(
        description="Measure how long commands and runs take to begin."
    )
    parser.add_argument("--times", type=int, default=5, help="of each measurement")
    parser.add_argument("--env", default="pdqn/CirclePlacement-v0", help="of the runs")
    parser.add_argument("--actors", type=int, nargs="+", default=[2, 120])
    options = parser.parse_args()
    print(f"{'median of ' + str(options.times):42}{'wall s':>9}{'cpu s':>9}{'goal s':>9}")
    for name, command in COMMANDS.items():
        show(name, repeated(options.times, lambda command=command: cost_of(command)))
    for actors in options.actors:
        runs = [moments_of_run(options.env, actors) for _ in range(options.times)]
        for name in ("first frame", *MOMENTS.values()):
            suffix = "" if actors == options.actors[0] else f", {actors} actors"
            show(name + suffix, [run[name] for run in runs if name in run])
    for name in IMPORTS:
        command = (sys.executable, "-c", f"import {name}")
        show(f"import {name}", repeated(options.times, lambda command=command: cost_of(command)))


def show(name: str, costs: list[Cost]) -> None:
    """Print one row."""
    cells = [f"{statistics.median(column):9.2f}" for column in zip(*costs, strict=True)]
    goal = f"{GOALS[name]:9.2f}" if name in GOALS else ""
    print(f"{name:42}{''.join(cells)}{goal}", flush=True)


def repeated(times: int, measure: Callable[[], Cost]) -> list[Cost]:
    """Measure several times; the first time fills the caches, and does not count."""
    measure()
    return [measure() for _ in range(times)]


def cost_of(command: tuple[str, ...]) -> Cost:
    """Run a command to its end, and return its time and that of all its processes."""
    before, began = spent_by_children(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE_SECONDS)
    return time.perf_counter() - began, spent_by_children() - before


def spent_by_children() -> float:
    """Return the processor seconds of the processes that have ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def moments_of_run(env_id: str, actors: int) -> dict[str, Cost]:
    """Start a run, and return the cost of each moment since its command was typed."""
    with tempfile.TemporaryDirectory() as folder, run_in(folder, env_id, actors) as launcher:
        found: dict[str, Cost] = {}
        accounts: dict[int, float] = {}
        began, run_dir = time.time(), Path(folder) / "run"
        deadline = began + PATIENCE_SECONDS
        while len(found) < 1 + len(MOMENTS) and time.time() < deadline and launcher.is_running():
            cpu = spent_by(launcher, accounts)
            for name, clock in moments_in(run_dir):
                found.setdefault(name, (clock - began, cpu))
            time.sleep(LOOK_SECONDS)
        return found


@contextmanager
def run_in(folder: str, env_id: str, actors: int) -> Iterator[psutil.Process]:
    """Provide the launcher of a run, which is interrupted in the end."""
    settings = (f"system.telemetry_seconds={REPORT_SECONDS}", "system.pictures=false")
    process = subprocess.Popen(
        [
            *PDQN, "launch", "--env", env_id, "--actors", str(actors), "--time", "10m",
            "--run-dir", "run", "--console", "plain",
            *(part for setting in settings for part in ("--set", setting)),
        ],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def moments_in(run_dir: Path) -> Iterator[tuple[str, float]]:
    """Yield the moments that a run's files tell of, with their times of day."""
    with suppress(OSError):
        yield "first frame", (run_dir / "snapshot.json").stat().st_mtime
    with suppress(OSError, json.JSONDecodeError):  # the last line may be half written
        for line in (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["event"] == "first_step":
                yield MOMENTS[event["text"]], event["clock"]


def spent_by(launcher: psutil.Process, accounts: dict[int, float]) -> float:
    """Return the processor seconds of a launcher and everything that it has started.

    Args:
        launcher: the process.
        accounts: those of each process when it was last seen, by pid.
    """
    with suppress(psutil.NoSuchProcess):
        for process in [launcher, *launcher.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                accounts[process.pid] = times.user + times.system
    return sum(accounts.values())


if __name__ == "__main__":
    main()
