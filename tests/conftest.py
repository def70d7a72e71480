"""Helpers of several test files: real commands, bounded waiting, and a look for leftovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.chaos import processes
from launcher.plan import inspector

# With a thread a core in each worker of pytest-xdist, these would spin while they wait for each
# other. Torch looks at it when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The helpers of multiprocessing live as long as the process that needed them first.
_HELPERS = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
# Bounds, for a machine that has much else to do.
_LEAVE_SECONDS = 20.0
_COMMAND_SECONDS = 90.0
_STOP_SECONDS = 20.0


def wait_until(happened: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Ask until the answer is true, and return it; fail when that takes too long."""
    deadline = time.monotonic() + seconds
    while not (answer := happened()):
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} s"
        time.sleep(0.02)
    return answer


class Command:
    """A ``pdqn`` command in a session of its own, as a terminal starts one.

    Everything that it starts is in that session, wherever it is in the tree of processes.
    Leftovers are found even if the command was killed.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        directory: Path,
        variables: Mapping[str, str],
        prefix: tuple[str, ...] = (),
        output: int | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"command-{len(list(directory.glob('command-*.out')))}"
        self.directory, self.arguments = directory, arguments
        self._out = directory / f"{name}.out"
        self._err = directory / f"{name}.err"
        # Short, since sockets lie in it.
        self._temporary = tempfile.TemporaryDirectory(prefix="t-")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PDQN_")}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*prefix, str(Path(sys.executable).with_name("pdqn")), *arguments],
                cwd=directory,
                env=environment | {"COLUMNS": "300", "TMPDIR": self._temporary.name, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out if output is None else output,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        ended = self.process.poll() is not None
        if error is not None:
            self._show_what_was_said(ended)
        left = self._await_the_end() if ended else self.members()
        for process in left:
            process.kill()
        code = self.process.wait(_LEAVE_SECONDS)
        sockets = list(Path(self._temporary.name).glob("pdqn-*"))
        self._temporary.cleanup()
        assert not (ended and left), f"the command left {left}"
        assert not (ended and code >= 0 and sockets), f"the command left {sockets}"

    @property
    def stdout(self) -> str:
        return self._out.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def wait(self, seconds: float = _COMMAND_SECONDS) -> int:
        """Wait for the command to end by itself; its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            text = f"{self.stdout[-3000:]}\n{self.stderr[-3000:]}"
            pytest.fail(f"the command did not end within {seconds:g} s\n{text}")

    def members(self) -> list[psutil.Process]:
        """The command's process and all that it has started, as far as they live."""
        return processes.members(self.process.pid)

    def role(self, role: str, index: int = 0) -> psutil.Process | None:
        """The process with the title of a role."""
        titled = (p for p in self.members() if processes.title(p) == f"pdqn {role} {index}")
        return next(titled, None)

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ctrl-C: the terminal sends SIGINT to the whole process group; or another signal."""
        os.killpg(self.process.pid, number)

    def _show_what_was_said(self, ended: bool) -> None:
        """Print what the command said: pytest shows it with the failure."""
        sys.stdout.write(f"$ pdqn {' '.join(self.arguments)}: {'ended' if ended else 'goes on'}\n")
        for path in (self._out, self._err, *self.directory.glob("**/events.jsonl")):
            text = path.read_text(encoding="utf-8", errors="replace")
            sys.stdout.write(f"--- {path}\n{text[-6000:]}\n")
        for process in self.members():
            sys.stdout.write(f"--- {process.pid} {processes.title(process)}\n")

    def _await_the_end(self) -> list[psutil.Process]:
        deadline = time.monotonic() + _LEAVE_SECONDS
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


StartCommand = Callable[..., Command]
ReadLines = Callable[[Path], list[dict[str, Any]]]


class Observed:
    """A run that goes on, as seen from its directory."""

    def __init__(
        self, command: Command, eventually: Callable[..., Any], read_lines: ReadLines
    ) -> None:
        self.command = command
        self.path = command.directory / "run"
        self._eventually = eventually
        self._read_lines = read_lines

    def until(self, happened: Callable[[], Any], seconds: float = 60.0) -> Any:
        def happened_or_ended() -> Any:
            answer = happened()
            if not answer and self.command.process.poll() is not None:
                pytest.fail(f"the run ended: {self.command.stdout}\n{self.command.stderr}")
            return answer

        return self._eventually(happened_or_ended, seconds)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self._read_lines(self.path / "events.jsonl") if e["event"] == kind]

    def metric(self, name: str) -> float:
        """The newest value; 0 before the first."""
        lines = self._read_lines(self.path / "metrics.jsonl")
        return next((line[name] for line in reversed(lines) if line.get(name) is not None), 0)

    def grows(self, *names: str) -> None:
        """Wait until counters have grown twice: what is seen now may be of before."""
        for _ in range(2):
            before = {name: self.metric(name) for name in names}
            self.until(lambda b=before: all(self.metric(name) > b[name] for name in names))

    def learns(self) -> None:
        """Wait until the run steps and learns."""
        self.until(lambda: self.metric("learner_steps") > 0)

    def role(self, role: str, index: int = 0) -> psutil.Process:
        return self.until(lambda: self.command.role(role, index))

    def joined(self, role: str, incarnation: int) -> bool:
        texts = [event["text"] for event in self.events("joined") if event["role"] == role]
        return any(text.endswith(f"incarnation {incarnation}") for text in texts)

    def checkpoints(self) -> list[int]:
        """Learner steps of the whole checkpoints, in order."""
        files = (self.path / "checkpoints").glob("step-*/learner.pth")
        return sorted(int(file.parent.name[5:]) for file in files)

    def interrupt(self) -> dict[str, Any]:
        """Ctrl-C once; the summary."""
        self.command.interrupt()
        assert self.command.wait(_STOP_SECONDS) == 0, self.command.stderr
        return self.summary()

    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))


def _left_behind() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [
        p
        for p in children
        if processes.lives(p) and not any(h in processes.title(p) for h in _HELPERS)
    ]


@pytest.fixture(autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + _LEAVE_SECONDS
    while (left := _left_behind()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        process.kill()
    assert not left, f"the test left {left}"


@pytest.fixture(autouse=True)
def no_notice_of_slow_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh checkout compiles first, for seconds, and commands would say that they wait."""
    monkeypatch.setattr(inspector, "_NOTICE_SECONDS", 60.0)


