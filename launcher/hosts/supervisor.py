"""A supervisor that starts roles as processes of this host, and starts them again when they end.

Processes are forked from a server. If there will be actors, it has imported what they need, so a
hundred of them start in seconds and share most of their memory. On a system without a forkserver
the supervisor spawns them.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext, ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

from launcher import sockets
from launcher.folders import Folder
from launcher.hosts import role_process
from launcher.metrics.roster import MemberState
from launcher.safe_path import safe_path
from pdqn.process import LEAVE, OF_GROUP
from pdqn.socket_files import make_private
from pdqn.transport import Network

_FIRST_BACKOFF_SECONDS = 0.5
_LARGEST_BACKOFF_SECONDS = 30.0
_STABLE_SECONDS = 60.0
_WARM_UP_SECONDS = 120.0
_SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class RestartPolicy:
    """The rule for starting a role again. Pure.

    Attributes:
        allowed: restarts in a row before the supervisor gives the role up. A role that lived for
            a minute has a clean record again.
        failures: ends in a row so far.
    """

    allowed: int
    failures: int = 0

    def after_end(self, lived_seconds: float) -> float | None:
        """Return the seconds to wait before the next start; None to give up."""
        if lived_seconds >= _STABLE_SECONDS:
            self.failures = 0
        self.failures += 1
        if self.failures > self.allowed:
            return None
        return min(_LARGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (self.failures - 1))


@dataclass(frozen=True)
class Ended:
    """The end of a process that nobody had asked to leave, or that did not leave when asked.

    Attributes:
        cause: in words ("exit code 1", "killed by SIGKILL").
        restart_seconds: time until it is started again; None if it is not.
        wanted: True if the role was to keep running; without a restart it is given up.
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
        """Return whether the process is one of those that are wanted, now or after a restart."""
        return not self.retired and (self.process is not None or self.start_at is not None)


