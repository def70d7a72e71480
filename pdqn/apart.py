"""A process that runs functions which call a person's code, apart from the process that asks.

An environment may do anything to its process: replace signal handlers, change directory, print,
start threads that never end, or end the process. Where only an answer is needed, this happens in a
process of its own. That process has no input, and its output is kept apart. It leads a process
group, and ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from types import GeneratorType
from typing import Any, Generic, TypeVar, cast

import setproctitle

from pdqn.errors import NotTrustedError, RunError, UsageError, own_place, with_place
from pdqn.text import printable

T = TypeVar("T")
KEPT_BYTES = 16384
_TURN_SECONDS = 0.05
_READ_BYTES = 1 << 16
_MOST_READS = 16  # of a turn, so that an environment that prints on and on holds nobody up
_LAST_WORDS_CHARACTERS = 300
# The time that the process has to tell where it hangs, once its time is over.
_TELL_SECONDS = 2.0
_LONGEST_SECONDS = 1e9  # an alarm of much more than that is refused by the system
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import pdqn.apart as a; a.serve()"
)
_KINDS = {kind.__name__: kind for kind in (NotTrustedError, UsageError, RunError)}


class ApartError(RunError):
    """Failure of a function, or the end of its process, in one line that says how it came about.

    Attributes:
        hangs: whether there was no answer in time.
    """

    def __init__(self, text: str, last_words: str = "", *, hangs: bool = False) -> None:
        super().__init__(f"{text}; it printed last: {last_words}" if last_words else text)
        self.hangs = hangs


@dataclass(frozen=True)
class _Call:
    """A request of the process that asks.

    Attributes:
        function: a function of a module.
        args: its arguments.
        seconds: time after which the process tells where it is.
        path: the asking process's ``sys.path``.
        argv: its ``sys.argv``.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    seconds: float
    path: list[str]
    argv: list[str]


@dataclass(frozen=True)
class _Answer:
    """A result, or a failure.

    Attributes:
        value: what the function returned.
        failure: text of the failure; empty if there is a value.
        kind: name of the error's type, if it is one of ours.
        ended: whether the function asked for the end of the program.
    """

    value: Any = None
    failure: str = ""
    kind: str = ""
    ended: bool = False


class Task(Generic[T]):
    """A function that runs apart: ask ``done`` in a loop that stays in touch, then ``result``.

    Attributes:
        seconds: time after which the function counts as hanging.
    """

    def __init__(self, apart: Apart, seconds: float) -> None:
        self._apart, self.seconds = apart, seconds
        self._began = time.monotonic()
        self._answer: _Answer | None = None
        self._error: ApartError | None = None

    @property
    def waited_seconds(self) -> float:
        """Time since the function was called."""
        return time.monotonic() - self._began

    def done(self, wait_seconds: float = 0.0) -> bool:
        """Wait for at most this time; return whether there is a result or a failure."""
        deadline = time.monotonic() + wait_seconds
        while self._answer is None and self._error is None:
            left = max(0.0, deadline - time.monotonic())
            self._look(min(left, _TURN_SECONDS))
            if time.monotonic() >= deadline:
                break
        return self._answer is not None or self._error is not None

    def result(self) -> T:
        """Return what the function returned, once it has.

        Raises:
            UsageError: it raised that.
            RunError: it raised that.
            ApartError: it raised something else, it ended its process, or its time is over.
        """
        while not self.done(1.0):
            pass
        if self._error is not None:
            raise self._error
        answer = cast("_Answer", self._answer)
        if not answer.failure:
            return cast("T", answer.value)
        words = self._apart.last_words if answer.ended else ""
        kind = _KINDS.get(answer.kind)
        if kind is None:
            raise ApartError(answer.failure, words)
        raise kind(str(ApartError(answer.failure, words)))

    def _look(self, wait_seconds: float) -> None:
        try:
            self._answer = self._apart.receive(wait_seconds)
        except ApartError as error:
            self._error = error
        over = self.waited_seconds > self.seconds + _TELL_SECONDS
        if over and self._answer is None and self._error is None:
            self._error = self._apart.overdue(self.seconds)


