"""Processes of roles, as the process that has them started sees them.

A lifeline joins each of them to it: a pair of sockets without a name. Through it the child gets its
order. It closes with the process that has started the child, however that ends, and the child then
leaves. The child sends the byte ``READY`` through it when it is, and in the end its exit code.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.processes.restarts import Exit
from launcher.safe_path import safe_path
from pdqn.errors import reason_of
from pdqn.process import OF_GROUP, READY

if TYPE_CHECKING:
    from pdqn.transport import Network

LENGTH = struct.Struct("<I")
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {0}; {0}.serve({1}, {2!r})"
)
_UNSEEN_SECONDS = 1.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Order:
    """The role that a process is to run.

    Attributes:
        role: actor, replay, learner or evaluator.
        address: the coordinator's.
        index: index that it asks for; None for any.
        log_path: file for its log; None leaves it on standard error.
        network: how it reaches others.
        path: modules are searched there, as in the process that has it started.
        argv: that process's arguments.
    """

    role: str
    address: str
    index: int | None
    log_path: Path | None
    network: Network
    path: tuple[str, ...]
    argv: tuple[str, ...]


class Child:
    """A process of a role, from the wish for it to its end.

    Attributes:
        pid: of the process; 0 until there is one.
        exit: its end; None until ``look`` has noticed it.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.exit: Exit | None = None
        self._lifeline: socket.socket | None = None
        self._ready_at: float | None = None
        self._told: int | None = None

    @property
    def is_alive(self) -> bool:
        """Return whether the process runs, or is still to be started."""
        return self.look() is None

    @property
    def is_ready(self) -> bool:
        """Return whether it has told that it can work, or has ended."""
        return self.look() is not None or self._ready_at is not None

    def look(self) -> Exit | None:
        """Return how it ended; None while it runs, or is still to be started."""
        return self.exit

    def worked_seconds(self, now: float) -> float:
        """Return the seconds since it was ready; 0 if it never was.

        Args:
            now: time of ``time.monotonic``.
        """
        return 0.0 if self._ready_at is None else now - self._ready_at

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended. One that is still to be started gets it then."""

    def abandon(self) -> None:
        """Let the child leave by itself, and wait for no exit code: it has been asked to end."""
        if self._lifeline is not None:
            self._lifeline.close()

    def fail(self, reason: str) -> None:
        """Note that no process could be started."""
        self._end(Exit(failure=reason))

    def cancel(self) -> None:
        """Note that no process has been started, since none is wanted any more."""
        self._end(Exit(0))

    def _give(self, order: Order) -> socket.socket:
        """Make the lifeline, send the order through it, and return the child's end.

        Raises:
            OSError: there are too many open files, or the order is too long.
        """
        self._lifeline, theirs = socket.socketpair()
        data = pickle.dumps(order)
        self._lifeline.setblocking(False)
        if self._lifeline.send(LENGTH.pack(len(data)) + data) != LENGTH.size + len(data):
            theirs.close()
            raise OSError(f"its order has {len(data):,} bytes")
        return theirs

    def _hear(self) -> None:
        """Take in what the child has told: that it is ready, or its exit code."""
        told = b""
        with suppress(OSError):  # nothing has come, or it was killed
            told = self._lifeline.recv(2) if self._lifeline is not None else b""
        for code in told:
            if code == READY:
                self._ready_at = time.monotonic()
            else:
                self._told = code

    def _end(self, how: Exit) -> None:
        self.exit = how
        if self._lifeline is not None:
            self._lifeline.close()


class Direct(Child):
    """A process that this one starts itself, and that imports all that it needs."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        try:
            with self._give(order) as theirs:
                self._process = open_python("launcher.processes.role_process", theirs)
        except OSError as error:
            self.fail(reason_of(error))
        else:
            self.pid = self._process.pid

    def look(self) -> Exit | None:
        """Return how it ended; None while it runs."""
        if self.exit is None and self._ready_at is None:
            self._hear()
        if self.exit is None and (code := self._process.poll()) is not None:
            self._end(Exit(code))
        return self.exit

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.exit is None:
            self._process.send_signal(number)


