"""The soak: a kill every twenty seconds for an hour. ``python -m benchmarks.chaos.soak``.

It samples the memory of each role and the counters of the run. It prints the slopes of memory and
of throughput, with half of their 95% interval, and the ledger at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

from benchmarks.chaos import checks, surroundings
from benchmarks.chaos import faults as f
from benchmarks.chaos.faults import Case
from benchmarks.chaos.run import ROLES, GaveUpError, Run, read_lines

_LEARN_SECONDS = 120.0
_SAMPLE_SECONDS = 2.0
_VICTIMS = (*ROLES, "forkserver")
_CONFIDENCE = 1.96
_OPTIONS = (
    "--env", "CartPole-v1", "--preset", "none", "--mode", "parallel",
    "--time", "24h", "--console", "json",
    "--set", "system.restarts=100000", "--set", "system.metrics_seconds=2",
    "--set", "checkpoint.period_seconds=20", "--set", "replay.capacity=50000",
)  # fmt: skip

Series = defaultdict[str, list[tuple[float, float]]]


def main() -> int:
    """Play the soak, and print slopes and the ledger."""
    parser = argparse.ArgumentParser(description="Kill a role every few seconds for an hour.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between kills")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--replays", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="/tmp", help="folder for the run, with a short path")
    parser.add_argument("--report", default="soak.json", help="file for the samples")
    options = parser.parse_args()
    surroundings.keep_mounts_private()
    folder = Path(tempfile.mkdtemp(prefix="c-", dir=options.folder))
    case = Case(Run(folder, {}), random.Random(options.seed))
    failures: list[str] = []
    try:
        series = _soak(case, options)
        failures += _end(case)
    except GaveUpError as error:
        print(f"FAILED: {error}; kept in {folder}")
        return 1
    finally:
        case.run.end_all()
    Path(options.report).write_text(json.dumps(series) + "\n", encoding="utf-8")
    _print(series, case.run)
    for failure in failures:
        print(f"FAILED: {failure}")
    if not failures:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failures else 0


def _soak(case: Case, options: argparse.Namespace) -> Series:
    """Kill and sample for the whole time."""
    run, series = case.run, Series(list)
    sizes = ["--actors", str(options.actors), "--replays", str(options.replays)]
    run.make_folders()
    run.launch("--run-dir", str(run.path), *_OPTIONS, *sizes, "--seed", str(options.seed))
    run.learns(_LEARN_SECONDS)
    began = time.monotonic()
    next_kill = began + options.every
    while (now := time.monotonic()) < began + 60 * options.minutes:
        _sample(run, series, (now - began) / 60)
        if now >= next_kill:
            next_kill += options.every
            victim = case.rng.choice(_VICTIMS)
            if run.processes(victim):
                f.kill(victim)(case)
        if not run.lives:
            raise GaveUpError(f"the run ended after {(now - began) / 60:.1f} minutes")
        time.sleep(_SAMPLE_SECONDS)
    case.note(f"{len(case.notes)} kills")
    print(f"{case.notes[-1]} in {options.minutes:g} minutes")
    return series


def _sample(run: Run, series: Series, minutes: float) -> None:
    for who in ("launcher", *ROLES, "forkserver"):
        for process in run.processes(who):
            try:
                held = process.memory_info().rss / (1 << 20)
                # A process that starts is not yet as large as it will be.
                if time.time() - process.create_time() > 10:
                    series[f"{who} MB"].append((minutes, held))
            except psutil.NoSuchProcess:
                continue


def _end(case: Case) -> list[str]:
    run = case.run
    run.learns(_LEARN_SECONDS)
    run.interrupt()
    code = run.end(60.0)
    found = [f"exit code {code}"] if code else []
    # An actor that is killed takes with it what was on its way.
    found += checks.check_ledger(run.summary(), may_lose=True)
    found += checks.check_takeovers(run)
    found += checks.check_leftovers(run, temporary=True)
    found += checks.check_output(run.launcher, may_show_trace=False)
    return found


def _print(series: Series, run: Run) -> None:
    lines = [line for line in read_lines(run.path / "metrics.jsonl", 1 << 30) if "time/fps" in line]
    for name in ("environment_steps", "learner_steps"):
        points = [(line["time_seconds"] / 60, line[name]) for line in lines if line.get(name)]
        series[f"{name}/s"] = _rates(points)
    print(f"{'':24} {'mean':>10} {'slope per hour':>16} {'95%':>10}")
    for name, points in series.items():
        if len(points) > 3:
            mean, slope, error = slope_of(by_minute(points))
            print(f"{name:24} {mean:10.1f} {60 * slope:16.2f} {60 * error:10.2f}")
    takeovers = checks.takeovers(run.witness)
    exact = sum(one.is_exact for one in takeovers)
    print(f"{exact} of {len(takeovers)} replays began exactly as the ones before them ended")
    print(f"transitions {run.summary().get('transitions')}")


def _rates(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Turn a counter's points into rates per second, minute by minute."""
    found = []
    first = points[0] if points else (0.0, 0.0)
    for minutes, value in points:
        if minutes - first[0] >= 1:
            found.append((minutes, (value - first[1]) / (60 * (minutes - first[0]))))
            first = (minutes, value)
    return found


def by_minute(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average the points of every minute, since neighbours are not independent."""
    groups: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        groups[int(point[0])].append(point)
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups.values()
    ]


def slope_of(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Fit a line to points; return mean, slope, and half the slope's 95% interval."""
    count = len(points)
    mean_x, mean_y = (sum(column) / count for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if count < 3 or not spread:
        return mean_y, 0.0, math.inf
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return mean_y, slope, _CONFIDENCE * math.sqrt(rest / (count - 2) / spread)


if __name__ == "__main__":
    sys.exit(main())
