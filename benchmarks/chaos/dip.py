"""The dip in the return after a kill of replay: ``python -m benchmarks.chaos.dip``.

Each seed has three runs on CartPole. One has no kill. The others have one, with the journal and
without it. The return is averaged over the learner steps after the kill.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.chaos import faults as f
from benchmarks.chaos.faults import Case
from benchmarks.chaos.run import Run, read_lines, wait_until

_PATIENCE_SECONDS = 900.0
_RETURN = "rollout/ep_rew_mean"
_CASES = {"no kill": ("write", False), "journal": ("write", True), "no journal": ("off", True)}
_OPTIONS = (
    "--env", "CartPole-v1", "--preset", "none", "--mode", "parallel",
    "--time", "2h", "--console", "json",
    "--set", "system.pictures=false", "--set", "evaluation.enabled=false",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
)  # fmt: skip


def main() -> None:
    """Play all runs, and print returns and paired differences."""
    parser = argparse.ArgumentParser(description="Measure what a kill of replay costs learning.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--at", type=int, default=1500, help="learner steps before the kill")
    parser.add_argument("--over", type=int, default=700, help="learner steps after it")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--folder", default="/tmp", help="folder for the runs, with a short path")
    options = parser.parse_args()
    print(f"mean return over {options.over} learner steps after step {options.at}")
    print(f"{'seed':>6}" + "".join(f"{name:>14}" for name in _CASES))
    returns: dict[str, list[float]] = {name: [] for name in _CASES}
    for seed in options.seeds:
        for name, (journal, kills) in _CASES.items():
            returns[name].append(_play(seed, journal, options, kills=kills))
        print(f"{seed:6}" + "".join(f"{found[-1]:14.1f}" for found in returns.values()), flush=True)
    for name in ("journal", "no journal"):
        pairs = zip(returns[name], returns["no kill"], strict=True)
        mean, error = mean_and_error([100 * (a / b - 1) for a, b in pairs])
        print(f"{name}: {mean:+.1f} +- {error:.1f}% against no kill, paired by seed")


def _play(seed: int, journal: str, options: argparse.Namespace, *, kills: bool) -> float:
    """Play one run; return its mean return after the kill, or after the same step without one."""
    folder = Path(tempfile.mkdtemp(prefix="c-", dir=options.folder))
    run = Run(folder, {})
    arguments = ["--run-dir", str(run.path), *_OPTIONS, "--actors", str(options.actors)]
    run.make_folders()
    run.launch(*arguments, "--seed", str(seed), "--set", f"replay.journal={journal}")
    try:
        _wait_for(run, options.at)
        if kills:
            f.kill("replay", every=True)(Case(run, f.random.Random(seed)))
        _wait_for(run, options.at + options.over)
        run.interrupt()
        run.end(60.0)
    finally:
        run.end_all()
    found = _mean_return(run, options.at, options.at + options.over)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _wait_for(run: Run, steps: int) -> None:
    wait_until(lambda: run.learner_steps() >= steps, _PATIENCE_SECONDS, f"learner step {steps}")


def _mean_return(run: Run, first: int, last: int) -> float:
    """Average the return over learner steps, each line counting for the steps since the last."""
    weighed = steps = 0.0
    before = first
    for line in read_lines(run.path / "metrics.jsonl", 1 << 30):
        now, value = line.get("learner_steps"), line.get(_RETURN)
        if now is None or value is None or now <= before:
            continue
        weight = min(now, last) - before
        weighed += value * weight
        steps += weight
        before = min(now, last)
        if now >= last:
            break
    return weighed / steps if steps else math.nan


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    if len(values) < 2:
        return statistics.mean(values), math.nan
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