class Forked(Child):
    """A process that a forkserver is to start, and that lives on without it.

    A descriptor identifies it, not its pid. Once the forkserver has ended, the system may give the
    pid of a process that ended to another one.
    """

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._descriptor = -1
        self._reported: int | None = None
        self._unseen_since = 0.0
        self._is_reported = True
        self._pending: int | None = None
        self._theirs: socket.socket | None = None
        try:
            self._theirs = self._give(order)
        except OSError as error:
            self.fail(reason_of(error))

    def hand_over(self, control: socket.socket, number: int) -> None:
        """Ask a forkserver for the process.

        Raises:
            BlockingIOError: it has not read earlier ones yet.
            OSError: it has ended, or something else is in the way.
        """
        assert self._theirs is not None
        socket.send_fds(control, [LENGTH.pack(number)], [self._theirs.fileno()])
        self._theirs.close()

    def started(self, pid: int, descriptor: int) -> None:
        """Note the process that a forkserver has started."""
        self.pid, self._descriptor = pid, descriptor
        if self._pending is not None:
            self.send_signal(self._pending)

    def report(self, code: int) -> None:
        """Note the exit code that the forkserver reports."""
        self._reported = code

    def orphan(self) -> None:
        """Note that the forkserver is gone, and will report nothing."""
        self._is_reported = False

    def abandon(self) -> None:
        """Let the child leave by itself, and wait for no exit code: it has been asked to end."""
        super().abandon()
        self.orphan()

    def look(self) -> Exit | None:
        """Return how it ended; None while it runs, or is still to be started."""
        if self.exit is None and self._ready_at is None:
            self._hear()
        if self.exit is None and self._descriptor >= 0 and _is_readable(self._descriptor):
            self._unseen_since = self._unseen_since or time.monotonic()
            unseen = time.monotonic() - self._unseen_since > _UNSEEN_SECONDS
            if self._reported is not None:
                self._end(Exit(self._reported))
            elif unseen or not self._is_reported:
                self._hear()
                self._end(Exit(self._told))
        return self.exit

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended. One that is still to be started gets it then."""
        if self._descriptor < 0:
            self._pending = number
        elif self.exit is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def _end(self, how: Exit) -> None:
        super()._end(how)
        if self._theirs is not None:
            self._theirs.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def compute_on_one_thread() -> None:
    """Have the processes that this one starts compute on one thread, unless a person says more.

    There are many of them. A role that may use more threads asks for them.
    """
    for name in _THREADS:
        os.environ.setdefault(name, "1")


def can_fork() -> bool:
    """Return whether this system tells the processes of a forkserver apart by descriptors."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def open_python(module: str, theirs: socket.socket, argument: str = "") -> subprocess.Popen[bytes]:
    """Start Python with the function ``serve`` of a module, which gets a socket.

    It has the signals to the whole group blocked, so that none ends it before it ignores them.

    Args:
        module: the module's full name.
        theirs: the socket, whose descriptor is the function's first argument.
        argument: its second.

    Raises:
        OSError: there can be no more processes.
    """
    path = json.dumps(modules_path())
    start = _START.format(module, theirs.fileno(), argument)
    options = (f"-W{option}" for option in sys.warnoptions)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUP)
    try:
        with safe_path():
            return subprocess.Popen(
                [sys.executable, *options, "-c", start, path],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def modules_path() -> tuple[str, ...]:
    """Return where this process searches modules, for a process that it has started."""
    return tuple(path or os.curdir for path in sys.path)


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal, so that it does not end by it."""
    try:
        status = Path("/proc", str(pid), "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = status.partition("SigCgt:")[2].split()
    return bool(caught) and int(caught[0], 16) >> (number - 1) & 1 == 1


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
