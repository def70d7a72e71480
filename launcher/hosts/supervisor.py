"""A supervisor that starts roles as processes of this host, and starts them again when they end.

Actors and evaluators are forked from a server, which has imported what they need. So is a learner,
unless the server has failed and is not ready, and a replay if the server is ready. Otherwise this
process starts them itself, since a run cannot do without them. Where nothing can be forked, it does
so with all roles. No start is waited for.
"""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.metrics.roster import MemberState
from launcher.processes import role_process
from launcher.processes.children import (
    Child,
    Direct,
    Order,
    catches,
    compute_on_one_thread,
    modules_path,
)
from launcher.processes.forkserver import ForkServer
from launcher.processes.restarts import Ended, Exit, RestartPolicy
from pdqn.process import DUMP, LEAVE
from pdqn.transport import Network

_FORKED = ("actor", "evaluator")  # these wait for the server
_WAIT_SECONDS, _KILL_SECONDS = 0.02, 2.0
_DUMP_SECONDS = 0.5  # for a role that hangs to write its stacks
_HURRIED_SECONDS = 0.1  # before a role is started again that the end of a run waits for


@dataclass
class _Slot:
    policy: RestartPolicy
    process: Child | None = None
    start_at: float | None = None
    retired: bool = False
    hung_seconds: float = 0.0
    kill_at: float | None = None

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
        forkserver: what actors are forked from; None where there are none.

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
        forkserver: ForkServer | None = None,
    ) -> None:
        self._address = address
        self._logs = logs
        self._restarts = restarts
        self._slots: dict[tuple[str, int], _Slot] = {}
        self._stopping, self._needed = False, ""
        self._network = network or Network()
        self.settings: Mapping[str, Mapping[str, Any]] = {}
        self._own_indices = own_indices
        compute_on_one_thread()
        self._forkserver = forkserver
        self.restarted = {} if restarted is None else restarted
        self._forkserver_before = self.restarted.get("forkserver", 0)

    def set_restarts(self, restarts: int) -> None:
        """Set how many restarts in a row each role may have that is started from now on."""
        self._restarts = restarts

    def share_limits(self) -> None:
        """Give the roles that are forked from now on this process's limit of open files."""
        if self._forkserver is not None:
            self._forkserver.share_limits()

    def start(self, role: str, index: int) -> None:
        """Have a role started; one that cannot be is found ended by ``check``."""
        slot = self._slots.setdefault((role, index), _Slot(RestartPolicy(self._restarts)))
        log = None if self._logs is None else self._logs / f"{role}-{index}.log"
        wanted = index if self._own_indices else None
        network = replace(self._network, settings=self.settings)
        argv = tuple(sys.argv)
        order = Order(role, self._address, wanted, log, network, modules_path(), argv)
        server = self._forkserver
        # A learner of its own would import torch a second time, while the server does: on few cores
        # a run would begin later. A replay needs no torch.
        waits = role in _FORKED or (role == "learner" and server is not None and server.is_sound)
        if server is not None and (server.is_ready or waits) and not server.is_given_up:
            slot.process = server.start(order)
        else:
            slot.process = Direct(order)
        slot.start_at, slot.hung_seconds, slot.kill_at = None, 0.0, None

    def check(self, *, may_start: bool = True) -> list[Ended]:
        """List the processes that ended since the last call, and start again what is due.

        Args:
            may_start: False while no role could join, so that nothing is started.
        """
        ended = self._turn()
        for (role, index), slot in list(self._slots.items()):
            process = slot.process
            if process is not None:
                _kill_if_due(slot, process)
            end = None if process is None else process.look()
            if slot.retired and (process is None or end is not None):
                del self._slots[role, index]
                if process is not None and end is not None and _was_killed(end):
                    # It hung and could not say goodbye; a role that leaves in order has done so.
                    ended.append(Ended(role, index, process.pid, end.cause, None, wanted=False))
                continue
            if process is not None and end is not None:
                slot.process = None
                if end.code == 0 and self._stopping:
                    continue
                ended.append(self._ended(role, index, slot, process, end))
            due = slot.start_at is not None and time.monotonic() >= slot.start_at
            if due and may_start:
                self.restarted[role] = self.restarted.get(role, 0) + 1
                self.start(role, index)
        return ended

    def _turn(self) -> list[Ended]:
        """Let the forkserver go on; return its end, if it has come to one."""
        server = self._forkserver
        if server is None:
            return []
        ended = server.turn()
        if server.restarts > 0:
            self.restarted["forkserver"] = self._forkserver_before + server.restarts
        return [] if ended is None else [ended]

    def kill(self, role: str, index: int, *, hung_seconds: float = 0.0) -> None:
        """End one process; ``check`` will notice.

        One that hangs first writes its stacks into its log, for half a second. ``check`` ends it.

        Args:
            role: its role.
            index: its index.
            hung_seconds: time for which it has done nothing.
        """
        slot = self._slots.get((role, index))
        if slot is not None and slot.process is not None:
            slot.hung_seconds = hung_seconds
            if slot.kill_at is not None and hung_seconds:
                return  # it is writing them
            if hung_seconds and catches(slot.process.pid, DUMP):
                slot.process.send_signal(DUMP)
                slot.kill_at = time.monotonic() + _DUMP_SECONDS
            else:
                slot.process.send_signal(signal.SIGKILL)

    def kill_process(self, pid: int, *, hung_seconds: float = 0.0) -> bool:
        """End the process with this pid at once; return False if it is not one of these."""
        for (role, index), slot in self._slots.items():
            if slot.process is not None and slot.process.pid == pid:
                self.kill(role, index, hung_seconds=hung_seconds)
                return True
        return False

    def resize(self, role: str, count: int) -> None:
        """Bring a role to ``count`` processes: start more, or ask the last ones to leave."""
        present = [i for (r, i), s in self._slots.items() if r == role and s.counts]
        for index in sorted(present)[count:]:
            slot = self._slots[role, index]
            slot.retired, slot.start_at = True, None
            if slot.process is not None:
                slot.process.send_signal(LEAVE)
        free = (i for i in itertools.count() if (role, i) not in self._slots)
        for index in itertools.islice(free, max(0, count - len(present))):
            self.start(role, index)

    def stop_restarting(self, *, but: str = "") -> None:
        """Start nothing again: from now on processes are expected to end.

        Args:
            but: a role that is still needed, and is started again at once.
        """
        if self._stopping and but == self._needed:
            return
        self._stopping, self._needed = True, but
        if self._forkserver is not None:
            self._forkserver.cancel()
        for (role, _), slot in self._slots.items():
            if slot.start_at is not None:
                slot.start_at = time.monotonic() if role == but else None

    def awaits(self, role: str) -> bool:
        """Tell whether a process of a role is to be started, or is not ready yet."""
        return any(
            slot.start_at is not None if slot.process is None else not slot.process.is_ready
            for (name, _), slot in self._slots.items()
            if name == role
        )

    def alive(self, role: str | None = None) -> int:
        """Count the running processes of a role, or of all roles."""
        return sum(
            slot.process is not None and slot.process.is_alive
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
        while any(self.alive(role) for role in wanted) and time.monotonic() < deadline:
            self._turn()
            time.sleep(_WAIT_SECONDS)
        return all(self.alive(role) == 0 for role in wanted)

    def ask_to_leave(self) -> None:
        """Ask every process that still runs to leave in order."""
        self.stop_restarting()
        for slot in self._slots.values():
            if slot.process is not None:
                slot.process.send_signal(LEAVE)

    def kill_all(self) -> None:
        """End every process that still runs, at once, and the forkserver."""
        self.stop_restarting()
        for slot in self._slots.values():
            if slot.process is not None:
                slot.process.send_signal(signal.SIGKILL)
                slot.process.abandon()
        if self._forkserver is not None:
            self._forkserver.close()
        self.join(_KILL_SECONDS, {role for role, _ in self._slots})

    def _state(self, slot: _Slot) -> MemberState:
        if self._stopping or slot.retired:
            # It may still run: a role that has left takes a moment to end.
            return "stopped"
        if slot.process is not None:
            return "starting"
        return "dead" if slot.start_at is None else "restarting"

    def _ended(self, role: str, index: int, slot: _Slot, child: Child, end: Exit) -> Ended:
        refused = end.code == role_process.EXIT_REFUSED
        # The place may still be that of the process before this one, and is free soon.
        taken = end.code == role_process.EXIT_TAKEN and not slot.policy.failures
        final = refused or taken or (self._stopping and role != self._needed)
        now = time.monotonic()
        worked = child.worked_seconds(now) - slot.hung_seconds
        wait = None if final else slot.policy.after_end(worked)
        if wait is not None and self._stopping:
            wait = min(wait, _HURRIED_SECONDS)
        slot.start_at = None if wait is None else now + wait
        return Ended(role, index, child.pid, _cause(end), wait)


def _kill_if_due(slot: _Slot, process: Child) -> None:
    """End a process that has had the time to write its stacks."""
    if slot.kill_at is not None and time.monotonic() >= slot.kill_at:
        slot.kill_at = None
        process.send_signal(signal.SIGKILL)


def _was_killed(end: Exit) -> bool:
    """Tell whether a signal ended it, other than LEAVE, which ends a role that is just starting."""
    return end.code is not None and end.code < 0 and end.code != -LEAVE


def _cause(end: Exit) -> str:
    refused = end.code in (role_process.EXIT_REFUSED, role_process.EXIT_TAKEN)
    return "refused" if refused else end.cause
