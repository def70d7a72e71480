"""Runs that a study starts, each as a command of its own: ``pdqn launch``."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.about import read_json
from launcher.rundir import CONFIG, SUMMARY
from launcher.studies.listing import has_ended
from pdqn.errors import UsageError

# What a member returns that a person has interrupted, so that its study ends as well.
EXIT_INTERRUPTED = 130
# A terminal's Ctrl-C reaches the member too. Told again within a second, it does not count twice.
_FORWARD_SECONDS = 0.3
_TURN_SECONDS = 0.1
_PARENT_DIES = 1  # PR_SET_PDEATHSIG, from linux/prctl.h
_LIBC = ctypes.CDLL(
    None
)  # loaded before a fork, in which another thread may hold the loader's lock


class Member:
    """A run of a study, from its start to its end.

    Args:
        name: what the study calls it.
        run_dir: its directory. A run that is there already goes on.
        options: options of ``pdqn launch`` for a new run.
        console: its console, ``off`` where its lines go into a file.
        cores: cores that it may use; None for all.
        lasting: those of its options that no run directory holds, so that a run that goes on needs
            them again, such as the Dask cluster.

    Attributes:
        code: its exit code; None while it runs.
    """

    def __init__(
        self,
        name: str,
        run_dir: Path,
        options: Sequence[str],
        console: str,
        cores: frozenset[int] | None = None,
        lasting: Sequence[str] = (),
    ) -> None:
        self.name, self.run_dir = name, run_dir
        self.code: int | None = None
        self._told_at: float | None = None
        goes_on = (run_dir / CONFIG).is_file()
        new = ["--run-dir", str(run_dir), *options]
        where = ["--resume", str(run_dir), *lasting] if goes_on else new
        ending = ["--console", console, "--interrupt-exit", str(EXIT_INTERRUPTED)]
        self._log = None
        if console == "off":
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            self._log = run_dir.with_name(f"{run_dir.name}.out").open("ab")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pdqn", "launch", *where, *ending],
                stdin=None if self._log is None else subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                preexec_fn=lambda: _prepare(cores),
            )
        finally:
            if self._log is not None:
                self._log.close()

    def look(self) -> int | None:
        """Return its exit code; None while it runs."""
        if self.code is None:
            self.code = self._process.poll()
            if self.code == -signal.SIGTERM:
                # The signal came again when it had done all, and its handlers were gone.
                self.code = EXIT_INTERRUPTED
            if self._told_at is not None and time.monotonic() >= self._told_at:
                self._told_at = None
                self._send(signal.SIGTERM)
        return self.code

    def end(self) -> None:
        """Have it end in order, with everything saved."""
        if self._told_at is None:
            self._told_at = time.monotonic() + _FORWARD_SECONDS

    def stop_now(self) -> None:
        """Have it end in order now; a terminal has not told it."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)
        self._process.wait()

    def _send(self, number: int) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def _prepare(cores: frozenset[int] | None) -> None:
    """Confine the process to its cores, and have it end in order if the study is killed."""
    if cores is not None:
        os.sched_setaffinity(0, cores)
    _LIBC.prctl(_PARENT_DIES, signal.SIGTERM)


def is_complete(run_dir: Path) -> bool:
    """Return whether a run came to its limit or its goal, and has nothing left to do."""
    summary = read_json(run_dir / SUMMARY)
    return has_ended(summary) and not summary.get("error")


def shares_of(cores: Sequence[int], parallel: int) -> list[frozenset[int]]:
    """Split the cores among members that run at the same time.

    Raises:
        UsageError: there are fewer cores than members.
    """
    if parallel > len(cores):
        raise UsageError(
            f"--parallel {parallel}: this machine has {len(cores)} usable cores; "
            f"at most {len(cores)} runs fit"
        )
    bounds = [index * len(cores) // parallel for index in range(parallel + 1)]
    return [frozenset(cores[a:b]) for a, b in itertools.pairwise(bounds)]


def pause() -> None:
    """Wait a moment between two looks at members."""
    time.sleep(_TURN_SECONDS)