class Supervisor:
    """The processes of this host's roles.

    Args:
        address: the coordinator's.
        logs: folder for the roles' logs; None leaves them on standard error.
        restarts: number in a row before a role is given up.
        restarted: restarts of each role so far; the supervisor goes on counting in it.
        network: how the roles reach others; None on the launcher's own host, without keys.
        own_indices: the roles ask for the indices that they have here; otherwise the coordinator
            chooses their indices.
        warm: there will be actors, for which the forkserver prepares what they share.

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
        """Set how many restarts in a row each role may have that is started from now on."""
        self._restarts = restarts

    def warm_up(self) -> None:
        """Wait until the forkserver has imported what it shares; it starts no role before."""
        process = self._context.Process(target=int)  # pyright: ignore[reportAttributeAccessIssue]
        process.start()
        process.join(_WARM_UP_SECONDS)

    def start(self, role: str, index: int) -> None:
        """Start a role."""
        slot = self._slots.setdefault((role, index), _Slot(RestartPolicy(self._restarts)))
        log = None if self._logs is None else self._logs / f"{role}-{index}.log"
        wanted = index if self._own_indices else None
        network = replace(self._network, settings=self.settings)
        try:
            slot.process = self._started(role, index, (role, self._address, wanted, log, network))
        except (FileNotFoundError, ConnectionRefusedError):
            # The socket of the forkserver was removed. Without it, processes share less memory.
            self._context = multiprocessing.get_context("spawn")
            slot.process = self._started(role, index, (role, self._address, wanted, log, network))
        slot.started, slot.start_at = time.monotonic(), None

    def _started(self, role: str, index: int, arguments: tuple[Any, ...]) -> BaseProcess:
        process = self._context.Process(  # pyright: ignore[reportAttributeAccessIssue]
            target=role_process.run_role, args=arguments, name=f"{role} {index}"
        )
        process.start()
        return process

    def check(self, *, may_start: bool = True) -> list[Ended]:
        """List the processes that ended since the last call, and start again what is due.

        Args:
            may_start: False while no role could join, so that nothing is started.
        """
        if isinstance(self._context, ForkServerContext):
            _look_after_forkserver()
        ended = []
        for (role, index), slot in list(self._slots.items()):
            process = slot.process
            if slot.retired and (process is None or not process.is_alive()):
                del self._slots[role, index]
                if process is not None and _was_killed(process):
                    # It hung and could not say goodbye; a role that leaves in order has done so.
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
        """End the process with this pid at once; return False if it is not one of these."""
        for slot in self._slots.values():
            if slot.process is not None and slot.process.pid == pid:
                slot.process.kill()
                return True
        return False

    def resize(self, role: str, count: int) -> None:
        """Bring a role to ``count`` processes: start more, or ask the last ones to leave."""
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
        """Start nothing again: from now on processes are expected to end."""
        self._stopping = True
        for slot in self._slots.values():
            slot.start_at = None

    def alive(self, role: str | None = None) -> int:
        """Count the running processes of a role, or of all roles."""
        return sum(
            slot.process is not None and slot.process.is_alive()
            for (name, _), slot in self._slots.items()
            if role in (None, name)
        )

    def pids(self) -> set[int]:
        """Return the pids of the processes that have not been found ended."""
        started = (slot.process for slot in self._slots.values())
        return {process.pid for process in started if process is not None and process.pid}

    def slots(self) -> dict[tuple[str, int], MemberState]:
        """Map every role started here to the state of its process; stopped if it is to end."""
        return {name: self._state(slot) for name, slot in self._slots.items()}

    def busy(self) -> bool:
        """Tell whether any process runs or waits to be started again."""
        return any(
            slot.process is not None or slot.start_at is not None for slot in self._slots.values()
        )

    def join(self, timeout_seconds: float, roles: Iterable[str]) -> bool:
        """Wait for the processes of some roles to end; return whether all did so in time."""
        deadline = time.monotonic() + timeout_seconds
        wanted = set(roles)
        for (role, _), slot in self._slots.items():
            if role in wanted and slot.process is not None:
                slot.process.join(max(0.0, deadline - time.monotonic()))
        return all(self.alive(role) == 0 for role in wanted)

    def ask_to_leave(self) -> None:
        """Ask every process that still runs to leave in order."""
        self.stop_restarting()
        for slot in self._slots.values():
            if slot.process is not None:
                _ask_to_leave(slot.process)

    def kill_all(self) -> None:
        """End every process that still runs, at once."""
        self.stop_restarting()
        for slot in self._slots.values():
            if slot.process is not None and slot.process.is_alive():
                slot.process.kill()
        for slot in self._slots.values():
            if slot.process is not None:
                slot.process.join(2.0)

    def _state(self, slot: _Slot) -> MemberState:
        if self._stopping or slot.retired:
            # It may still run: a role that has left takes a moment to end.
            return "stopped"
        if slot.process is not None:
            return "starting"
        return "dead" if slot.start_at is None else "restarting"

    def _ended(self, role: str, index: int, slot: _Slot, process: BaseProcess) -> Ended:
        lived = time.monotonic() - slot.started
        refused = process.exitcode == role_process.EXIT_REFUSED
        # The place may still be that of the process before this one, and is free soon.
        taken = process.exitcode == role_process.EXIT_TAKEN and not slot.policy.failures
        final = self._stopping or refused or taken
        wait = None if final else slot.policy.after_end(lived)
        slot.start_at = None if wait is None else time.monotonic() + wait
        return Ended(role, index, process.pid or 0, _cause(process.exitcode), wait)


def _ask_to_leave(process: BaseProcess) -> None:
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, LEAVE)  # not reaped yet: the pid is still its own


def _was_killed(process: BaseProcess) -> bool:
    """Tell whether a signal ended it, other than LEAVE, which ends a role that is just starting."""
    return process.exitcode is not None and process.exitcode < 0 and process.exitcode != -LEAVE


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    refused = exit_code in (role_process.EXIT_REFUSED, role_process.EXIT_TAKEN)
    return "refused" if refused else f"exit code {exit_code}"


@cache
def _forkserver_folder() -> Folder:
    """Keep the folder of the forkserver's socket from cleaners, until this process ends."""
    folder = Folder(Path(get_temp_dir()))
    folder.mark()
    return folder


def _look_after_forkserver() -> None:
    """Make that folder again if it was removed; this process removes it when it ends."""
    folder = _forkserver_folder()
    folder.renew()
    if not folder.is_in_place():
        with suppress(OSError):
            make_private(folder.path)
            folder.take(folder.path)
            folder.mark()


def _context(warm: bool) -> BaseContext:
    """Start the forkserver, which blocks the group's signals for itself and its children."""
    for name in _SINGLE_THREADED:
        os.environ.setdefault(name, "1")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *(["launcher.hosts.forkserver"] if warm else [])])
    sockets.settle_multiprocessing()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUP)
    try:
        with safe_path():
            # The tracker first: starting it unblocks some of the signals again.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUP)
            forkserver.ensure_running()
            _forkserver_folder()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
