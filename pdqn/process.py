"""The start of every role's process: its name, its log, and a watch on its parent."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import setproctitle

from pdqn import handlers
from pdqn.logs import OutputLog
from pdqn.text import printable, printable_lines

if TYPE_CHECKING:  # a role's process may begin without numpy
    from pdqn.specs import EnvironmentSpec

# The signal with which a supervisor asks a role to leave. It is not SIGTERM: `timeout`, systemd and
# batch systems send that to a whole process group, and the launcher then ends the run in order.
LEAVE = signal.SIGUSR1
# The signal with which it has a role write its stacks into its log, before it ends one that hangs.
DUMP = signal.SIGUSR2
# What a role tells the process that has had it started, once it can work. Not an exit code.
READY = 255
# Signals that usually reach the whole process group.
OF_GROUP = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_ORPHAN_GRACE_SECONDS = 5.0
_LOG_SECONDS = 1.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_MOST_HOST_CHARACTERS = 80
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class PrintableFormatter(logging.Formatter):
    """The format of log lines, without what a terminal would obey: people read logs with cat."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, and escape what its message and traceback quote."""
        return printable_lines(super().format(record))


class _Parent:
    """The line to the process that has had this one started; None to the parent of Python's."""

    line: int | None = None


def leave_processor(niceness: int) -> None:
    """Leave the processor to others from now on, by a niceness of 1 to 19.

    Linux shares it among sessions before niceness counts within each (autogroup in sched(7)). A
    process that leads a session of its own therefore lowers the session as well.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # not every system has this
            Path("/proc/self/autogroup").write_text(str(niceness), "ascii")


def end_with(line: int) -> None:
    """Have every watch from now on watch a descriptor, which becomes readable at the other's end.

    Args:
        line: the descriptor, of a pipe or socket.
    """
    _Parent.line = line


class ParentWatch:
    """A watch on the process that had this one started; it ends this one when that is gone.

    The line to that process closes when it ends, whatever the cause. The role sees ``gone``
    and leaves in order. If it hangs, the watch ends the process after a few seconds.

    Args:
        log: log that it keeps within its bound meanwhile, if there is one.

    Attributes:
        gone: whether the parent has ended, or has asked this process to leave with ``LEAVE``.
        is_dismissed: whether it has asked with ``LEAVE``.
        log_trouble: why there is no log at first; empty if there is one, or if none was asked for.
    """

    def __init__(self, log: OutputLog | None = None) -> None:
        self.gone = self.is_dismissed = False
        self.log_trouble = "" if log is None else log.trouble
        handlers.install(LEAVE, self._told)
        self._line = _Parent.line
        if self._line is None and (parent := multiprocessing.parent_process()) is not None:
            self._line = parent.sentinel
        if self._line is not None:
            threading.Thread(target=self._watch, name="parent watch", daemon=True).start()
        # Apart from the watch, since a disk may not answer.
        if log is not None:
            threading.Thread(target=self._tend, args=(log,), name="log", daemon=True).start()

    @property
    def is_watching(self) -> bool:
        """Return whether there is a line to that process, so that its end is noticed."""
        return self._line is not None

    def tell_ready(self) -> None:
        """Tell the process that has had this one started that this one can work now."""
        if _Parent.line is not None:
            with suppress(OSError):  # it has just ended
                os.write(_Parent.line, bytes([READY]))

    def _told(self, _number: int, _frame: FrameType | None) -> None:
        self.gone = self.is_dismissed = True

    def _watch(self) -> None:
        assert self._line is not None
        wait([self._line])
        self.gone = True
        time.sleep(_ORPHAN_GRACE_SECONDS)
        os._exit(1)

    def _tend(self, log: OutputLog) -> None:
        while not self.gone:
            log.tend()
            time.sleep(_LOG_SECONDS)


def own_host() -> str:
    """Return this host's name, as members tell it each other."""
    return printable(socket.gethostname())[:_MOST_HOST_CHARACTERS]


def set_title(role: str, index: int | None) -> None:
    """Name this process for top and ps, such as ``pdqn actor 17``."""
    setproctitle.setproctitle(f"pdqn {role}" if index is None else f"pdqn {role} {index}")


def prepare(role: str, index: int | None, log_path: Path | None) -> ParentWatch:
    """Make this process a role: name it, open its log, and ignore signals to the process group.

    Args:
        role: actor, replay, learner or evaluator.
        index: index of the role, if known before joining.
        log_path: file for the log, standard output and standard error; None keeps them as they are.

    Returns:
        the watch on the parent process.
    """
    set_title(role, index)
    # Only the launcher decides what Ctrl-C or a closed terminal means.
    for number in OF_GROUP:
        handlers.install(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_GROUP)
    log = None if log_path is None else OutputLog(log_path)
    # A stream of its own: an environment may close the standard ones.
    own = os.dup(2) if log is None else log.copy()
    lines = logging.StreamHandler(
        open(  # noqa: SIM115 - to the end
            own, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
        )
    )
    # C code that does not return to Python is seen as well.
    faulthandler.register(DUMP, file=own, chain=False)
    lines.setFormatter(PrintableFormatter(_LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[lines], force=True)
    return ParentWatch(log)


def keep_little_free_memory(spec: EnvironmentSpec, envs: int) -> None:
    """Make the allocator return large freed blocks to the system, for processes that are numerous.

    By default, glibc keeps up to 64 MB of them for reuse. With these bounds, an actor needs a sixth
    less memory and is as fast. A learner, whose blocks are larger, would be slower.

    Args:
        spec: the environment's.
        envs: environments of this process. Each step takes and frees their observations, so that a
            few times as much is kept.
    """
    batch_bytes = envs * spec.observation_bytes * spec.frame_stack
    kept = min(max(2 << 20, 4 * batch_bytes), 1 << 30)
    _set_allocator(mmap_threshold=min(max(4 << 20, kept), 32 << 20), trim_threshold=kept)


def keep_freed_memory() -> None:
    """Make the allocator keep freed blocks for reuse, for a process that computes on a CPU.

    A learner frees the activations of each step, and takes as many for the next. By default, glibc
    returns them to the system in between. A third of a learner's time then went into new pages.
    """
    _set_allocator(mmap_threshold=32 << 20, trim_threshold=1 << 30)


def _set_allocator(*, mmap_threshold: int, trim_threshold: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold)
