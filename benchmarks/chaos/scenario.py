"""One scenario from start to end: a run, its faults, the checks, and the session that resumes."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos import checks, surroundings
from benchmarks.chaos import faults as f
from benchmarks.chaos.faults import Case
from benchmarks.chaos.kinds import LOSSES, Kind, Loss
from benchmarks.chaos.run import GaveUpError, Run, wait_until

_START_SECONDS = 90.0
_END_SECONDS = 45.0
_FEW_SECONDS = 5.0
_TRY_SECONDS = 10.0
_COMMON = (
    "replay.capacity=20000", "replay.min_size=200", "learner.batch_size=32",
    "learner.threads=1", "evaluation.episodes=2",
    "evaluation.period_seconds=2", "system.telemetry_seconds=0.2", "system.metrics_seconds=0.2",
    "checkpoint.period_seconds=1", "system.pictures=false", "system.restarts=20",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The choices of a seed for one scenario.

    Attributes:
        kind: kind of the main fault.
        extras: further kinds, whose faults follow.
        number: number of the scenario.
        seed: seed of its random generator.
        env: arguments that name the environment.
        actors: number of actors.
        shards: number of replays.
        journal: ``write`` or ``sync``.
        console: console of the launcher.
        resumes: whether the run is resumed in the end.
    """

    kind: Kind
    extras: tuple[Kind, ...]
    number: int
    seed: int
    env: tuple[str, ...]
    actors: int
    shards: int
    journal: str
    console: str
    resumes: bool

    @property
    def loses(self) -> Loss:
        """The greatest loss that is right, of all its kinds."""
        losses: list[Loss] = [kind.loses for kind in (self.kind, *self.extras)]
        return max(losses, key=LOSSES.index)

    @property
    def name(self) -> str:
        """Names of all its kinds."""
        return "+".join(kind.name for kind in (self.kind, *self.extras))


@dataclass
class Outcome:
    """The end of a scenario.

    Attributes:
        plan: its choices.
        failures: what did not hold, in words.
        skipped: why it could not be tried here; empty if it was.
        seconds: duration of the whole.
        recoveries: seconds after each fault until the learner went on.
        notes: faults as they were done.
        takeovers: replays that followed others.
        transitions: counts of the last summary.
    """

    plan: Plan
    failures: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0
    recoveries: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    takeovers: list[checks.Takeover] = field(default_factory=list)
    transitions: dict[str, int] = field(default_factory=dict)


def make_plan(kinds: list[Kind], number: int, seed: int, name: str = "") -> Plan:
    """Choose a scenario: the kinds in turn, and the rest by chance.

    Args:
        kinds: all kinds.
        number: number of the scenario.
        seed: seed of the whole campaign.
        name: name of the kind; empty to take them in turn.
    """
    rng = random.Random(f"{seed} {number} {name}")
    order = list(kinds)
    random.Random(seed).shuffle(order)
    named = [kind for kind in kinds if kind.name == name]
    kind = named[0] if named else order[number % len(order)]
    extras: tuple[Kind, ...] = ()
    # The first round tries each kind by itself.
    if not named and kind.combines and number >= len(order):
        others = [other for other in kinds if other.combines and other != kind]
        extras = tuple(rng.sample(others, rng.randint(1, 2)))
    return _chosen(kind, extras, number, rng)


def _chosen(kind: Kind, extras: tuple[Kind, ...], number: int, rng: random.Random) -> Plan:
    small = ("--set", "network.hidden=32")
    env = ("--env", "CartPole-v1", *small)
    if rng.random() < 0.25:
        env = ("--env-arg", "map_size=32", "--env-arg", "radii=[4,2]")
        env = (*env, "--set", "network.channels=8")
    if kind.hostile:
        arguments = ("--env-arg", f"how={kind.hostile}")
        env = ("--env", "benchmarks.chaos.hostile:make", *arguments, *small)
    resumes = rng.random() < 0.3
    return Plan(
        kind=kind,
        extras=extras,
        number=number,
        seed=rng.randrange(1 << 30),
        env=env,
        actors=rng.randint(1, 4),
        shards=kind.shards or rng.choice((1, 1, 1, 2)),
        journal=rng.choice(("write", "write", "write", "sync")),
        console=rng.choice(("plain", "json")),
        resumes=resumes if kind.resumes is None else kind.resumes,
    )