class Apart:
    """A process that runs one function after another; ``close`` ends it.

    Args:
        title: noun that ps and top show after ``pdqn``.
    """

    def __init__(self, title: str) -> None:
        reading, self._calls = Pipe(duplex=False)
        self._answers, writing = Pipe(duplex=False)
        output, printed = os.pipe()
        trace, traced = os.pipe()
        self._output, self._trace = _Kept(output), _Kept(trace)
        theirs = (reading.fileno(), writing.fileno(), traced)
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-u", "-P", *(f"-W{option}" for option in sys.warnoptions),
                    "-c", _START, json.dumps(sys.path), *map(str, theirs), title,
                ],
                stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, pass_fds=theirs,
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            self._close_pipes()
            raise
        finally:
            reading.close()
            writing.close()
            os.close(printed)
            os.close(traced)
        self._ready = True

    @property
    def pid(self) -> int:
        """The process's id, which is also its group's."""
        return self._process.pid

    def begin(
        self, function: Callable[..., T | Iterator[T]], *args: Any, seconds: float
    ) -> Task[T]:
        """Call a function there.

        Args:
            function: a function of a module that both processes can import. If it is a generator,
                the first value is the answer, and what follows happens after it has been sent.
            args: its arguments, of types that can be pickled.
            seconds: time after which the function counts as hanging.
        """
        call = _Call(function, args, seconds, sys.path, sys.argv)
        self._ready = False
        # A process that has ended is found when its answer is asked for.
        with contextlib.suppress(BrokenPipeError):
            self._calls.send(call)
        return Task(self, seconds)

    def is_ready(self, wait_seconds: float) -> bool:
        """Wait for at most this time; return whether the last function has ended altogether."""
        deadline = time.monotonic() + wait_seconds
        with contextlib.suppress(ApartError):
            while (
                self._process.returncode is None
                and not self._ready
                and (left := deadline - time.monotonic()) > 0
            ):
                self.receive(min(left, _TURN_SECONDS))
        return self._ready

    def receive(self, wait_seconds: float) -> _Answer | None:
        """Wait for at most this time; return the answer if there is one.

        Raises:
            ApartError: the process has ended.
        """
        ended = self._has_ended()  # asked first: it may answer and then end
        pipes = [self._answers, *self._output.open, *self._trace.open]
        found = wait(pipes, 0.0 if ended else wait_seconds)
        self._output.read()
        self._trace.read()
        if self._answers in found:
            try:
                message = self._answers.recv()
            except (EOFError, OSError):
                ended = ended or self._has_ended(wait_seconds=1.0)
            else:
                self._ready = message is None
                return message
        if ended:
            raise ApartError(f"{self._how_ended()}{self._at()}", self.last_words)
        return None

    def overdue(self, seconds: float) -> ApartError:
        """Describe a function that has not answered in time, and end its process."""
        text = f"no answer for {seconds:g} s{self._at()}"
        error = ApartError(text, self.last_words, hangs=True)
        self.close()
        return error

    @property
    def output(self) -> str:
        """The last of what the process has printed."""
        self._output.read()
        return self._output.text

    @property
    def last_words(self) -> str:
        """The last line that the process has printed, shortened, or an empty string."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return printable(lines[-1])[:_LAST_WORDS_CHARACTERS] if lines else ""

    def close(self) -> None:
        """End the process and its group at once."""
        if self._process.returncode is None:
            # Before it is waited for: afterwards the system may give the number to another group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self._calls, self._answers, self._output, self._trace):
            pipe.close()

    def _has_ended(self, wait_seconds: float = 0.0) -> bool:
        """Return whether the process has ended, and leave its number to it."""
        deadline = time.monotonic() + wait_seconds
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self._process.pid, options) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_TURN_SECONDS / 5)
        return True

    def _how_ended(self) -> str:
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        if found.si_code == os.CLD_EXITED:
            return f"its process ended with exit code {found.si_status}"
        name = signal.Signals(found.si_status).name
        memory = " (out of memory?)" if found.si_status == signal.SIGKILL else ""
        return f"its process was ended by {name}{memory}"

    def _at(self) -> str:
        self._trace.read()
        place = own_place(_frames(self._trace.text))
        return f" ({place})" if place else ""


class _Kept:
    """The last bytes that came through a pipe."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.open = [descriptor]
        self._bytes = b""

    @property
    def text(self) -> str:
        return self._bytes.decode(errors="replace")

    def read(self) -> None:
        """Read what is there."""
        for _ in range(_MOST_READS if self.open else 0):
            try:
                read = os.read(self.open[0], _READ_BYTES)
            except BlockingIOError:
                return
            if not read:
                self.close()
                return
            self._bytes = (self._bytes + read)[-KEPT_BYTES:]

    def close(self) -> None:
        while self.open:
            os.close(self.open.pop())


