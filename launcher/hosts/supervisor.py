"""Starts roles as processes of this host, notices how they end, and starts them again.

Processes are forked from a server that, where there will be actors, has imported what they need:
a hundred of them come up in seconds and share most of their memory. Where there is no forkserver,
they are spawned.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from launcher.hosts import role_process
from launcher.metrics.roster import MemberState
from launcher.safe_path import safe_path
from pdqn.process import LEAVE, OF_GROUP
from pdqn.transport import Network

_FIRST_BACKOFF_SECONDS = 0.5
_LARGEST_BACKOFF_SECONDS = 30.0
_STABLE_SECONDS = 60.0
_WARM_UP_SECONDS = 120.0
_SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class RestartPolicy:
    """When to start a role again. Pure.

    Attributes:
        allowed: restarts in a row before the role is given up; one that lived for a minute
            starts with a clean record.
    """

    allowed: int
    failures: int = 0

    def after_end(self, lived_seconds: float) -> float | None:
        """Seconds to wait before the next start; None to give up."""
        if lived_seconds >= _STABLE_SECONDS:
            self.failures = 0
        self.failures += 1
        if self.failures > self.allowed:
            return None
        return min(_LARGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (self.failures - 1))


@dataclass(frozen=True)
class Ended:
    """A role's process ended without being asked to, or without doing as it was asked.

    Attributes:
        cause: in words ("exit code 1", "killed by SIGKILL").
        restart_seconds: until it is started again; None if it is not.
        wanted: there was to be such a process; where it is not started again it is given up.
    """

    role: str
    index: int
    pid: int
    cause: str
    restart_seconds: float | None
    wanted: bool = True


@dataclass
class _Slot:
    policy: RestartPolicy
    process: BaseProcess | None = None
    started: float = 0.0
    start_at: float | None = None
    retired: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is, or will be again, one of those that are wanted."""
        return not self.retired and (self.process is not None or self.start_at is not None)