class Scenario:
    """A scenario that is played once.

    Args:
        plan: its choices.
        folder: folder that is made; its path is short, since sockets lie in it.

    Attributes:
        plan: its choices.
        folder: its folder.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self._kind = plan.kind
        self._outcome = Outcome(plan)
        self._case = Case(Run(folder, {}), random.Random(plan.seed))
        self._run = self._case.run
        self._readers: list[int] = []
        self._memory: dict[int, int] = {}

    def play(self) -> Outcome:
        """Play it; whatever happens, nothing of it runs on."""
        began = time.monotonic()
        self._outcome.skipped = next(filter(None, map(surroundings.lacks, self._needs())), "")
        if not self._outcome.skipped:
            try:
                self._run.make_folders()
                self._surround()
                self._play()
            except (GaveUpError, OSError, psutil.Error, subprocess.SubprocessError) as error:
                self._outcome.failures.append(f"{type(error).__name__}: {error}")
            finally:
                self._clean()
        self._outcome.seconds = time.monotonic() - began
        self._outcome.notes = self._case.notes
        return self._outcome

    def abort(self) -> None:
        """Kill its processes, whatever it waits for; it ends then by itself."""
        self._run.end_all()

    def _play(self) -> None:
        self._begin()
        if self._kind.moment == "between":
            self._end_session()
            self._do(self._kind)
        else:
            self._attack()
        resumes = self._kind.moment == "between" or self.plan.resumes or self._kind.ends
        # A run that was interrupted before it had a directory cannot be resumed.
        if resumes and (self._kind.moment != "starting" or self._run.is_begun):
            self._resume()
        self._outcome.takeovers = checks.takeovers(self._run.witness)
        if self.plan.loses not in ("journal", "everything"):
            self._expect(checks.check_takeovers(self._run))

    # ---- surroundings ----

    def _needs(self) -> list[str]:
        names = {"disk": "mount", "ext4": "loop", "shm": "mount"}
        return [names.get(name, name) for kind in self._kinds for name in kind.surroundings]

    @property
    def _kinds(self) -> tuple[Kind, ...]:
        return (self._kind, *self.plan.extras)

    def _surround(self) -> None:
        case, run = self._case, self._run
        for name in {name for kind in self._kinds for name in kind.surroundings}:
            if name in ("disk", "ext4"):
                folder = self.folder / "disk"
                folder.mkdir()
                kind = "tmpfs" if name == "disk" else "ext4"
                case.disk = surroundings.Disk(folder, self._kind.size, kind)
                case.undo.append(case.disk.unmount)
                run.path = folder / "run"
            elif name == "shm":
                case.shm = self.folder / "shm"
                case.shm.mkdir()
                run.prefix += surroundings.own_shared_memory(case.shm, self._kind.size)
                case.undo.append(lambda: surroundings.unmount(self.folder / "shm"))
            elif name == "pids":
                case.pids = surroundings.Group("pids", f"pdqn-chaos-{os.getpid()}-{id(self)}")
                run.prefix += case.pids.prefix()
                case.undo.append(case.pids.remove)
            elif name == "clock":
                case.clock = surroundings.Clock(self.folder)
                run.variables.update(case.clock.variables)
            elif name == "time":
                run.prefix += ["unshare", "-T", "--monotonic", "100000000", "--boottime",
                               "100000000"]  # fmt: skip
        self._redirect()

    def _redirect(self) -> None:
        run, output = self._run, self._kind.output
        if output == "no output":
            run.prefix += ["sh", "-c", 'exec "$@" >&-', "sh"]
        elif output == "no errors":
            run.prefix += ["sh", "-c", 'exec "$@" 2>&-', "sh"]
        elif output == "full":
            run.outputs = lambda: (os.open("/dev/full", os.O_WRONLY), None)
        elif output == "unread pipe":
            run.outputs = self._unread_pipe
        elif output == "unread terminal":
            run.outputs = self._unread_terminal

    def _unread_pipe(self) -> tuple[int | None, int | None]:
        writer, reader = surroundings.unread_pipe()
        self._readers.append(reader)
        return writer, None

    def _unread_terminal(self) -> tuple[int | None, int | None]:
        reader, writer = pty.openpty()
        self._readers.append(reader)
        return writer, writer

    # ---- sessions ----

    def _begin(self) -> None:
        plan, kind = self.plan, self._kind
        options = ["--run-dir", str(self._run.path), "--time", "2h", "--seed", str(plan.number)]
        options += [*plan.env, "--console", plan.console]
        if plan.kind.hostile in ("hang", "exit", "end", "segfault"):
            options += ["--env-arg", f"marker={self.folder / 'marker'}"]
        if kind.single:
            options += ["--mode", "single"]
            self._run.by_metrics = True
        else:
            options += ["--mode", "parallel", "--actors", str(plan.actors)]
            options += ["--replays", str(plan.shards), "--envs-per-actor", "2"]
        for assignment in (*_COMMON, f"replay.journal={plan.journal}"):
            options += ["--set", assignment]
        for one in self._kinds:
            options += self._options(one)
        self._run.launch(*options)
        self._join()

    def _options(self, kind: Kind) -> list[str]:
        """Return a kind's further options of the launcher."""
        return [option.replace("{folder}", str(self.folder)) for option in kind.options]

    def _join(self) -> None:
        if self._kind.joined:
            run, role = self._run, self._kind.joined
            wait_until(lambda: (run.path / "address.json").exists(), _START_SECONDS, "address")
            run.join(role)

    def _attack(self) -> None:
        """Do the faults of a session, see it go on, and end it."""
        moment, kind = self._kind.moment, self._kind
        if moment == "starting":
            time.sleep(self._case.rng.uniform(0.2, 3.0))
        elif moment == "joining":
            self._run.wait_for("replay", _START_SECONDS)
        else:
            self._learns(_START_SECONDS)
            self._memory = checks.memory_of(self._run)
        if moment == "saving":
            self._wait_for_save()
        elif moment == "stopping":
            self._run.interrupt()
            time.sleep(self._case.rng.uniform(0.0, 0.6))
        for one in self._kinds:
            try:
                self._do(one)
            except GaveUpError as error:
                if moment != "stopping":
                    raise
                self._case.note(f"too late: {error}")  # the run has stopped already
            if one.goes_on and not one.ends:
                self._outcome.recoveries.append(self._learns(one.seconds))
        if kind.goes_on and not kind.ends:
            self._expect(checks.check_memory(self._memory, self._run))
        if moment == "starting" and not kind.goes_on and not kind.ends:
            self._let_it_try()
        self._finish(kind.exits, interrupt=moment != "stopping" and not kind.ends)

    def _let_it_try(self) -> None:
        """Give a run that may not get far the time to find that out."""
        with contextlib.suppress(GaveUpError):
            wait_until(lambda: not self._run.lives, _TRY_SECONDS, "its end")

    def _do(self, kind: Kind) -> None:
        if kind.fault is not None:
            kind.fault(self._case)
        else:
            self._case.note(kind.words)
            time.sleep(_FEW_SECONDS)

    def _learns(self, seconds: float) -> float:
        return self._run.learns(seconds)

    def _wait_for_save(self) -> None:
        before = len(list((self._run.path / "checkpoints").glob("*/.*")))
        saving = self._run.path / "checkpoints"
        wait_until(lambda: len(list(saving.glob("*/.*"))) > before or self._run.checkpoints(),
                   20.0, "a save")  # fmt: skip

    def _end_session(self) -> None:
        """End the first session, in order or not, with something saved."""
        self._learns(_START_SECONDS)
        first = self._run.checkpoints()
        wait_until(lambda: self._run.checkpoints()[-1:] > first[-1:], 60.0, "another checkpoint")
        if pattern := self._kind.awaits:
            wait_until(lambda: [*self._run.path.glob(pattern)], _START_SECONDS, pattern)
        killed = not self._kind.single and self._case.rng.random() < 0.5
        if killed and not self._kind.in_order:
            f.kill_everything(self._case)
            self._run.end(_END_SECONDS)
            return
        self._finish((0,), interrupt=True)

    def _finish(self, exits: tuple[int, ...], *, interrupt: bool) -> None:
        """End the session, and check what it leaves."""
        run = self._run
        if interrupt:
            run.interrupt()
        code = run.end(_END_SECONDS)
        if code not in exits:
            self._outcome.failures.append(f"exit code {code}, not {exits}; {self._last_words()}")
        killed = code == -signal.SIGKILL
        # Who is killed cannot clean up; the next run does.
        leaves = killed or self._case.leaves_files
        if killed:
            # A host that joined waits for minutes whether the run comes back.
            for host in run.hosts:
                host.end_all()
        self._expect(checks.check_leftovers(run, temporary=not leaves))
        for command in run.commands():
            self._expect(checks.check_output(command, may_show_trace=self._kind.may_show_trace))
        if not killed and self.plan.loses != "everything":
            summary = run.summary()
            self._outcome.transitions = summary.get("transitions", {})
            self._expect(checks.check_ledger(summary, may_lose=self.plan.loses != "nothing"))
            if code == 0:
                self._expect(checks.check_model(run))

    def _resume(self) -> None:
        """Resume the run, see it learn, and end it."""
        run, kind = self._run, self._kind
        run.hosts.clear()
        # The addresses to bind, and the roles that join, belong to a session and not to the run.
        again = self._options(kind) if kind.joined else ()
        run.launch("--resume", str(run.path), "--console", self.plan.console, *again)
        if kind.joined:
            self._join()
        try:
            self._outcome.recoveries.append(self._learns(_START_SECONDS))
        except GaveUpError:
            refused = not run.lives and run.launcher.process.returncode in kind.resume_exits
            if not refused or run.launcher.process.returncode == 0:
                raise GaveUpError(f"the resumed run did not go on: {self._last_words()}") from None
            self._case.note(f"resuming is refused: {self._last_words()}")
            return
        self._finish((0,), interrupt=True)

    # ---- the end ----

    def _expect(self, failures: Iterator[str]) -> None:
        self._outcome.failures += failures

    def _last_words(self) -> str:
        command = self._run.launcher
        lines: list[str] = []
        for path in (command.err, command.out):
            lines += path.read_text("utf-8", "replace").strip().splitlines()[-1:]
        return " | ".join(line[-300:] for line in lines)

    def _clean(self) -> None:
        self._run.end_all()
        for reader in self._readers:
            os.close(reader)
        for undo in reversed(self._case.undo):
            undo()


def as_report(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain data."""
    plan = outcome.plan
    return {
        "scenario": plan.number,
        "kind": plan.name,
        "words": [kind.words for kind in (plan.kind, *plan.extras)],
        "env": " ".join(plan.env),
        "actors": plan.actors,
        "shards": plan.shards,
        "journal": plan.journal,
        "ok": not outcome.failures,
        "skipped": outcome.skipped,
        "failures": outcome.failures,
        "seconds": round(outcome.seconds, 1),
        "recovery_seconds": [round(seconds, 2) for seconds in outcome.recoveries],
        "faults": outcome.notes,
        "takeovers": [vars(one) | {"exact": one.is_exact} for one in outcome.takeovers],
        "transitions": outcome.transitions,
    }
