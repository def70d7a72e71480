"""The process from which actors are forked, and what the process that has started it knows of it.

It has imported what actors need, so a hundred of them start in seconds and share most of their
memory. Nothing here waits for it: requests go to it and answers come back in turns, and one that
hangs is ended. The processes that it has started live on without it.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import setproctitle

from launcher import safe_path
from launcher.processes import role_process
from launcher.processes.children import (
    LENGTH,
    Forked,
    Order,
    can_fork,
    compute_on_one_thread,
    open_python,
)
from launcher.processes.restarts import Ended, Exit, RestartPolicy
from pdqn.errors import reason_of
from pdqn.silence import ListeningClock

_PRELOAD_SECONDS, _ANSWER_SECONDS = 60.0, 10.0
_RESTARTS = 4
_END_SECONDS = 0.5
_PRELOADED = "launcher.processes.preload"
_MESSAGE = struct.Struct("<Bqq")
_READY, _FORKED, _FAILED, _ENDED = range(4)
_PR_SET_PDEATHSIG = 1


@dataclass
class Patience:
    """The time that a forkserver has for its imports, and then for each answer. Pure.

    Attributes:
        is_ready: it has imported what it shares.
        since: time of its start, of its last answer, or of a request that found it idle.
        asked: number of requests that it has not answered.
    """

    since: float
    is_ready: bool = False
    asked: int = 0

    def ask(self, now: float) -> None:
        """Note a request."""
        if self.is_ready and not self.asked:
            self.since = now
        self.asked += 1

    def hear(self, now: float, *, is_answer: bool) -> None:
        """Note that it is ready, or that it has answered a request."""
        self.is_ready, self.since = True, now
        self.asked -= is_answer

    def lack(self, now: float) -> str:
        """Describe what it takes too long for; empty if it does not."""
        if not self.is_ready:
            late = now - self.since > _PRELOAD_SECONDS
            return f"not ready within {_PRELOAD_SECONDS:g} s" if late else ""
        late = self.asked > 0 and now - self.since > _ANSWER_SECONDS
        return f"no answer for {_ANSWER_SECONDS:g} s" if late else ""


@dataclass
class _Server:
    """One process of a forkserver."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    patience: Patience
    ready_at: float | None = None
    asked: dict[int, Forked] = field(default_factory=dict)
    forked: dict[int, Forked] = field(default_factory=dict)