class Supervisor:
    """The roles' processes of this host.

    Args:
        address: of the coordinator.
        logs: folder of the roles' logs; None leaves them on standard error.
        restarts: of a role, before it is given up.
        restarted: how often each role has been started again; counted on.
        network: how the roles reach others; None on the launcher's own host, without keys.
        own_indices: whether the roles ask for the indices that they have here; elsewhere the
            coordinator gives them others.
        warm: whether there will be actors, for which the forkserver prepares what they share.

    Attributes:
        settings: of this host, for roles that are started from now on.
    """

    def __init__(
        self,
        address: str,
        logs: Path | None,
        restarts: int,
        restarted: dict[str, int] | None = None,
        network: Network | None = None,
        *,
        own_indices: bool = True,
        warm: bool = True,
    ) -> None:
        self._address = address
        self._logs = logs
        self._restarts = restarts
        self._slots: dict[tuple[str, int], _Slot] = {}
        self._stopping = False
        self._network = network or Network()
        self.settings: Mapping[str, Mapping[str, Any]] = {}
        self._own_indices = own_indices
        self._context = _context(warm)
        self.restarted = {} if restarted is None else restarted

    def set_restarts(self, restarts: int) -> None:
        """Allow so many restarts of every role that is started from now on."""
        self._restarts = restarts

    def warm_up(self) -> None:
        """Wait until the forkserver has imported what it shares: only then does it start roles."""
        process = self._context.Process(target=int)  # pyright: ignore[reportAttributeAccessIssue]
        process.start()
        process.join(_WARM_UP_SECONDS)

    def start(self, role: str, index: int) -> None:
        """Start a role."""
        slot = self._slots.setdefault((role, index), _Slot(RestartPolicy(self._restarts)))
        log = None if self._logs is None else self._logs / f"{role}-{index}.log"
        wanted = index if self._own_indices else None
        process = self._context.Process(  # pyright: ignore[reportAttributeAccessIssue]
            target=role_process.run_role,
            args=(role, self._address, wanted, log, replace(self._network, settings=self.settings)),
            name=f"{role} {index}",
        )
        process.start()
        slot.process = process
        slot.started, slot.start_at = time.monotonic(), None

    def check(self, *, may_start: bool = True) -> list[Ended]:
        """Notice what ended, and start again what is due, if that makes sense now."""
        ended = []
        for (role, index), slot in list(self._slots.items()):
            process = slot.process
            if slot.retired and (process is None or not process.is_alive()):
                del self._slots[role, index]
                if process is not None and _was_killed(process):
                    # It hung and could not say goodbye; who leaves in order has done that.
                    cause = _cause(process.exitcode)
                    ended.append(Ended(role, index, process.pid or 0, cause, None, wanted=False))
                continue
            if process is not None and not process.is_alive():
                slot.process = None
                if process.exitcode == 0 and self._stopping:
                    continue
                ended.append(self._ended(role, index, slot, process))
            due = slot.start_at is not None and time.monotonic() >= slot.start_at
            if due and may_start:
                self.restarted[role] = self.restarted.get(role, 0) + 1
                self.start(role, index)
        return ended

    def kill(self, role: str, index: int) -> None:
        """End one process at once; ``check`` will notice."""
        slot = self._slots.get((role, index))
        if slot is not None and slot.process is not None:
            slot.process.kill()

    def kill_process(self, pid: int) -> bool:
        """End the process with this pid at once; False if it is none of these."""
        for slot in self._slots.values():
            if slot.process is not None and slot.process.pid == pid:
                slot.process.kill()
                return True
        return False

    def resize(self, role: str, count: int) -> None:
        """Have so many processes of a role: start more, or ask the last ones to leave."""
        present = [i for (r, i), s in self._slots.items() if r == role and s.counts]
        for index in sorted(present)[count:]:
            slot = self._slots[role, index]
            slot.retired, slot.start_at = True, None
            if slot.process is not None:
                _ask_to_leave(slot.process)
        free = (i for i in itertools.count() if (role, i) not in self._slots)
        for index in itertools.islice(free, max(0, count - len(present))):
            self.start(role, index)

    def stop_restarting(self) -> None:
        """From now on processes are expected to end."""
        self._stopping = True
        for slot in self._slots.values():
            slot.start_at = None

    def alive(self, role: str | None = None) -> int:
        """Processes of a role (or of all) that run."""
        return sum(
            slot.process is not None and slot.process.is_alive()
            for (name, _), slot in self._slots.items()
            if role in (None, name)
        )

    def slots(self) -> dict[tuple[str, int], MemberState]:
        """Every role that was started here, and how its process is; stopped if it is to end."""
        return {name: self._state(slot) for name, slot in self._slots.items()}

    def busy(self) -> bool:
        """Whether something runs or waits to be started again."""
        return any(
            slot.process is not None or slot.start_at is not None for slot in self._slots.values()
        )

    def join(self, timeout_seconds: float, roles: Iterable[str]) -> bool:
        """Wait for the processes of some roles to end; whether they all did in time."""
        deadline = time.monotonic() + timeout_seconds
        wanted = set(roles)
        for (role, _), slot in self._slots.items():
            if role in wanted and slot.process is not None:
                slot.process.join(max(0.0, deadline - time.monotonic()))
        return all(self.alive(role) == 0 for role in wanted)

    def ask_to_leave(self) -> None:
        """Ask everything that still runs to leave in order."""
        self.stop_restarting()
        for slot in self._slots.values():
            if slot.process is not None:
                _ask_to_leave(slot.process)

    def kill_all(self) -> None:
        """End everything that still runs, at once."""
        self.stop_restarting()
        for slot in self._slots.values():
            if slot.process is not None and slot.process.is_alive():
                slot.process.kill()
        for slot in self._slots.values():
            if slot.process is not None:
                slot.process.join(2.0)

    def _state(self, slot: _Slot) -> MemberState:
        if self._stopping or slot.retired:
            # It may still run: who has left the run takes a moment to end.
            return "stopped"
        if slot.process is not None:
            return "starting"
        return "dead" if slot.start_at is None else "restarting"

    def _ended(self, role: str, index: int, slot: _Slot, process: BaseProcess) -> Ended:
        lived = time.monotonic() - slot.started
        final = self._stopping or process.exitcode == role_process.EXIT_REFUSED
        wait = None if final else slot.policy.after_end(lived)
        slot.start_at = None if wait is None else time.monotonic() + wait
        return Ended(role, index, process.pid or 0, _cause(process.exitcode), wait)


def _ask_to_leave(process: BaseProcess) -> None:
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, LEAVE)  # not reaped yet: the number is still its own


def _was_killed(process: BaseProcess) -> bool:
    """Whether a signal ended it; one that is told to leave before it can heed that dies of it."""
    return process.exitcode is not None and process.exitcode < 0 and process.exitcode != -LEAVE


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return "refused" if exit_code == role_process.EXIT_REFUSED else f"exit code {exit_code}"


def _context(warm: bool) -> BaseContext:
    """The forkserver, started so that nothing that the group is told reaches it or its children."""
    for name in _SINGLE_THREADED:
        os.environ.setdefault(name, "1")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *(["launcher.hosts.forkserver"] if warm else [])])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUP)
    try:
        with safe_path():
            # First: starting the tracker unblocks some of them again.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUP)
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
