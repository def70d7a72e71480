"""Kills again and again in one run: ``python -m benchmarks.chaos.acceptance``.

Each kill prints the transitions and the sum of priorities before and after it. It also prints the
acknowledged batches that are missing, and the seconds until the learner went on. A role that has
worked for 20 s is started again after half a second, so the kills are that far apart.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos import checks, surroundings
from benchmarks.chaos import faults as f
from benchmarks.chaos.faults import Case
from benchmarks.chaos.run import Run

_LEARN_SECONDS = 120.0
_OPTIONS = (
    "--env", "CartPole-v1", "--preset", "none", "--mode", "parallel",
    "--time", "10h", "--console", "json",
    "--set", "system.pictures=false", "--set", "system.restarts=1000",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.5",
    "--set", "checkpoint.period_seconds=5",
)  # fmt: skip


def main() -> int:
    """Play the three series, and print what each kill cost."""
    parser = argparse.ArgumentParser(description="Kill replay, all roles, and the launcher.")
    parser.add_argument("--times", type=int, default=20, help="kills of each series")
    parser.add_argument("--gap", type=float, default=22.0, help="seconds between kills")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--journal", choices=["write", "sync", "off"], default="write")
    parser.add_argument("--series", nargs="*", default=list(_SERIES), choices=list(_SERIES))
    parser.add_argument("--folder", default="/tmp", help="folder for the runs, with a short path")
    options = parser.parse_args()
    surroundings.keep_mounts_private()
    good = [_play(name, options) for name in options.series]
    return 0 if all(good) else 1


def _play(name: str, options: argparse.Namespace) -> bool:
    """Play one series; return whether nothing was lost."""
    folder = Path(tempfile.mkdtemp(prefix="c-", dir=options.folder))
    case = Case(Run(folder, {}), f.random.Random(0))
    run = case.run
    print(f"\n{name}: {options.times} times")
    print(f"{'':>3} {'size before':>11} {'after':>9} {'sum before':>14} {'after':>14} "
          f"{'batches lost':>12} {'s':>6}")  # fmt: skip
    arguments = ["--run-dir", str(run.path), *_OPTIONS, "--actors", str(options.actors)]
    run.make_folders()
    run.launch(*arguments, "--set", f"replay.journal={options.journal}")
    seconds: list[float] = []
    try:
        run.learns(_LEARN_SECONDS)
        for number in range(options.times):
            run.learns(_LEARN_SECONDS, steps=50)
            time.sleep(options.gap if number and name != "launcher" else 3.0)
            before = len(checks.takeovers(run.witness))
            _SERIES[name](case)
            seconds.append(run.learns(_LEARN_SECONDS))
            for one in checks.takeovers(run.witness)[before:]:
                print(f"{number + 1:3} {one.size_before:11,} {one.size_after:9,} "
                      f"{one.sum_before:14.6f} {one.sum_after:14.6f} {one.batches_lost:12} "
                      f"{seconds[-1]:6.2f}", flush=True)  # fmt: skip
        run.interrupt()
        code = run.end(60.0)
    finally:
        run.end_all()
    found = checks.takeovers(run.witness)
    exact = sum(one.is_exact for one in found)
    lost = sum(one.batches_lost for one in found)
    print(
        f"{exact} of {len(found)} exact; {lost} acknowledged batches lost; learning went on after "
        f"{statistics.mean(seconds):.2f} s (mean), {max(seconds):.2f} s (most)"
    )
    print(f"exit code {code}; transitions {run.summary().get('transitions')}")
    good = exact == len(found) >= options.times and code == 0
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"kept in {folder}")
    return good


def _kill_launcher(case: Case) -> None:
    """Kill the launcher, wait until its roles have left, and resume."""
    f.kill("launcher")(case)
    case.run.end(10.0)
    checks.wait_until(lambda: not case.run.members(), 45.0, "the end of all roles")
    case.run.launch("--resume", str(case.run.path), "--console", "json")


_SERIES: dict[str, Callable[[Case], None]] = {
    "replay": f.kill("replay", every=True),
    "all roles": f.kill("roles", every=True),
    "launcher": _kill_launcher,
}


if __name__ == "__main__":
    sys.exit(main())
