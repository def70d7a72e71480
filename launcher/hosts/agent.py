"""A host's part of a run that was started elsewhere: a supervisor that joins as ``host``.

It starts this host's roles, starts them again when they end, and ends when the run does. To the
coordinator it speaks for the host. While its heartbeats arrive, a silent role must be hanging, and
the coordinator has the host end it. When they stop, the host has vanished with all its roles. While
the coordinator is silent, this supervisor starts nothing, since nothing could join.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.hosts.access import Door, find_door
from launcher.hosts.leash import Leash
from launcher.hosts.supervisor import Supervisor
from launcher.interrupts import Interrupts
from launcher.plan import machine, plan
from launcher.plan.inspector import Here, Inspector
from launcher.processes.forkserver import ForkServer
from launcher.safe_path import find_own_modules
from launcher.sockets import SocketsFolder, make_folder
from launcher.terminal import echo
from pdqn.broadcast import Relay
from pdqn.errors import RunError, UsageError
from pdqn.files import FOLDER_VARIABLE
from pdqn.link import CoordinatorLink
from pdqn.messages import MAX_ENDED, Welcome
from pdqn.transport import Context, Network, split
from pdqn.trust import EVERYTHING, names_code, shown

_TURN_SECONDS = 0.1
_HEARD_SECONDS = 5.0
_PATIENCE_SECONDS = 120.0
_LEAVE_SECONDS = 8.0
_GAUGE_SECONDS = 1.0
_STARTS_AT_ONCE = 8


@dataclass(frozen=True)
class Part:
    """The part that a host takes in a run.

    Attributes:
        role: the role of its processes.
        count: number of processes; None for as many actors as fit the host.
        logs: folder for their logs; None leaves them on standard error.
    """

    role: str
    count: int | None = 1
    logs: Path | None = None


def take_part(
    endpoint: str, part: Part, network: Network, say: Callable[[str], None], interrupts: Interrupts
) -> int:
    """Take part in a run until it ends, and return the exit code.

    Args:
        endpoint: the coordinator's.
        part: the role to run, and how many processes of it.
        network: how this host reaches others.
        say: prints a line for a person.
        interrupts: the signals that ask this host to leave.

    Raises:
        RunError: the run does not answer, or refuses this host.
        UsageError: the run's environment differs from the one here.
    """
    network = replace(network, agent=network.agent or uuid.uuid4().hex)
    context = Context(network)
    try:
        with (
            _folder_of_roles() as folder,
            _relay_for(part, network, folder.path) as relay,
            _forkserver_for(part) as forkserver,
        ):
            supervisor = Supervisor(
                endpoint,
                part.logs,
                0,
                network=replace(network, relay=relay.endpoint if relay else ""),
                own_indices=False,
                forkserver=forkserver,
            )
            link = CoordinatorLink(context, endpoint, "host")
            welcome = link.join(is_given_up=lambda: interrupts.count > 0)
            say(f"joined the run at {split(endpoint)[0]} as host {welcome.index}")
            try:
                agent = _Agent(link, welcome, supervisor, relay, part, say, folder, interrupts)
            except (RunError, UsageError, KeyboardInterrupt) as error:
                link.leave(str(error))
                raise
            return agent.run(interrupts)
    finally:
        context.destroy(linger=1000)


@contextmanager
def _folder_of_roles() -> Iterator[SocketsFolder]:
    """Make a folder for the files of this host's roles: a killed role cannot remove its own."""
    folder = SocketsFolder(make_folder())
    # All processes inherit this variable; the forkserver does so from the one that starts it.
    os.environ[FOLDER_VARIABLE] = str(folder.path)
    try:
        yield folder
    finally:
        del os.environ[FOLDER_VARIABLE]
        folder.remove()


@contextmanager
def _relay_for(part: Part, network: Network, folder: Path) -> Iterator[Relay | None]:
    """Open a relay that receives parameters once for all actors of a host; None for other roles."""
    if part.role != "actor":
        yield None
        return
    relay = Relay(network, f"ipc://{folder}/parameters")
    try:
        yield relay
    finally:
        relay.close()


