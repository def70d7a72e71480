"""The entry point of a role's process, which a supervisor imports instead of the role itself."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from launcher import safe_path
from launcher.leaving import leave
from pdqn.errors import JoinRefusedError, PlaceTakenError
from pdqn.text import printable, printable_lines
from pdqn.transport import Network

EXIT_REFUSED, EXIT_TAKEN = 3, 4

_Main = Callable[[str, int | None, Path | None, Network | None], None]


def run_role(
    role: str,
    address: str,
    index: int | None,
    log_path: Path | None,
    network: Network | None = None,
) -> None:
    """Run one role, from joining to leaving; the target of its process."""
    safe_path.forget()
    try:
        _main_of(role)(address, index, log_path, network)
    except JoinRefusedError as error:
        _tell(printable(str(error)))
        leave(EXIT_TAKEN if isinstance(error, PlaceTakenError) else EXIT_REFUSED)
    except Exception:  # noqa: BLE001 - multiprocessing would print it with its escapes
        _tell(f"this role failed:\n{printable_lines(traceback.format_exc())}")
        leave(1)
    # The role has closed everything it opened. The interpreter's own teardown of a hundred actors
    # on a few cores would take longer than a person waits after Ctrl-C.
    leave(0)


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
