"""The limit of a process's own memory, which ends it before the machine swaps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from pdqn.errors import RunError

# What the interpreter, its libraries and the allocator may take beside the plan.
SLACK_BYTES = 10**9
_MACHINE_SHARE = 0.9
_STATUS = Path("/proc/self/status")
_OWN = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB$", re.MULTILINE)
_ADVICE = {
    "actor": "its environment may keep what it should free, or need more than was planned",
    "evaluator": "its environment may keep what it should free, or need more than was planned",
    "replay": "more waits or is stored than was planned",
    "learner": "its network or its batches may need more than was planned",
    "launcher": "end the run in time, and go on with --resume",
    "run": "its environment may keep what it should free; --resume goes on from the last save",
}


class MemoryLimitError(RunError):
    """The end of a process that holds more memory than its limit."""


@dataclass
class MemoryLimit:
    """A limit of memory: a multiple of what is planned, and a fixed slack. Pure.

    Attributes:
        role: role of the process, ``launcher``, or ``run`` for all roles in one process.
        planned_bytes: memory that is planned for the process; 0 if nothing is, without a limit.
        multiple: ``system.memory_limit``; 0 turns the limit off.
        machine_bytes: memory of the whole machine; 0 if it is not known. Beyond nine tenths of it
            the machine would swap, however much was planned.
    """

    role: str
    planned_bytes: int = 0
    multiple: float = 0.0
    machine_bytes: int = 0

    @property
    def limit_bytes(self) -> int:
        """The limit; 0 if there is none."""
        if not self.planned_bytes or not self.multiple:
            return 0
        limit = int(self.multiple * self.planned_bytes) + SLACK_BYTES
        room = int(_MACHINE_SHARE * self.machine_bytes)
        return min(limit, max(room, self.planned_bytes)) if room else limit

    @property
    def _within(self) -> str:
        unbounded = self.multiple * self.planned_bytes + SLACK_BYTES
        return "" if self.limit_bytes == int(unbounded) else ", within this machine's memory"

    def settle(self, held_bytes: int) -> None:
        """Count as planned what a process holds once it works: an environment may be large."""
        if self.planned_bytes:
            self.planned_bytes = max(self.planned_bytes, held_bytes)

    def excess(self, held_bytes: int) -> str:
        """Say that a process holds more than its limit, and what helps; empty if it does not."""
        if not self.limit_bytes or held_bytes <= self.limit_bytes:
            return ""
        return (
            f"holds {_shown(held_bytes)} of memory, more than its limit of "
            f"{_shown(self.limit_bytes)} (system.memory_limit = {self.multiple:g} times the "
            f"expected {_shown(self.planned_bytes)}, and {_shown(SLACK_BYTES)}{self._within}): "
            f"{_ADVICE[self.role]}; a higher system.memory_limit allows more, 0 any amount"
        )


def machine_bytes() -> int:
    """Return the memory of this machine."""
    return psutil.virtual_memory().total


def held_bytes() -> int:
    """Measure the memory that this process holds, without pages of files, which can be dropped.

    Memory that processes share counts in each of them. It is 0 where it cannot be measured now, as
    in a process that has no descriptor left.
    """
    try:
        found = _OWN.findall(_STATUS.read_bytes())
        # Not every system has this file.
        return 1024 * sum(map(int, found)) if found else psutil.Process().memory_info().rss
    except FileNotFoundError:
        return psutil.Process().memory_info().rss
    except OSError:
        return 0


def _shown(amount_bytes: int) -> str:
    unit, name = (10**9, "GB") if amount_bytes >= 10**9 else (10**6, "MB")
    return f"{amount_bytes / unit:.3g} {name}"
