"""The rule for starting a role again, and the ends that it is about. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass

_FIRST_BACKOFF_SECONDS = 0.5
_LARGEST_BACKOFF_SECONDS = 30.0
_WORKED_SECONDS = 20.0


@dataclass
class RestartPolicy:
    """The rule for starting a role again. Pure.

    Attributes:
        allowed: restarts in a row before the supervisor gives the role up.
        enough_seconds: time of work after which a role has a clean record again.
        failures: ends in a row so far.
    """

    allowed: int
    enough_seconds: float = _WORKED_SECONDS
    failures: int = 0

    def after_end(self, worked_seconds: float) -> float | None:
        """Return the seconds to wait before the next start; None to give up.

        Args:
            worked_seconds: time from when it was ready until it ended or began to hang; 0 if it
                was never ready. A slow start that fails is not work.
        """
        if worked_seconds >= self.enough_seconds:
            self.failures = 0
        self.failures += 1
        if self.failures > self.allowed:
            return None
        return min(_LARGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (self.failures - 1))


@dataclass(frozen=True)
class Exit:
    """The end of a process, or of the attempt to start it.

    Attributes:
        code: exit code, or the negative number of the signal that ended it; None if nobody saw it.
        failure: why there was no process, in words; empty if there was one.
    """

    code: int | None = None
    failure: str = ""

    @property
    def cause(self) -> str:
        """Describe the end in words, such as ``exit code 1`` or ``killed by SIGKILL``."""
        if self.failure:
            return f"not started: {self.failure}"
        if self.code is None:
            return "exit code unknown"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"


@dataclass(frozen=True)
class Ended:
    """The end of a process that nobody had asked to leave, or that did not leave when asked.

    Attributes:
        pid: of the process; 0 if it could not be started.
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
