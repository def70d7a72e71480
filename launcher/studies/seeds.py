"""The same run with several seeds: ``pdqn launch --seeds 1:5``."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import status_line
from launcher.interrupts import Interrupts
from launcher.numbers import number, uncertainty
from launcher.rundir import default_path
from launcher.studies.listing import Listed, runs_below
from launcher.studies.members import (
    EXIT_INTERRUPTED,
    Member,
    is_complete,
    pause,
    shares_of,
)
from launcher.terminal import echo
from pdqn.errors import UsageError

_CHECK_SECONDS = 300.0
_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class Seeds:
    """A study over seeds.

    Attributes:
        seeds: of its runs.
        options: options of ``pdqn launch`` that all runs share.
        directory: folder of the runs; None for a new one below ``runs``.
        env: environment, for the name of a new folder.
        console: kind of console for runs that come one after another.
        parallel: runs at the same time.
        lasting: see ``Member``.
    """

    seeds: tuple[int, ...]
    options: tuple[str, ...]
    directory: Path | None
    env: str
    console: str
    parallel: int = 1
    lasting: tuple[str, ...] = ()


def run_seeds(study: Seeds, interrupts: Interrupts) -> int:
    """Run all seeds, and print how they did; return the exit code.

    Seeds that have come to their limit in an earlier call are not run again, and others go on.

    Raises:
        UsageError: the runs do not fit beside each other.
    """
    directory = study.directory or _new_directory(study)
    cores = sorted(os.sched_getaffinity(0))
    shares = shares_of(cores, study.parallel) if study.parallel > 1 else [None]
    if study.parallel > 1:
        check_room(study.options, study.parallel, shares[0], study.seeds[0])
    open_seeds = deque(s for s in study.seeds if not is_complete(directory / f"seed{s}"))
    free, running = deque(shares), list[tuple[Member, Any]]()
    worst, next_line = 0, 0.0
    try:
        while running or (open_seeds and not interrupts.count):
            while open_seeds and free and not interrupts.count:
                seed, share = open_seeds.popleft(), free.popleft()
                running.append((_start(study, directory, seed, share), share))
            for member, share in [pair for pair in running if pair[0].look() is not None]:
                running.remove((member, share))
                free.append(share)
                worst = max(worst, _end_of(member, open_seeds, alone=study.parallel == 1))
            if interrupts.count:
                for member, _ in running:
                    member.end()
            if study.parallel > 1 and time.monotonic() >= next_line:
                next_line = time.monotonic() + _LINE_SECONDS
                status_line.doing(_progress(directory))
            pause()
    finally:
        for member, _ in running:
            member.kill()
    status_line.end()
    for line in summary_lines(runs_below(directory), study.seeds):
        echo(line)
    echo(f"results   {directory}")
    if interrupts.count or worst == EXIT_INTERRUPTED:
        echo("interrupted: the same command with --run-dir goes on", err=True)
        return EXIT_INTERRUPTED
    return worst


def _new_directory(study: Seeds) -> Path:
    first = default_path(study.env, study.seeds[0])
    return first.with_name(first.name.replace(f"__seed{study.seeds[0]}__", "__seeds__"))


def _start(study: Seeds, directory: Path, seed: int, share: frozenset[int] | None) -> Member:
    echo(f"seed {seed}: {directory / f'seed{seed}'}", err=True)
    options = [*study.options, "--seed", str(seed), *memory_options(study.options, study.parallel)]
    console = study.console if study.parallel == 1 else "off"
    run_dir = directory / f"seed{seed}"
    return Member(f"seed {seed}", run_dir, options, console, share, study.lasting)


def _end_of(member: Member, open_seeds: deque[int], *, alone: bool) -> int:
    """Return the exit code that the study has for a member's; end the study where it must."""
    code = member.code or 0
    if code == EXIT_INTERRUPTED or code == 2:
        # A person's wish, or a mistake that all seeds share.
        open_seeds.clear()
    if code and not alone:
        echo(f"{member.name}: exit code {code}, see {member.run_dir}.out", err=True)
    return code if code in (2, EXIT_INTERRUPTED) else min(1, abs(code))


def memory_options(options: Sequence[str], parallel: int) -> list[str]:
    """Return the options that leave each of several runs its share of the memory."""
    if parallel == 1 or any(_about_memory(option) for option in options):
        return []
    return ["--set", f"replay.memory={max(1, 50 // parallel)}%"]


def _about_memory(option: str) -> bool:
    return option.startswith(("replay.memory=", "replay.capacity="))


def check_room(
    options: Sequence[str], parallel: int, share: frozenset[int] | None, seed: int
) -> None:
    """Refuse runs at the same time of which one could not run with its share of the machine.

    Raises:
        UsageError: its plan has errors, or it is refused.
    """
    command = [sys.executable, "-m", "pdqn", "launch", *options, "--seed", str(seed)]
    command += [*memory_options(options, parallel), "--check-only", "--console", "off"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, share or os.sched_getaffinity(0)),
    )  # fmt: skip
    if done.returncode == 0:
        return
    wrong = [line for line in done.stdout.splitlines() if line.startswith("error")]
    told = "; ".join(wrong) or done.stderr.strip().removeprefix("pdqn: ")
    raise UsageError(f"--parallel {parallel}: a run does not fit its share: {told}")


def summary_lines(runs: Sequence[Listed], seeds: Sequence[int]) -> list[str]:
    """Describe the runs of a study, and the mean of their scores with its standard error."""
    known = {run.seed: run for run in runs}
    lines, scores, name = list[str](), list[float](), "return"
    for seed in seeds:
        run = known.get(seed)
        if run is None:
            lines.append(f"seed {seed:<4} not run")
            continue
        name = run.score_name
        shown = "-" if run.score is None else number(run.score)
        lines.append(f"seed {seed:<4} {run.state:<12} {name} {shown}")
        if run.score is not None and run.state == "done":
            scores.append(float(run.score))
    if len(scores) > 1:
        error = statistics.stdev(scores) / math.sqrt(len(scores))
        mean = number(statistics.mean(scores))
        lines.append(f"{name} over {len(scores)} seeds: {mean} ± {uncertainty(error)}")
    return lines


def _progress(directory: Path) -> str:
    """Say in a line how far the runs are."""
    parts = []
    for run in runs_below(directory):
        share = "" if run.progress is None or run.state != "lives" else f" {run.progress:.0%}"
        parts.append(f"seed {run.seed}: {run.state}{share}")
    return "; ".join(parts) or "starts"


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: ``1:5`` for 1 to 5, or ``1,3,7``.

    Raises:
        ValueError: it is neither.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        begin, end = int(first), int(last) if colon else int(first)
        if not 0 <= begin <= end or end - begin >= _MOST_SEEDS:
            raise ValueError(part)
        seeds += range(begin, end + 1)
    if len(set(seeds)) != len(seeds) or len(seeds) > _MOST_SEEDS:
        raise ValueError(text)
    return tuple(seeds)


_MOST_SEEDS = 1000
