"""A run under attack: its commands, its processes, its files, and bounded waits for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos import processes, witness

ROOT = Path(__file__).parents[2]
HOOKS = Path(__file__).parent / "hooks"
ROLES = ("replay", "learner", "actor", "evaluator")
_TURN_SECONDS = 0.02


class GaveUpError(Exception):
    """A wait that took too long, or that cannot succeed any more."""


def wait_until(happened: Callable[[], Any], seconds: float, what: str) -> Any:
    """Ask until the answer is true, and return it.

    Raises:
        GaveUpError: it took longer than that.
    """
    deadline = time.monotonic() + seconds
    while not (answer := happened()):
        if time.monotonic() > deadline:
            raise GaveUpError(f"{what}: not within {seconds:g} s")
        time.sleep(_TURN_SECONDS)
    return answer


class Command:
    """A command in a session of its own, with output in files; all that it starts is in there.

    Args:
        arguments: the program and its arguments.
        folder: folder of the output, ``name.out`` and ``name.err``.
        name: name of both files, which none had before.
        variables: environment variables beside those of this process.
        outputs: descriptors that take the place of the files, which are closed here.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        name: str,
        variables: Mapping[str, str],
        outputs: tuple[int | None, int | None] = (None, None),
    ) -> None:
        self.name = name
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PDQN_")}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                env={**environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out if outputs[0] is None else outputs[0],
                stderr=err if outputs[1] is None else outputs[1],
                start_new_session=True,
            )
        for descriptor in {d for d in outputs if d is not None}:
            os.close(descriptor)
        self.session = self.process.pid

    def members(self) -> list[psutil.Process]:
        """List the living processes of the session."""
        return processes.members(self.session)

    def end_all(self) -> None:
        """Kill whatever is left of the session."""
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)


