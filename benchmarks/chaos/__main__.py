"""The campaign: ``python -m benchmarks.chaos``; see the kinds with ``--list``."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.chaos import surroundings
from benchmarks.chaos.kinds import kinds
from benchmarks.chaos.scenario import Outcome, Plan, Scenario, as_report, make_plan

# Runs of these take less than a minute, two at a time, on two cores.
_SHORT = ("kill-everything", "kill-replay", "flip-segment", "garbage")


def main() -> int:
    """Play the scenarios, and print a line for each and a table by kind."""
    options = _options()
    if options.list:
        for kind in kinds():
            print(f"{kind.name:26} {kind.words}")
        return 0
    # A shell or nohup may have this ignore signals, and runs would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    surroundings.keep_mounts_private()
    base = Path(tempfile.mkdtemp(prefix="c-", dir=options.folder))
    began = time.monotonic()
    outcomes = _play_all(_chosen(options), base, options)
    _print_table(outcomes)
    failed = sum(bool(outcome.failures) for outcome in outcomes)
    skipped = sum(bool(outcome.skipped) for outcome in outcomes)
    print(
        f"{len(outcomes)} scenarios of {len({o.plan.kind.name for o in outcomes})} kinds in "
        f"{time.monotonic() - began:.0f} s: {failed} failed, {skipped} skipped; {options.report}"
    )
    if not failed:
        shutil.rmtree(base, ignore_errors=True)
    return 1 if failed else 0


def _play_all(plans: list[Plan], base: Path, options: argparse.Namespace) -> list[Outcome]:
    """Play the scenarios, several at a time; after Ctrl-C, return those that have ended."""
    scenarios = [Scenario(plan, base / str(plan.number)) for plan in plans]
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(_play, scenario, options.seed) for scenario in scenarios]
        try:
            for future in as_completed(futures):
                outcomes.append(future.result())
                # A campaign takes hours: what it has found so far is always on the disk.
                content = json.dumps([as_report(outcome) for outcome in outcomes], indent=1)
                Path(options.report).write_text(content + "\n", encoding="utf-8")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for scenario in scenarios:
                scenario.abort()
    return outcomes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Break runs on purpose, and check what is left.")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole campaign")
    parser.add_argument("--count", type=int, default=0, help="scenarios [default: each kind once]")
    parser.add_argument("--scenario", type=int, nargs="*", help="play only these numbers")
    parser.add_argument("--kind", nargs="*", help="play only these kinds, once each")
    parser.add_argument("--short", action="store_true", help="four kinds, in less than a minute")
    parser.add_argument("--jobs", type=int, default=1, help="scenarios at the same time")
    parser.add_argument("--list", action="store_true", help="list the kinds")
    parser.add_argument("--folder", default="/tmp", help="folder for the runs, with a short path")
    parser.add_argument("--report", default="chaos.json", help="file for the report")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Plan]:
    known = kinds()
    names = options.kind or (_SHORT if options.short else ())
    unknown = set(names) - {kind.name for kind in known}
    if unknown:
        sys.exit(f"unknown kinds: {', '.join(sorted(unknown))}; see --list")
    if names:
        return [make_plan(known, number, options.seed, name) for number, name in enumerate(names)]
    numbers = options.scenario or range(options.count or len(known))
    return [make_plan(known, number, options.seed) for number in numbers]


def _play(scenario: Scenario, seed: int) -> Outcome:
    plan, folder = scenario.plan, scenario.folder
    outcome = scenario.play()
    state = "FAILED" if outcome.failures else "skipped" if outcome.skipped else "ok"
    recovered = ", ".join(f"{seconds:.1f}" for seconds in outcome.recoveries) or "-"
    print(
        f"{plan.number:4} {plan.name:40} seed {seed}  {state:7} {outcome.seconds:5.0f} s  "
        f"goes on after {recovered} s  {outcome.skipped}{'; '.join(outcome.failures)}",
        flush=True,
    )
    if outcome.failures:
        print(f"     kept in {folder}; faults: {'; '.join(outcome.notes)}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _print_table(outcomes: list[Outcome]) -> None:
    by_kind: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.plan.kind.name].append(outcome)
    print(f"\n{'kind':26} {'runs':>4} {'ok':>4} {'skipped':>7} {'recovery, s (median, most)':>28}")
    for name, group in sorted(by_kind.items()):
        times = sorted(seconds for outcome in group for seconds in outcome.recoveries)
        shown = f"{times[len(times) // 2]:.1f}, {times[-1]:.1f}" if times else "-"
        good = sum(not o.failures and not o.skipped for o in group)
        skipped = sum(bool(o.skipped) for o in group)
        print(f"{name:26} {len(group):4} {good:4} {skipped:7} {shown:>28}")


if __name__ == "__main__":
    sys.exit(main())
