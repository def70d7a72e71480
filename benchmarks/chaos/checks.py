"""The checks after a scenario: each lists what does not hold, in words."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.run import ROLES, Command, GaveUpError, Run, wait_until
from benchmarks.chaos.witness import Testimony, read_testimonies
from pdqn.config import LearnerConfig
from pdqn.errors import UsageError
from pdqn.model import read_model
from pdqn.model_head import FINAL_MODEL

_LEAVE_SECONDS = 45.0
_MOST_BYTES = 2 << 30
_MOST_GROWTH_BYTES = 400 << 20
_SAME_SUM = 1e-6
_LEARNED_SHARE = 0.9
_PUBLISH_PERIOD = LearnerConfig().publish_period
_TRACE = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Takeover:
    """One process of replay that followed another.

    Attributes:
        shard: index of the replay.
        size_before: transitions that the earlier process stored.
        size_after: transitions that the later one began with.
        sum_before: sum of priorities of the earlier one.
        sum_after: sum of priorities that the later one began with.
        batches_lost: batches that were acknowledged, and that the later one does not know.
    """

    shard: int
    size_before: int
    size_after: int
    sum_before: float
    sum_after: float
    batches_lost: int

    @property
    def is_exact(self) -> bool:
        """Return whether nothing was lost, in number or in weight."""
        same = math.isclose(self.sum_before, self.sum_after, rel_tol=_SAME_SUM)
        return not self.batches_lost and self.size_before == self.size_after and same


def takeovers(folder: Path) -> list[Takeover]:
    """Compare each process of replay with the one before it, by the witnesses in a folder."""
    found: list[Takeover] = []
    latest: dict[int, Testimony] = {}
    for testimony in read_testimonies(folder):
        before = latest.get(testimony.shard)
        if before is not None:
            found.append(_takeover(before, testimony))
        latest[testimony.shard] = testimony
    return found


def _takeover(before: Testimony, after: Testimony) -> Takeover:
    began = after.began
    # A kill between the witness and the journal leaves the state of one turn before.
    older, newer = before.last
    same = [s for s in (newer, older) if (s.inserted, s.size) == (began.inserted, began.size)]
    last = min(same, key=lambda s: abs(s.priority_sum - began.priority_sum), default=newer)
    lost = sum(
        max(0, expected - after.recovered.get(stream, 0))
        for stream, expected in before.acknowledged.items()
    )
    return Takeover(
        before.shard, last.size, began.size, last.priority_sum, began.priority_sum, lost
    )


def check_takeovers(run: Run) -> Iterator[str]:
    """Compare what replays recovered with what those before them had."""
    for one in takeovers(run.witness):
        if not one.is_exact:
            yield (
                f"replay {one.shard} lost {one.batches_lost} acknowledged batches: size "
                f"{one.size_before} -> {one.size_after}, sum {one.sum_before:.6g} -> "
                f"{one.sum_after:.6g}"
            )


def check_ledger(summary: Mapping[str, Any], *, may_lose: bool) -> Iterator[str]:
    """Check that the transitions of a summary add up, and that none is lost."""
    counts = summary.get("transitions")
    if not isinstance(counts, dict):
        yield "summary.json has no transitions"
        return
    parts = ("received", "refused", "waiting", "lost", "died")
    if missing := {"made", "sent", *parts} - set(counts):
        yield f"the ledger has no {', '.join(sorted(missing))}"
        return
    if counts["made"] != sum(counts[name] for name in parts):
        yield f"the ledger does not add up: {counts}"
    if counts["received"] > counts["sent"]:
        yield f"more was received than sent: {counts}"
    if counts["lost"] and not may_lose:
        yield f"{counts['lost']} transitions are lost"


def check_model(run: Run) -> Iterator[str]:
    """Check that a run that ended well has a model of nearly all that it learned."""
    steps = run.summary().get("learner_steps") or 0
    try:
        saved = read_model(run.path / FINAL_MODEL).parameter_version if steps else 0
    except (OSError, UsageError) as error:
        yield f"there is no model of {steps} learner steps: {error}"
        return
    # Parameters are published every few steps, and a run of a few steps has no more.
    if saved < min(_LEARNED_SHARE * steps, steps - _PUBLISH_PERIOD):
        yield f"the model is of step {saved} of {steps}"


def check_output(command: Command, *, may_show_trace: bool) -> Iterator[str]:
    """Check that a command showed no traceback of ours, and ends without an empty line."""
    for path in (command.out, command.err):
        text = path.read_text("utf-8", "replace")
        if _TRACE in text and not may_show_trace:
            yield f"{path.name} shows a traceback: {text.strip().splitlines()[-1][:200]}"
        if text.endswith("\n\n"):
            yield f"{path.name} ends with an empty line"


def check_leftovers(run: Run, *, temporary: bool) -> Iterator[str]:
    """Check that all processes end, and with them what they had made for themselves."""
    try:
        wait_until(lambda: not run.members(), _LEAVE_SECONDS, "the end of all processes")
    except GaveUpError:
        yield f"processes are left: {[_title(process) for process in run.members()]}"
    if temporary and (left := sorted(p.name for p in run.temporary.iterdir())):
        yield f"the temporary directory keeps {left}"


def check_memory(before: Mapping[int, int], run: Run) -> Iterator[str]:
    """Check the memory of roles, also beside what the same processes had before."""
    for pid, held in memory_of(run).items():
        if held > _MOST_BYTES:
            yield f"process {pid} holds {held >> 20} MB"
        elif pid in before and held - before[pid] > _MOST_GROWTH_BYTES:
            yield f"process {pid} has grown from {before[pid] >> 20} to {held >> 20} MB"


def memory_of(run: Run) -> dict[int, int]:
    """Return the resident bytes of the run's processes by pid."""
    found = {}
    for process in run.members():
        try:
            found[process.pid] = process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found


def roles_of(run: Run) -> dict[str, int]:
    """Count the processes of each role."""
    return {role: len(run.processes(role)) for role in ROLES}


def _title(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:80]} ({process.status()})"
    except psutil.NoSuchProcess:
        return f"{process.pid}, ended by now"


def now() -> float:
    """Return the clock by which scenarios are measured, in seconds."""
    return time.monotonic()