@contextmanager
def _forkserver_for(part: Part) -> Iterator[ForkServer | None]:
    """Begin to import what actors share, while this host joins; None for other roles."""
    if part.role != "actor":
        yield None
        return
    with closing(ForkServer()) as server:
        server.begin()
        yield server


class _Agent:
    def __init__(
        self,
        link: CoordinatorLink,
        welcome: Welcome,
        supervisor: Supervisor,
        relay: Relay | None,
        part: Part,
        say: Callable[[str], None],
        folder: SocketsFolder,
        interrupts: Interrupts | None = None,
    ) -> None:
        self._link, self._supervisor, self._part, self._say = link, supervisor, part, say
        self._relay, self._folder = relay, folder
        self._count = self._prepare(welcome, interrupts)
        supervisor.set_restarts(welcome.config.system.restarts)
        self._silence_seconds = welcome.config.system.heartbeat_timeout_seconds
        self._resized = 0
        self._next_gauge = 0.0
        self._code = 0

    def _prepare(self, welcome: Welcome, interrupts: Interrupts | None) -> int:
        """Check that the host fits the run, settle what the run leaves to it, and count processes.

        Making an environment can take longer than the run waits for a sign of life.
        """
        config, spec = welcome.config, welcome.spec
        if names_code(config.run.env, config.network.kind, config.evaluation_env_args):
            find_own_modules()  # also those of the roles, which search where this process does

        def stay_in_touch() -> None:
            self._link.poll()
            if interrupts is not None and interrupts.count:
                raise KeyboardInterrupt

        with Inspector(config.system, stay_in_touch) as inspector:
            check_environment(welcome, inspector)
        here = machine.detect()
        if self._part.role == "learner":
            self._supervisor.settings = plan.learner_settings(here, config, spec)
        return self._part.count or plan.actors_for_host(here, config, spec)

    def run(self, interrupts: Interrupts) -> int:
        """Start the roles and keep them running; return the exit code.

        Raises:
            RunError: the host can no longer take part; its roles have left.
        """
        failure: RunError | None = None
        try:
            try:
                self._resize()
                self._say(f"{self._count} x {self._part.role} on this host")
                while self._supervisor.busy() and not interrupts.count:
                    self._turn()
            except RunError as error:
                failure = error
            self._supervisor.ask_to_leave()
            self._supervisor.join(_LEAVE_SECONDS, [self._part.role])
        finally:
            self._supervisor.kill_all()
        ended = self._link.pulse.command in ("drain", "stop")
        self._link.leave(str(failure or ""))
        why = str(failure) if failure else "the run has ended" if ended else "interrupted"
        self._say(f"this host has left the run: {why}")
        if failure is not None:
            raise failure
        return self._code

    def _turn(self) -> None:
        if line := self._folder.look():
            self._say(line)
        self._gauge()
        self._link.poll(_TURN_SECONDS)
        self._follow_learner()
        if self._link.pulse.command in ("drain", "stop"):
            # Actors bring what they have, and replay tells what it has stored.
            needed = "replay" if self._link.pulse.command == "drain" else ""
            self._supervisor.stop_restarting(but=needed)
        else:
            self._resize()
        for pid in self._link.pulse.condemned:
            if self._supervisor.kill_process(pid, hung_seconds=self._silence_seconds):
                self._say(f"process {pid} hung, and was ended")
            elif self._link.silent_seconds < _HEARD_SECONDS:
                self._note_ends([pid])
        silent = self._link.silent_seconds
        all_ended = self._supervisor.check(may_start=silent < _HEARD_SECONDS)
        self._note_ends(ended.pid for ended in all_ended if ended.pid)
        for ended in all_ended:
            again = "" if ended.restart_seconds is None else "; starts again"
            self._say(f"{ended.role} {ended.index}: {ended.cause}{again}")
            given_up = ended.restart_seconds is None and ended.wanted
            self._code = 1 if given_up else self._code
        if silent > _PATIENCE_SECONDS:
            raise RunError(f"the run has not answered for {silent:.0f} s")

    def _note_ends(self, pids: Iterable[int] = ()) -> None:
        """Tell the coordinator which processes have ended: at once, and with every report."""
        before = self._link.telemetry.ended
        after = recent_ends(before, pids, self._supervisor.pids)
        self._link.telemetry.ended = after
        if set(after) - set(before):
            # This frees the places for the successors.
            self._link.report()

    def _resize(self) -> None:
        """Bring the processes to the number that the run wants here, or else to the initial one."""
        wanted = self._link.pulse.count or self._count
        if wanted != self._resized:
            machine.raise_open_file_limit(plan.open_files_of(wanted))
            self._supervisor.share_limits()
        while wanted != self._resized:
            # A few at a time: the run must hear from this host while a hundred start.
            self._resized = min(wanted, self._resized + _STARTS_AT_ONCE)
            self._supervisor.resize(self._part.role, self._resized)
            self._note_ends()
            self._link.poll()

    def _follow_learner(self) -> None:
        """Point the relay at the learner's present address."""
        if self._relay is not None:
            pulse = self._link.pulse
            self._relay.follow(pulse.endpoints.get("parameters", ""), pulse.revoked)

    def _gauge(self) -> None:
        """Report how busy the host is."""
        if time.monotonic() < self._next_gauge:
            return
        self._next_gauge = time.monotonic() + _GAUGE_SECONDS
        cpu_percent, memory_bytes = machine.load()
        self._link.telemetry.gauge("host_cpu_percent", cpu_percent)
        self._link.telemetry.gauge("host_memory_bytes", memory_bytes)


