"""Answers of tasks on Dask workers, checked where they arrive.

A worker has nothing of this package, so a task returns plain data. See ``task`` for that side.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pdqn.checks import as_prose, as_tuple, check_whole
from pdqn.text import printable
from pdqn.wire import WireError

_UNREADABLE = "the worker's answer cannot be read"
_MAX_TEXT = 10_000


@dataclass(frozen=True)
class WorkerDescription:
    """The machine of a worker, or the reason that the worker cannot be used.

    Attributes:
        hostname: as the machine calls itself.
        pdqn: version of the package that the interpreter has.
        python: version of the interpreter.
        memory_bytes: that are available.
        gpus: names of the GPUs that can be used.
        error: why the worker cannot be used; empty if it can.

    Raises:
        WireError: a field has a value that is not accepted.
    """

    hostname: str = ""
    pdqn: str = ""
    python: str = ""
    cores: int = 0
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()
    error: str = ""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("hostname", "pdqn", "python", "error"):
            object.__setattr__(self, name, as_prose(getattr(self, name), name, _MAX_TEXT))
        check_whole(self.cores, "cores")
        check_whole(self.memory_bytes, "memory_bytes")
        gpus = as_tuple(self.gpus, "gpus")
        gpus = tuple(as_prose(gpu, "a GPU's name", _MAX_TEXT) for gpu in gpus)
        object.__setattr__(self, "gpus", gpus)

    @classmethod
    def of(cls, answer: Any) -> WorkerDescription:
        """Read a task's answer: plain data, or a failure as (type, error, traceback)."""
        if isinstance(answer, tuple):
            return cls(error=printable(str(answer[1]))[:_MAX_TEXT])
        try:
            return cls(**answer)
        except (TypeError, WireError):
            return cls(error=_UNREADABLE)

    def to_map(self) -> dict[str, Any]:
        """Return what is known, for ``pdqn check --dask --json``."""
        known = dataclasses.asdict(self) | {"gpus": list(self.gpus)}
        return {"error": self.error} if self.error else {k: v for k, v in known.items() if v != ""}


@dataclass(frozen=True)
class RoleEnd:
    """The end of a role's process in a worker.

    Attributes:
        code: exit code; negative for a signal.
        tail: the end of what it wrote to standard error.

    Raises:
        WireError: a field has a value that is not accepted.
    """

    code: int
    pid: int
    tail: str

    def __post_init__(self) -> None:
        """Check the fields."""
        check_whole(self.code, "code", least=-255)
        check_whole(self.pid, "pid")
        object.__setattr__(self, "tail", as_prose(self.tail, "tail", _MAX_TEXT, keep="\n\t"))

    @classmethod
    def of(cls, answer: Any) -> RoleEnd | None:
        """Read a task's answer; None if it cannot be read."""
        try:
            return cls(**answer)
        except (TypeError, WireError):
            return None
