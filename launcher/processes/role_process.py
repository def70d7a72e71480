"""The entry point of a role's process, which a supervisor imports instead of the role itself."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launcher import safe_path
from launcher.leaving import leave
from launcher.processes.children import LENGTH, Order
from pdqn import process
from pdqn.errors import JoinRefusedError, PlaceTakenError, type_and_first_line
from pdqn.text import printable, printable_lines

if TYPE_CHECKING:
    from pdqn.transport import Network

    _Main = Callable[[str, int | None, Path | None, Network | None], None]

EXIT_REFUSED, EXIT_TAKEN = 3, 4
_LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


def serve(descriptor: int, _: str = "") -> None:
    """Run the role of a process that was started by itself; its lifeline has this descriptor."""
    os.set_inheritable(descriptor, False)
    safe_path.forget()
    run(socket.socket(fileno=descriptor))


def run(lifeline: socket.socket) -> NoReturn:
    """Run the role that the lifeline orders, from joining to leaving, and end this process."""
    code = 1
    try:
        order = _read(lifeline)
        sys.path[:], sys.argv[:] = order.path, order.argv
        process.end_with(lifeline.fileno())
        code = _run_role(order)
        lifeline.send(bytes([code]))
    except OSError:
        pass  # nobody is there any more
    finally:
        # The role has closed everything it opened. The interpreter's own teardown of a hundred
        # actors on a few cores would take longer than a person waits after Ctrl-C.
        leave(code)


def _run_role(order: Order) -> int:
    """Run a role; return its exit code."""
    try:
        _main_of(order.role)(order.address, order.index, order.log_path, order.network)
    except JoinRefusedError as error:
        _tell(printable(str(error)))
        return EXIT_TAKEN if isinstance(error, PlaceTakenError) else EXIT_REFUSED
    except Exception as error:  # noqa: BLE001 - Python would print it with its escapes
        _tell(f"this role failed: {describe_failure(error)}")
        return 1
    return 0


def describe_failure(error: Exception) -> str:
    """Describe what ended a role: with its traceback, or in one line if the machine's limits did.

    A role may meet such a limit before it has a log, and would show the traceback on the terminal.
    """
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return printable(type_and_first_line(error))
    return "\n" + printable_lines("".join(traceback.format_exception(error)).rstrip())


def _read(lifeline: socket.socket) -> Order:
    """Read the order.

    Raises:
        OSError: whoever gave it is gone.
    """
    with lifeline.makefile("rb") as file:
        (length,) = LENGTH.unpack(file.read(LENGTH.size).ljust(LENGTH.size, b"\0"))
        data = file.read(length)
    with contextlib.suppress(BlockingIOError):
        if not lifeline.recv(1, socket.MSG_DONTWAIT):
            raise ConnectionResetError  # it is not wanted any more
    return pickle.loads(data)  # noqa: S301 - through a line without a name, from its parent


def _tell(text: str) -> None:
    """Tell the log of this role, or the person who joined."""
    with contextlib.suppress(Exception):
        print(f"pdqn: {text}", file=sys.stderr)  # noqa: T201 - there may be no log


def _main_of(role: str) -> _Main:
    """Import what a role runs, and nothing else: replay does without torch."""
    match role:
        case "actor":
            from actors.process import run_actor as main
        case "evaluator":
            from actors.evaluator import run_evaluator as main
        case "replay":
            from replay.process import run_replay as main
        case "learner":
            from learner.process import run_learner as main
        case _:
            raise ValueError(f"there is no role {role!r}")
    return main