class Run:
    """A run in a folder of its own: ``pdqn launch``, hosts that join it, and its later sessions.

    Args:
        folder: folder of the scenario; the run's own is ``run`` in it.
        variables: environment variables for all commands.

    Attributes:
        folder: that folder.
        path: directory of the run.
        temporary: temporary directory of its commands.
        prefix: command that runs ``pdqn launch``, such as one that limits it.
        options: arguments of ``pdqn launch``.
        outputs: function that gives descriptors for the launcher's output.
        hosts: commands that joined.
        by_metrics: whether only metrics tell that the learner steps, as in mode single.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder, self.path = folder, folder / "run"
        self.temporary = folder / "t"
        self.witness = folder / "witness"
        self.by_metrics = False
        self.prefix: list[str] = []
        self.options: list[str] = []
        self.outputs: Callable[[], tuple[int | None, int | None]] = lambda: (None, None)
        paths = os.pathsep.join([str(HOOKS), str(ROOT)])
        self.variables = {
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": paths,
            "CHAOS_WITNESS": str(self.witness),
            "COLUMNS": "300",
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        self.hosts: list[Command] = []
        self.sessions: list[Command] = []

    def make_folders(self) -> None:
        """Make the folders that its commands need."""
        for made in (self.folder, self.temporary, self.witness):
            made.mkdir(exist_ok=True)

    # ---- commands ----

    def launch(self, *arguments: str) -> Command:
        """Begin a session: the first one, or with ``--resume`` another one."""
        command = [*self.prefix, program(), "launch", *arguments]
        name = f"launch-{len(self.sessions)}"
        outputs = self.outputs()
        self.sessions.append(Command(command, self.folder, name, self.variables, outputs))
        return self.launcher

    def join(self, role: str, *arguments: str) -> Command:
        """Join the run from this host, as a host of its own."""
        name = f"host-{len(self.hosts)}"
        command = [program(), role, "--join", str(self.path), *arguments]
        self.hosts.append(Command(command, self.folder, name, self.variables))
        return self.hosts[-1]

    @property
    def launcher(self) -> Command:
        """The newest session."""
        return self.sessions[-1]

    @property
    def lives(self) -> bool:
        """Return whether the launcher of the newest session runs."""
        return self.launcher.process.poll() is None

    @property
    def is_begun(self) -> bool:
        """Return whether the run has a directory that can be resumed."""
        return all((self.path / name).exists() for name in ("config.toml", "configured.toml"))

    def commands(self) -> list[Command]:
        """List all commands so far."""
        return [*self.sessions, *self.hosts]

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal to the launcher alone."""
        if self.lives:
            self.launcher.process.send_signal(number)

    def end(self, seconds: float) -> int:
        """Wait for the launcher to end by itself; return its exit code.

        Raises:
            GaveUpError: it did not.
        """
        wait_until(lambda: not self.lives, seconds, "the end of the launcher")
        return self.launcher.process.returncode

    def end_all(self) -> None:
        """Kill whatever is left."""
        for command in self.commands():
            command.end_all()

    # ---- processes ----

    def members(self) -> list[psutil.Process]:
        """List the living processes of all commands."""
        return [process for command in self.commands() for process in command.members()]

    def processes(self, who: str) -> list[psutil.Process]:
        """Find processes by their name.

        Args:
            who: a role, a role with an index such as ``replay 0``, ``forkserver``, ``tracker``,
                ``launcher``, ``host``, or ``all``.
        """
        if who == "launcher":
            return [p for p in self.launcher.members() if p.pid == self.launcher.session]
        if who == "host":
            hosts = {host.session for host in self.hosts}
            return [p for host in self.hosts for p in host.members() if p.pid in hosts]
        if who == "all":
            return self.members()
        if who == "roles":
            return [p for p in self.members() if any(_is(p, f"pdqn {role}") for role in ROLES)]
        title = "resource_tracker" if who == "tracker" else f"pdqn {who}"
        return [p for p in self.members() if _is(p, title) or _is(p, f"multiprocessing.{who}")]

    def wait_for(self, who: str, seconds: float = 30.0) -> list[psutil.Process]:
        """Wait until there are such processes, and return them."""
        return wait_until(
            lambda: self.processes(who) or self._must_live(f"there was no {who}"), seconds, who
        )

    def _must_live(self, what: str) -> None:
        if not self.lives:
            raise GaveUpError(f"the launcher ended before {what}")

    # ---- progress ----

    def updates(self) -> int:
        """Count messages of the learner that replays have taken."""
        return sum(t.updates for t in witness.read_testimonies(self.witness))

    def learner_steps(self) -> int:
        """Return the learner steps of the newest line of metrics; 0 before the first."""
        lines = read_lines(self.path / "metrics.jsonl", 20_000)
        steps = [line["learner_steps"] for line in lines if line.get("learner_steps") is not None]
        return steps[-1] if steps else 0

    def progress(self) -> int:
        """Return a number that grows while the learner steps: without replays, its steps."""
        return self.learner_steps() if self.by_metrics else self.updates()

    def learns(self, seconds: float = 60.0, steps: int = 3) -> float:
        """Wait until the learner has gone on from now on; return the seconds that it took."""
        began = time.monotonic()
        before = self.progress()

        def goes_on() -> bool:
            self._must_live("learning went on")
            now = self.progress()
            return now >= before + steps or 0 < now < before  # a new learner counts less

        wait_until(goes_on, seconds, "learning that goes on")
        return time.monotonic() - began

    # ---- files ----

    def summary(self) -> dict[str, Any]:
        """Read ``summary.json``; empty if there is none."""
        try:
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Read the events of a kind."""
        return [e for e in read_lines(self.path / "events.jsonl") if e.get("event") == kind]

    def checkpoints(self) -> list[Path]:
        """List the files of checkpoints, oldest first."""
        found = (self.path / "checkpoints").glob("step-*/learner.pth")
        return sorted(found, key=lambda path: int(path.parent.name[5:]))


def program() -> str:
    """Return the path of ``pdqn`` beside the interpreter."""
    return str(Path(sys.executable).with_name("pdqn"))


def read_lines(path: Path, last_bytes: int = 10_000_000) -> list[dict[str, Any]]:
    """Read the whole lines at the end of a JSON-lines file that may still be written to."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - last_bytes))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return list(_parsed(text))


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if line.endswith("\n") and isinstance(value := json.loads(line), dict):
                yield value


def _is(process: psutil.Process, title: str) -> bool:
    words = processes.title(process)
    if title.startswith("pdqn "):
        return words == title or words.startswith(f"{title} ")
    return title in words