@pytest.fixture
def steps_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have learners take their steps with torch, as on a GPU, instead of in numpy."""
    monkeypatch.setattr("learner.learner.array_step_of", lambda *_: None)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """``eventually(question, seconds)`` waits, bounded, for an answer that is true."""
    return wait_until


@pytest.fixture(scope="session")
def pdqn_command() -> StartCommand:
    """``pdqn_command(*arguments, directory=..., **variables)`` starts the real command.

    Its runs draw no pictures, which cost more than they do, unless a test wants them.

    A ``prefix`` is a command that runs it, such as ``ip netns exec HOST``. An ``output``
    is the descriptor that it writes to, in place of a file.
    """

    def start(
        *arguments: str,
        directory: Path,
        prefix: tuple[str, ...] = (),
        output: int | None = None,
        **variables: str,
    ) -> Command:
        variables = {"PDQN_SYSTEM__PICTURES": "false", **variables}
        return Command(arguments, directory, variables, prefix, output)

    return start


@pytest.fixture(scope="session")
def read_lines() -> Callable[[Path], list[dict[str, Any]]]:
    """The whole lines of a JSON-lines file that may still be written to."""

    def read(path: Path) -> list[dict[str, Any]]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    return read


@pytest.fixture(scope="session")
def observe(eventually: Callable[..., Any], read_lines: ReadLines) -> Callable[[Command], Observed]:
    """``observe(command)`` is the run of a ``pdqn launch`` with ``--run-dir run``."""
    return lambda command: Observed(command, eventually, read_lines)


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Set back the number of torch's threads, which a run in this process changes."""
    # Few test modules need torch, which takes seconds to import.
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture costs more than the run; it has tests of its own."""
    if "with_picture" not in request.fixturenames:
        monkeypatch.setattr("launcher.results.pictures.draw_pictures", lambda *_: None)
