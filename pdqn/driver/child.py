"""The process of a run that this program drives: the command ``pdqn launch``, and what it tells.

Two pipes lead to it: one brings lines of JSON (``launcher/console/driven.py`` writes them), and one
takes orders, a word a line. Threads read, so nobody has to look for the run to go on. No handler of
a signal is set: a program in a notebook or a thread keeps its own. If this program ends, however it
does, the pipes close, and the run ends in order.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pdqn.errors import RunError, UsageError
from pdqn.own_modules import ROOT

# Set in every process of a run: a script that one of them imports must not start a run again.
WITHIN = "PDQN_INSIDE"
_TURN_SECONDS = 0.5  # longest sleep of who waits: some platforms hear Ctrl-C only between two
_LAST_LINES_SECONDS = 5.0
_LEAVE_SECONDS = 20.0
_MOST_MESSAGES, _MOST_ERRORS, _MOST_CHARACTERS = 1000, 200, 10_000


class Child:
    """A run's process. Attributes may be read at any time; ``changed`` is held to wait for news.

    Args:
        arguments: of ``pdqn launch``.
        layers: named settings, which override all others.
        folders: further folders in which the run's processes find modules.

    Attributes:
        changed: notified at every line of the run, and at its end.
        progress: the newest state of the run, as the driven console writes it; empty before.
        lines: number of such states so far.
        messages: newest lines that the run has shown.
        said: number of such lines so far.
        summary: how the run went; empty before its end.
        code: the exit code; None while the process lives.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        layers: Iterable[tuple[str, Mapping[str, Any]]],
        folders: Sequence[str],
    ) -> None:
        self.changed = threading.Condition()
        self.progress: Mapping[str, Any] = {}
        self.lines = self.said = 0
        self.messages: deque[str] = deque(maxlen=_MOST_MESSAGES)
        self.summary: Mapping[str, Any] = {}
        self.code: int | None = None
        self._errors: deque[str] = deque(maxlen=_MOST_ERRORS)
        self._was_interrupted = False
        self._process = start(["launch", "--console", "driven", *arguments], folders)
        assert self._process.stdin is not None
        self._orders: IO[str] = self._process.stdin
        self._tell(json.dumps(list(layers)))
        self._readers = [
            self._begin(self._read, self._process.stdout),
            self._begin(self._read_errors, self._process.stderr),
        ]
        self._begin(self._await_end)
        atexit.register(self._leave)

    def order(self, word: str) -> None:
        """Give an order; nothing happens if the run has ended."""
        self._tell(word)

    def interrupt(self, *, again: bool = False) -> None:
        """End the run as Ctrl-C does: in order, or at once the second time.

        Args:
            again: interrupt it once more if it was interrupted already.
        """
        if self.code is None and (again or not self._was_interrupted):
            self._was_interrupted = True
            self._process.send_signal(signal.SIGINT)

    def wait_for_news(self, lines: int, seconds: float) -> bool:
        """Wait until there are more states than this, or the end; tell whether there are."""
        with self.changed:
            return self.changed.wait_for(
                lambda: self.lines > lines or self.code is not None, min(_TURN_SECONDS, seconds)
            )

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process, for some seconds at most; tell whether it has ended."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while self.code is None and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(min(_TURN_SECONDS, left))
        return self.code is not None

    def failure(self) -> Exception | None:
        """Return the error with which the process ended; None if there is none."""
        if not self.code:
            return None
        said = [line for line in self._errors if line.strip()]
        text = str(self.summary.get("error") or (said[-1] if said else ""))
        text = text.removeprefix("pdqn: ").removeprefix("error: ")
        if self.code == 2:
            return UsageError(text)
        how = f"the run ended with exit code {self.code}"
        return RunError(text or how)

    @property
    def last_error(self) -> str:
        """The last line that the process wrote to its standard error."""
        return next((line for line in reversed(self._errors) if line.strip()), "")

    @staticmethod
    def _begin(target: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name="pdqn-run", daemon=True)
        thread.start()
        return thread

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended: its end says why
            self._orders.write(line + "\n")
            self._orders.flush()

    def _read(self, stream: IO[str]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            for line in stream:
                with contextlib.suppress(ValueError):  # a line of somebody else's
                    self._take(json.loads(line))

    def _take(self, content: Any) -> None:
        if not isinstance(content, dict):
            return
        with self.changed:
            if content.get("event") == "progress":
                self.progress = content
                self.lines += 1
            elif content.get("event") == "message":
                self.messages.append(str(content.get("text")))
                self.said += 1
            elif content.get("event") == "summary":
                self.summary = content["summary"] | {"error": content.get("error")}
            self.changed.notify_all()

    def _read_errors(self, stream: IO[str]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            for line in stream:
                self._errors.append(line.rstrip("\n")[:_MOST_CHARACTERS])

    def _await_end(self) -> None:
        """Notice the end of the process, also if something that it started keeps its pipes."""
        code = self._process.wait()
        atexit.unregister(self._leave)
        deadline = time.monotonic() + _LAST_LINES_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(OSError, ValueError):
            self._orders.close()
        with self.changed:
            self.code = code
            self.changed.notify_all()

    def _leave(self) -> None:
        """End the run with this program, and leave no process behind."""
        self.interrupt()
        if not self.wait(_LEAVE_SECONDS):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def start(arguments: Sequence[str], folders: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a ``pdqn`` command in a session of its own, which Ctrl-C here does not reach.

    Args:
        arguments: of the command.
        folders: further folders in which it finds modules.
    """
    given = os.environ.get("PYTHONPATH")
    # A program may have found pdqn itself by changing its path.
    own = [str(ROOT)] if str(ROOT) in sys.path else []
    path = os.pathsep.join([*([given] if given else []), *folders, *own])
    return subprocess.Popen(
        [sys.executable, "-m", "pdqn", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | ({"PYTHONPATH": path} if path else {}),
        start_new_session=True,
    )


def output_of(arguments: Sequence[str], folders: Sequence[str] = ()) -> str:
    """Run a ``pdqn`` command to its end, and return what it prints.

    Raises:
        UsageError, RunError: it refused its arguments, or failed.
    """
    process = start(arguments, folders)
    try:
        out, err = process.communicate()
    except BaseException:
        process.terminate()
        try:
            process.communicate(timeout=_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        raise
    if process.returncode:
        lines = err.strip().splitlines()
        text = lines[-1].removeprefix("pdqn: ") if lines else f"exit code {process.returncode}"
        raise UsageError(text) if process.returncode == 2 else RunError(text)
    return out


def is_run_directory(path: Path) -> bool:
    """Tell whether a run has begun in a directory."""
    return (path / "config.toml").is_file()