def _frames(dump: str) -> list[tuple[str, int]]:
    """Read the main thread's frames, innermost first, from faulthandler's text."""
    before, *sections = dump.split(" (most recent call first):\n")
    if not sections:
        return []
    # After a fault the text tells which thread is at fault; otherwise the main thread is the last.
    headings = [part.rpartition("\n")[2] for part in (before, *sections[:-1])]
    at_fault = [heading.startswith("Current thread") for heading in headings]
    section = sections[at_fault.index(True) if True in at_fault else -1]
    found: list[tuple[str, int]] = []
    for line in section.splitlines():
        name, quote, rest = line.strip().removeprefix('File "').rpartition('", line ')
        number = rest.partition(" ")[0]
        if not quote or not number.isdigit():
            break
        found.append((name, int(number)))
    return found


def serve() -> None:
    """Answer calls until the asking process closes their pipe; the whole of the other process."""
    *descriptors, title = sys.argv[2:]
    calls_fd, answers_fd, trace_fd = map(int, descriptors)
    for descriptor in (calls_fd, answers_fd, trace_fd):
        os.set_inheritable(descriptor, False)
    setproctitle.setproctitle(f"pdqn {title}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person interrupts the asking process
    faulthandler.enable(trace_fd)
    threading.Thread(target=_end_with_asker, args=(calls_fd,), daemon=True).start()
    calls, answers = Connection(calls_fd, writable=False), Connection(answers_fd, readable=False)
    while True:
        call: _Call = calls.recv()
        sys.path += [entry for entry in call.path if entry not in sys.path]
        sys.argv = call.argv
        faulthandler.dump_traceback_later(min(call.seconds, _LONGEST_SECONDS), file=trace_fd)
        _answer(call, answers)
        faulthandler.cancel_dump_traceback_later()
        answers.send(None)


def _end_with_asker(calls_fd: int) -> None:
    """End this process's group once the other end of the pipe is closed."""
    closed = select.poll()
    closed.register(calls_fd, 0)  # no event but its end
    closed.poll()
    os.killpg(0, signal.SIGKILL)


def _answer(call: _Call, answers: Connection) -> None:
    """Run a function, and send its answer before it tidies up."""
    rest: Iterator[Any] = iter(())
    try:
        value = call.function(*call.args)
        if isinstance(value, GeneratorType):
            rest, value = value, next(value)
        answer = _Answer(value)
    except BaseException as error:  # noqa: BLE001 - a person's code may raise anything
        answer = _failure(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be closed, or something else by now
            stream.flush()
    try:
        answers.send(answer)
    except Exception as error:  # noqa: BLE001 - pickling may raise anything
        answers.send(_failure(error))
    with contextlib.suppress(BaseException):
        for _ in rest:
            pass


def _failure(error: BaseException) -> _Answer:
    kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "")
    ended, cause = False, error
    while cause is not None and not ended:
        ended, cause = isinstance(cause, SystemExit), cause.__cause__ or cause.__context__
    return _Answer(None, str(error) if kind else with_place(error), kind, ended)
