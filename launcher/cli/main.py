"""The entry point, which reports bad input and failed runs in one line."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

import click

from launcher import streams
from launcher.cli.commands import cli
from launcher.interrupts import Ended, end_at_once
from launcher.leaving import leave
from launcher.terminal import echo
from pdqn.caches import keep_caches_private
from pdqn.driver.child import WITHIN
from pdqn.errors import Interrupted, RunError, UsageError, type_and_first_line
from pdqn.process import PrintableFormatter

_THREADS_SECONDS, _END_SECONDS = 2.0, 4.0


def run_program() -> None:
    """Run a command as a process of its own, which ends with it whatever an environment left."""
    os.environ[WITHIN] = "1"  # whatever this process imports and starts must not start a run
    try:
        main()
    except SystemExit as end:
        if streams.were_shared():
            _end_with_guest(end.code if isinstance(end.code, int) else 1)
        raise


def main() -> None:
    """Run a command, and report bad input and failed runs in one line, without a traceback.

    Raises:
        SystemExit: always, with the exit code.
    """
    _make_streams_usable()
    end_at_once()
    keep_caches_private()
    _settle_variables()
    if logging.lastResort is not None:  # which prints warnings where no log is open
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        _check_directory()
        sys.exit(cli.main(prog_name="pdqn", standalone_mode=False) or 0)
    except UsageError as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 1)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(end := error.__cause__ or error, Ended):
            _fail(end, 128 + end.number)
        if isinstance(end, Interrupted) and end.args:
            _fail(end, 130)
        sys.exit(130)
    except OSError as error:
        _fail(_describe(error), 1)
    except Exception as error:  # noqa: BLE001 - a fault: Python would print it with its escapes
        if _lacks_memory(error):
            words = type_and_first_line(error)
            _fail(f"there is too little memory ({words}): free some, or see ulimit -v", 1)
        echo(traceback.format_exc().rstrip(), err=True)
        sys.exit(1)


def _settle_variables() -> None:
    """Replace environment variables that are meant for others, and that would do harm here."""
    # A notebook's backend, or one for a display, may not exist here. Matplotlib cannot be imported
    # then.
    if "MPLBACKEND" in os.environ:
        os.environ["MPLBACKEND"] = "agg"
    # Some services and editors have a terminal of no size: tables would be empty.
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip("0"):
            del os.environ[name]
    # Numba cannot be imported with a number of threads below 1; others take it for a default.
    if not re.fullmatch(r"\s*0*[1-9]\d*\s*", os.environ.get("NUMBA_NUM_THREADS", "1")):
        del os.environ["NUMBA_NUM_THREADS"]


def _check_directory() -> None:
    """Refuse to start in a directory that was removed: libraries end the process then.

    Raises:
        UsageError: the current directory does not exist.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(
            f"the current directory cannot be used ({error.strerror}); change to another one"
        ) from error


def _end_with_guest(code: int) -> NoReturn:
    """End this process, although an environment in it may have left what goes on.

    Python would wait for threads and processes without a bound, and for exit functions. While it
    ends by itself it also restores the handlers of signals, so the bound is set and met here.
    """
    streams.end_with_errors()
    deadline = time.monotonic() + _THREADS_SECONDS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    signal.signal(signal.SIGALRM, lambda _number, _frame: leave(code))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, _END_SECONDS)
    atexit._run_exitfuncs()
    leave(code)


def _make_streams_usable() -> None:
    """Open each standard stream that is missing, and let the output take any text."""
    # In the order of their descriptors, since each open takes the lowest free one. No file that
    # is opened later can then get one of them, and with it what somebody prints.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - to the end
            os.set_inheritable(stream.fileno(), True)  # roles inherit their streams
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A table with a few wrong characters is better than a traceback.
        sys.stdout.reconfigure(errors="replace")


def _lacks_memory(error: BaseException) -> bool:
    """Tell whether memory was refused, also for a library that was to be loaded."""
    refused = ("failed to map segment", "cannot allocate memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in refused)


def _describe(error: OSError) -> str:
    """Say what went wrong, and name the file if there is one."""
    words = error.strerror or str(error)
    return words if error.filename is None else f"{error.filename}: {words}"


def _fail(error: BaseException | str, code: int) -> None:
    with contextlib.suppress(OSError):  # nobody can read it, but the exit code still tells
        echo(f"pdqn: {error}", err=True)
    sys.exit(code)