def recent_ends(
    before: tuple[int, ...], ended: Iterable[int], running: Callable[[], Collection[int]]
) -> tuple[int, ...]:
    """Return the pids of the processes that ended last, at most ``MAX_ENDED``.

    Args:
        before: result of the last call.
        ended: pids of processes that have ended since.
        running: function that returns the pids of running processes: the system may have given a
            pid to another process.
    """
    known = dict.fromkeys((*before, *ended))
    if not known:
        return ()
    present = running()
    return tuple(pid for pid in known if pid not in present)[-MAX_ENDED:]


def check_environment(welcome: Welcome, inspector: Inspector | Here | None = None) -> None:
    """Check that the run's environment is the same on this host.

    Raises:
        UsageError: it cannot be made, has another version, or has other observations or actions.
    """
    run, inspector = welcome.config.run, inspector or Here()
    versions = inspector.versions(run.env)
    for name, theirs in welcome.versions.items():
        if (ours := versions.get(name, "no")) != theirs:
            name, theirs = shown(name), shown(theirs)
            raise UsageError(f"this host has {ours} {name}, the run {theirs}: install that here")
    here = inspector.examine(run.env, run.env_args).spec.stacked(welcome.spec.frame_stack)
    if difference := here.difference(welcome.spec):
        raise UsageError(f"{run.env} is another environment on this host: {difference}")


# The time that roles have to leave once the leash is cut.
_LEASH_SECONDS = 15.0


def join(part: Part, door: Door, interrupts: Interrupts) -> int:
    """Take part in a run through its door, with lines on standard error; return the exit code."""

    def say(text: str) -> None:
        echo(f"pdqn: {text}", err=True)

    return take_part(door.endpoint, part, door.network, say, interrupts)


def join_on_leash(part: Part, address: str, interrupts: Interrupts) -> int:
    """Take part in a run while standard input is open; its first line gives name and key."""
    leash = Leash.from_line(sys.stdin.readline())
    door = find_door(address, key=leash.key or None, insecure=True)
    # The worker of the cluster has run this command for the head: its code runs here anyway.
    network = replace(door.network, agent=leash.agent, trust=EVERYTHING)

    def follow() -> None:
        while sys.stdin.readline():
            pass
        interrupts.count = max(1, interrupts.count)
        time.sleep(_LEASH_SECONDS)
        os._exit(1)

    threading.Thread(target=follow, name="leash", daemon=True).start()
    return join(part, Door(door.endpoint, network), interrupts)