class ForkServer:
    """The forkserver of this process: one that ends is made again. Use it from one thread.

    It begins with the first process that is wanted of it, or earlier by ``begin``.

    Args:
        preloaded: name of the module that it imports first.

    Attributes:
        is_given_up: it has ended too often, or this system has none; it can start nothing.
        restarts: number of times that it was made again.
    """

    def __init__(self, preloaded: str = _PRELOADED) -> None:
        self.is_given_up = not can_fork()
        self.restarts = -1  # the first one counts as none
        self._preloaded = preloaded
        self._server: _Server | None = None
        self._waiting: deque[Forked] = deque()
        self._policy = RestartPolicy(_RESTARTS)
        self._start_at = 0.0
        self._count = 0
        self._clock = ListeningClock(_ANSWER_SECONDS)

    @property
    def pid(self) -> int:
        """The pid of its present process; 0 if there is none."""
        return 0 if self._server is None else self._server.process.pid

    @property
    def is_ready(self) -> bool:
        """Return whether it has imported what it shares, and forks at once."""
        return self._server is not None and self._server.patience.is_ready

    @property
    def is_sound(self) -> bool:
        """Return whether it has not ended of late."""
        return not self._policy.failures

    def begin(self) -> None:
        """Begin to import what is shared, while the caller finds out what to start."""
        if self._server is None and not self.is_given_up:
            self._begin()

    def share_limits(self) -> None:
        """Give what it forks from now on this process's limit of open files."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self.pid:
            with suppress(OSError):  # it has just ended, and the next one inherits the limit
                resource.prlimit(self.pid, resource.RLIMIT_NOFILE, limit)

    def start(self, order: Order) -> Forked:
        """Have a process started, as soon as the forkserver can."""
        child = Forked(order)
        if child.exit is None:
            self._waiting.append(child)
            self._feed()
        return child

    def turn(self) -> Ended | None:
        """Take in its answers, pass on what waits, notice its end, or make it again."""
        ended = None
        self._clock.turn()
        if self._server is not None:
            is_open = self._hear(self._server)
            lack = self._server.patience.lack(self._clock.seconds)
            if lack or not is_open or self._server.process.poll() is not None:
                ended = self._lose(self._server, lack)
        self._feed()
        return ended

    def close(self) -> None:
        """End the forkserver, and drop what waits for it; what it has started goes on."""
        self.cancel()
        server, self._server = self._server, None
        if server is None:
            return
        server.control.close()  # it then ends by itself, with those that it has found ended
        _end(server.process, of_itself=server.patience.is_ready)
        for child in server.forked.values():
            child.orphan()
        for child in server.asked.values():
            child.cancel()

    def cancel(self) -> None:
        """Drop what waits and has not been asked for: it is not wanted any more."""
        for child in self._waiting:
            child.cancel()
        self._waiting.clear()

    def _feed(self) -> None:
        """Pass on what waits, as far as the forkserver takes it."""
        if self._server is None and self._waiting and time.monotonic() >= self._start_at:
            self._begin()
        server = self._server
        while server is not None and self._waiting:
            child = self._waiting[0]
            self._count += 1
            try:
                if child.exit is None:
                    child.hand_over(server.control, self._count)
                    server.asked[self._count] = child
                    server.patience.ask(self._clock.seconds)
            except (BlockingIOError, ConnectionError):
                return  # it is busy, or has ended, which the next turn notices
            except OSError as error:
                child.fail(reason_of(error))
            self._waiting.popleft()

    def _begin(self) -> None:
        compute_on_one_thread()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._drop(reason_of(error))
            return
        try:
            with theirs:
                process = open_python(__name__, theirs, self._preloaded)
        except OSError as error:
            ours.close()
            self._drop(reason_of(error))
            return
        ours.setblocking(False)
        patience = Patience(self._clock.seconds)
        self._server = _Server(process, ours, patience)
        self.restarts += 1

    def _hear(self, server: _Server) -> bool:
        """Take in the messages that have come; return whether the forkserver is still there."""
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(server.control, _MESSAGE.size, 1)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not message:
                return False
            kind, number, value = _MESSAGE.unpack(message)
            self._take(server, kind, number, value, descriptors)

    def _take(
        self, server: _Server, kind: int, number: int, value: int, descriptors: list[int]
    ) -> None:
        server.patience.hear(self._clock.seconds, is_answer=kind in (_FORKED, _FAILED))
        if kind == _READY:
            server.ready_at = time.monotonic()
        if kind == _ENDED:
            if (child := server.forked.pop(number, None)) is not None:
                child.report(value)
        elif kind == _FAILED:
            server.asked.pop(number).fail(os.strerror(value))
        elif kind == _FORKED and not descriptors:
            # It cannot be watched; without its lifeline it leaves by itself.
            server.asked.pop(number).fail("too many open files")
        elif kind == _FORKED:
            child = server.forked[value] = server.asked.pop(number)
            child.started(value, descriptors[0])

    def _lose(self, server: _Server, lack: str) -> Ended:
        """Note the end of the forkserver, after ending one that hangs."""
        _end(server.process, of_itself=not lack)
        server.control.close()
        cause = lack or Exit(server.process.returncode).cause
        for child in server.forked.values():
            child.orphan()
        for child in server.asked.values():
            # It may have been forked all the same, and then finds its lifeline closed.
            child.fail(f"the forkserver ended ({cause})")
        self._server = None
        now = time.monotonic()
        worked = 0.0 if server.ready_at is None else now - server.ready_at
        wait = self._policy.after_end(worked - (_ANSWER_SECONDS if lack else 0.0))
        self.is_given_up = wait is None
        if self.is_given_up:
            self._drop(f"the forkserver ended ({cause})")
        self._start_at = now + (wait or 0.0)
        return Ended("forkserver", 0, server.process.pid, cause, wait, wanted=False)

    def _drop(self, reason: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail(reason)


def _end(process: subprocess.Popen[bytes], *, of_itself: bool) -> None:
    """Await the end of a process that is about to end of itself; end any other at once."""
    for is_last in (False, True):
        if is_last or not of_itself:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
            return


# ---- the other process ----


def serve(descriptor: int, preloaded: str) -> None:
    """Fork processes until the process that has started this one ends.

    Args:
        descriptor: of the socket to that process.
        preloaded: name of the module to import first.
    """
    # Also one that is stopped must not outlive it. What is forked here does not inherit this.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    setproctitle.setproctitle("pdqn forkserver")
    safe_path.forget()
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    try:
        importlib.import_module(preloaded)
    except Exception:  # noqa: BLE001 - such as one of a library's: at once, without exit functions
        traceback.print_exc()
        os._exit(1)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    control.send(_MESSAGE.pack(_READY, 0, 0))
    with suppress(OSError):  # nobody hears the answers any more
        for number, lifeline in _requests(control, woken):
            _fork(control, number, lifeline)
    list(_reap())  # who inherits them may not
    # Without the exit functions of what it has imported: one of them may wait, or write.
    os._exit(0)


def _requests(control: socket.socket, woken: int) -> Iterator[tuple[int, socket.socket]]:
    """Yield the number and the lifeline of each process that is wanted; report those that end."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(woken, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if woken in ready:
            os.read(woken, 1 << 12)
            for pid, code in _reap():
                control.send(_MESSAGE.pack(_ENDED, pid, code))
        if control.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(control, LENGTH.size, 1)
            if not message:
                return
            (number,) = LENGTH.unpack(message)
            if descriptors:
                yield number, socket.socket(fileno=descriptors[0])
            else:
                control.send(_MESSAGE.pack(_FAILED, number, errno.EMFILE))


def _reap() -> Iterator[tuple[int, int]]:
    """Take leave of the processes that have ended; yield the pid and the exit code of each."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], os.waitstatus_to_exitcode(found[1])


def _fork(control: socket.socket, number: int, lifeline: socket.socket) -> None:
    """Fork a process, and tell its pid with a descriptor of it."""
    with lifeline:
        try:
            pid = os.fork()
        except OSError as error:
            control.send(_MESSAGE.pack(_FAILED, number, error.errno or 0))
            return
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            role_process.run(lifeline)
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        control.send(_MESSAGE.pack(_FAILED, number, error.errno or 0))
        return
    socket.send_fds(control, [_MESSAGE.pack(_FORKED, number, pid)], [descriptor])
    os.close(descriptor)
