"""One training run: start the roles, watch them, stop them in order, and leave everything saved."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from actors.environments.making import package_versions
from launcher.console.keyboard import MORE
from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.files import FileStore
from launcher.coordinator.membership import Event
from launcher.coordinator.places import Member
from launcher.coordinator.snapshot import MemberState, MemberView
from launcher.hosts.access import Access
from launcher.hosts.dask.cluster import DaskCluster
from launcher.hosts.dask.roles import DaskRoles, Wanted
from launcher.hosts.supervisor import Ended, Supervisor
from launcher.interrupts import EXIT_INTERRUPTED_TWICE
from launcher.numbers import plural, size
from launcher.plan import machine
from launcher.run.session import Session
from pdqn import transport
from pdqn.broadcast import Relay
from pdqn.config import resolved
from pdqn.errors import RunError

_TURN_SECONDS, _CHECK_SECONDS = 0.1, 0.1
_JOIN_SECONDS = 120.0
_HOLD_SECONDS = 30.0
_STANDSTILL_SECONDS = 300.0


@dataclass(frozen=True)
class StopBudget:
    """How long each part of stopping may take, in seconds."""

    actors: float
    drain: float
    learner: float
    evaluator: float
    last: float


PATIENT = StopBudget(actors=10.0, drain=5.0, learner=15.0, evaluator=60.0, last=2.0)
# A person pressed Ctrl-C: all of it, and the plot after it, within ten seconds. Only what a learner
# is writing, or sending from another host, takes longer.
HURRIED = StopBudget(actors=2.5, drain=1.0, learner=2.5, evaluator=0.0, last=0.5)
_FILES_SECONDS = 300.0
_LAST_SAVE_SECONDS = 10.0


class Run:
    """A run whose roles are processes: on this host, or joined from elsewhere.

    Args:
        session: what the run is and where it shows.
        access: how other hosts take part; by default not at all.
        cluster: where all roles but the evaluator are, in place of this host.
    """

    def __init__(
        self, session: Session, access: Access | None = None, cluster: DaskCluster | None = None
    ) -> None:
        self._access = access or Access()
        self._cluster = cluster
        self._dask: DaskRoles | None = None
        self._session = session
        self._config = session.config
        self._metrics = session.metrics
        self._sockets = Path(tempfile.mkdtemp(prefix="pdqn-"))
        self._context = transport.Context(self._access.network)
        try:
            self._coordinator = self._make_coordinator()
        except BaseException:
            self._remove_sockets()
            raise
        logs, allowed = session.run_dir.logs, self._config.system.restarts
        network = self._access.network
        # Parameters from another host cross the network once for all that act here.
        self._relay: Relay | None = None
        if "learner" in self._access.elsewhere and self._actors_here:
            self._relay = Relay(network, f"ipc://{self._sockets}/parameters")
            network = replace(network, relay=self._relay.endpoint)
        self._supervisor = Supervisor(
            self._local_endpoint(),
            logs,
            allowed,
            session.restarts,
            network,
            warm=self._actors_here > 0,
        )
        session.state.incarnations = self._coordinator.membership.incarnations
        self._dead: set[tuple[str, int]] = set()
        self._next_check = 0.0
        self._key_trouble = ""
        session.controls = {
            "p": self._pause,
            "s": self._coordinator.save,
            "+": lambda: self._scale_samples_per_insert(MORE),
            "-": lambda: self._scale_samples_per_insert(1 / MORE),
        }

    def execute(self) -> int:
        """Run to the end; the exit code."""
        session = self._session
        session.run_dir.event("started", mode=self._config.run.mode, pid=os.getpid())
        session.console.start()
        session.interrupts.on_second = self._end_now
        try:
            self._start_roles()
            reason = self._train()
            session.stage, session.waiting_for = "stopping", ""
            session.run_dir.event("stopping", reason=reason)
            self._stop(HURRIED if session.interrupts.count or session.failure else PATIENT)
        except Exception:
            # Of this program's own making: what was learned is not to be lost with it, and the
            # terminal is to show it.
            session.console.stop()
            self._supervisor.ask_to_leave()
            self._supervisor.join(_LAST_SAVE_SECONDS, ["learner"])
            raise
        finally:
            self._supervisor.kill_all()
            if self._relay is not None:
                self._relay.close()
            self._coordinator.close()
            self._remove_sockets()
        return session.conclude(reason, self._member_views())

    def _make_coordinator(self) -> Coordinator:
        address, bind = f"ipc://{self._sockets}/coordinator", self._access.address
        versions: dict[str, str] = {}
        role_bind = f"ipc://{self._sockets}/{{role}}-{{name}}"
        if bind is not None:
            address, role_bind = f"tcp://{bind}", "tcp://{host}:*"
            # Only other hosts compare them, and looking through all packages takes a moment.
            versions = package_versions(self._config.run.env)
        if self._access.clients is not None:
            # Before anybody can knock: who is refused does not come again.
            self._context.allow(self._access.clients.clients)
        directory, run = self._session.run_dir, uuid.uuid4().hex
        directory.name_run(run)
        coordinator = Coordinator(
            self._context,
            address,
            run=run,
            run_dir=str(directory.path.resolve()),
            role_bind=role_bind,
            config=self._config,
            spec=self._session.spec,
            metrics=self._metrics,
            versions=versions,
            files=FileStore(directory.path, self._config.checkpoint.keep),
            own_actors=0 if "actor" in self._access.elsewhere else None,
            incarnations=self._session.state.incarnations,
        )
        if self._access.clients is not None:
            coordinator.allow(self._access.clients.clients)
        return coordinator

    def _local_endpoint(self) -> str:
        """Where this host's own roles join."""
        endpoint, local = self._coordinator.endpoint, self._access.local_address
        if local is None:
            return endpoint
        address, key = transport.split(endpoint)
        host, port = local.rpartition(":")[0], address.rpartition(":")[2]
        return transport.endpoint_of(f"tcp://{host}:{port}", key)

    def _start_roles(self) -> None:
        if self._access.address is not None:
            where = transport.split(self._coordinator.endpoint)[0]
            self._session.say(f"other processes join with --join {where}")
        elsewhere = self._access.elsewhere
        if "replay" not in elsewhere:
            for shard in range(self._config.replay.shards):
                self._supervisor.start("replay", shard)
        if "learner" not in elsewhere:
            self._supervisor.start("learner", 0)
        if self._config.evaluation.enabled:
            self._supervisor.start("evaluator", 0)
        if self._cluster is not None:
            self._dask = self._place_roles(self._cluster)
        for index in range(self._actors_here):
            if self._session.interrupts.count:
                return
            self._supervisor.start("actor", index)
            self._turn(0.0)

    @property
    def _actors_here(self) -> int:
        elsewhere = "actor" in self._access.elsewhere
        return 0 if elsewhere else resolved(self._config.actor.count)

    def _place_roles(self, cluster: DaskCluster) -> DaskRoles:
        config = self._config
        wanted = Wanted(
            resolved(config.actor.count),
            config.replay.shards,
            self._access.pins,
            transport.split(self._coordinator.endpoint)[0],
            self._access.key_text,
        )
        return DaskRoles(
            cluster,
            wanted,
            self._coordinator,
            self._session.say,
            config.system.restarts,
            self._session.restarts,
        )

    def _train(self) -> str:
        """Watch the run until it is to end; the reason."""
        while not (reason := self._session.end_reason()):
            self._turn(_TURN_SECONDS)
        return reason

    def _turn(self, timeout_seconds: float) -> None:
        """Everything that happens again and again, while training and while stopping."""
        self._coordinator.poll(timeout_seconds)
        if self._coordinator.was_away:
            # Stopped, with all that steps here, and going on: that was no standstill.
            self._metrics.expect_steps(time.monotonic())
        # First what a role has said of its end, then that it has ended.
        while self._coordinator.events:
            self._handle_event(self._coordinator.events.popleft())
        # Not with every message: asking a hundred processes whether they live takes a millisecond.
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECONDS
            self._supervise()
        if self._session.tick():
            self._look_at_keys()
            self._lose_hosts()
            self._end_silent()
            self._notice_standstill()
        self._session.record()
        self._session.obey_keys()
        self._session.show(self._member_views)
        self._coordinator.seen = self._session.seen

    def _look_at_keys(self) -> None:
        """Let in whom the list names now, and say when it cannot be read."""
        clients = self._access.clients
        if clients is None:
            return
        self._coordinator.allow(clients.look())
        if clients.trouble != self._key_trouble:
            self._key_trouble = clients.trouble
            self._session.say(clients.trouble or "the list of keys can be read again")

    def _follow_learner(self) -> None:
        """Have the relay receive from where the learner is now."""
        if self._relay is None:
            return
        try:
            self._relay.follow(
                self._coordinator.membership.places.served().get("parameters", ""),
                self._coordinator.membership.orders.revoked,
            )
        except RunError as error:
            self._session.failure = self._session.failure or str(error)

    def _pause(self) -> None:
        self._coordinator.command(["actor"], "hold" if self._session.pause() else "run")

    def _scale_samples_per_insert(self, factor: float) -> None:
        target = float(f"{self._coordinator.samples_per_insert * factor:.3g}")
        self._coordinator.set_samples_per_insert(target)
        self._session.say(f"samples_per_insert is {target:g} from now on")

    def _supervise(self) -> None:
        session = self._session
        for ended in self._supervisor.check():
            self._coordinator.lost(ended.role, ended.index, ended.pid)
            if session.stage != "stopping":
                self._handle_end(ended)
        self._follow_cluster()
        self._follow_learner()
        if session.stage == "starting":
            self._maybe_begin()
        elif self._access.elsewhere and session.stage == "running":
            session.waiting_for = self._coordinator.membership.missing()

    def _follow_cluster(self) -> None:
        if self._dask is None:
            return
        try:
            self._dask.turn()
        except RunError as error:
            self._session.failure = self._session.failure or str(error)

    def _maybe_begin(self) -> None:
        """Let the actors step once all roles are there, or enough of them for long enough."""
        session = self._session
        session.waiting_for = self._coordinator.membership.missing()
        waited = session.session_seconds
        some = all(
            self._coordinator.membership.count(role) for role in ("replay", "learner", "actor")
        )
        if not session.waiting_for or (some and waited > _HOLD_SECONDS):
            session.stage, session.waiting_for = "running", ""
            self._metrics.expect_steps(time.monotonic())
            self._coordinator.command(["actor", "evaluator"], "run")
            session.run_dir.event("running", seconds=round(waited, 3))
        elif waited > self._join_seconds:
            session.failure = f"still waiting for {session.waiting_for}"

    @property
    def _join_seconds(self) -> float:
        """How long the run waits for its roles; longer for those that a person starts."""
        by_hand = self._access.elsewhere or not self._config.actor.count
        return self._config.system.join_seconds if by_hand else _JOIN_SECONDS

    def _handle_end(self, ended: Ended) -> None:
        name = f"{ended.role} {ended.index}"
        session = self._session
        session.note_error(f"{name}: {ended.cause}{self._see_log(ended.role, ended.index)}")
        session.run_dir.event(
            "ended", role=ended.role, index=ended.index, pid=ended.pid, cause=ended.cause
        )
        if ended.restart_seconds is not None:
            wait = f"{ended.restart_seconds:g} s"
            session.say(f"{name} ended ({ended.cause}); starts again in {wait}")
            return
        self._dead.add((ended.role, ended.index))
        if ended.role == "actor":
            self._coordinator.membership.give_up(ended.index)
        session.say(f"{name} ended ({ended.cause}) too often and is given up")
        dead_actors = sum(role == "actor" for role, _ in self._dead)
        if ended.role == "learner" or (ended.role == "replay" and not self._has_replay()):
            session.failure = f"{name} cannot be kept alive"
        elif (
            ended.role == "actor"
            and dead_actors == self._config.actor.count
            and not self._coordinator.membership.count("actor")
        ):
            session.failure = "no actor can be kept alive"

    def _has_replay(self) -> bool:
        """Whether a replay is there or will be again: one is enough for the run to go on."""
        local = self._supervisor.slots()
        return self._coordinator.membership.count("replay") > 0 or any(
            role == "replay" and state != "dead" for (role, _), state in local.items()
        )

    def _handle_event(self, event: Event) -> None:
        self._session.note(event.kind, event.role, event.index, event.text)
        if event.error:
            log = self._see_log(event.role, event.index)
            self._session.note_error(f"{event.role} {event.index}: {event.text}{log}", event.trace)

    def _see_log(self, role: str, index: int) -> str:
        """Where there is more to read; roles on other hosts write theirs there."""
        log = self._session.run_dir.log_path(role, index)
        return f" (see {log})" if log.is_file() else ""

    def _lose_hosts(self) -> None:
        """Notice hosts that have vanished; they may come back, and their roles with them."""
        limit = self._config.system.host_timeout_seconds
        for host in self._coordinator.membership.silent_hosts(limit):
            name = self._coordinator.host_of(host)
            roles = self._coordinator.lose_host(host.agent)
            self._session.run_dir.event("vanished", role="host", index=host.key.index, roles=roles)
            lost = f"not heard for {limit:g} s, is gone with {plural(roles, 'role')}"
            self._session.say(f"host {name}: {lost}")

    def _end_silent(self) -> None:
        limit = self._config.system.heartbeat_timeout_seconds
        for member in self._coordinator.membership.silent(limit):
            key = member.key
            self._session.run_dir.event("silent", role=key.role, index=key.index, pid=member.pid)
            self._session.say(f"{key.role} {key.index}: not heard for {limit:g} s, is ended")
            self._coordinator.lost(key.role, key.index)
            if member.agent:
                self._coordinator.membership.condemn(member)
            else:
                self._supervisor.kill(key.role, key.index)

    def _notice_standstill(self) -> None:
        """A run that has not stepped for minutes is not going to: say who waits for what."""
        session = self._session
        still = self._metrics.seconds_without_steps(time.monotonic())
        if session.stage == "running" and still > _STANDSTILL_SECONDS:
            doing = [
                f"{m.key.role} {m.key.index}: {m.activity or 'working'}"
                for m in self._coordinator.membership.members()
            ]
            session.failure = (
                f"no environment step for {still:.0f} s ({'; '.join(sorted(doing)[:8])})"
            )

    def _stop(self, budget: StopBudget) -> None:
        """Actors flush, replay takes what is under way, the learner saves, and all leave."""
        coordinator = self._coordinator
        self._supervisor.stop_restarting()
        if self._dask is not None:
            self._dask.stop_restarting()
        coordinator.command(["host"], "drain")
        coordinator.command(["actor"], "stop")
        coordinator.command(["replay"], "drain")
        self._wait(lambda: not coordinator.membership.count("actor"), budget.actors)
        self._wait(lambda: not self._metrics.in_flight(), budget.drain)
        coordinator.command(["learner"], "stop")
        self._wait(
            lambda: not coordinator.membership.count("learner"),
            budget.learner,
            goes_on=lambda: (
                coordinator.membership.is_saving() or coordinator.receives_file("learner")
            ),
        )
        if coordinator.membership.count("learner"):
            self._session.say("learner 0 has not left in time: its last checkpoint is what remains")
        coordinator.command(["replay"], "stop")
        coordinator.finish(self._metrics.learner_steps())
        hurried = self._session.interrupts.count > 0
        self._wait(
            lambda: not coordinator.membership.count("evaluator"),
            0.0 if hurried else budget.evaluator,
        )
        coordinator.command(["evaluator"], "stop")
        coordinator.command(["host"], "stop")
        self._wait(
            lambda: not self._supervisor.alive() and not coordinator.membership.count("host"),
            budget.last,
        )

    def _wait(
        self,
        done: Callable[[], bool],
        seconds: float,
        goes_on: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait so long, and longer while something goes on that is worth it, which has a bound."""
        deadline = time.monotonic() + seconds
        last = deadline + _FILES_SECONDS
        hurried = self._session.interrupts.count > 0
        while not done() and ((now := time.monotonic()) < deadline or (now < last and goes_on())):
            self._turn(0.02)
            if self._session.interrupts.count and not hurried:
                # The person does not want to wait for what is left.
                hurried, deadline = True, min(deadline, time.monotonic() + 1.0)

    def _end_now(self) -> None:
        """The second Ctrl-C."""
        self._supervisor.kill_all()
        self._session.console.stop()
        self._remove_sockets()
        os._exit(EXIT_INTERRUPTED_TWICE)

    def _remove_sockets(self) -> None:
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _member_views(self) -> list[MemberView]:
        joined = {(m.key.role, m.key.index): m for m in self._coordinator.membership.members()}
        local = self._supervisor.slots()
        views = [
            self._view(role, index, joined.get((role, index)), local.get((role, index)))
            for role, index in sorted(joined.keys() | local.keys())
        ]
        return [*views, self._own_host()] if self._coordinator.membership.count("host") else views

    def _own_host(self) -> MemberView:
        """This host, as the others describe themselves."""
        name, pid = socket.gethostname(), os.getpid()
        return MemberView("host", -1, name, pid, "alive", "", *machine.load())

    def _view(
        self, role: str, index: int, member: Member | None, process: MemberState | None
    ) -> MemberView:
        if member is None:
            return MemberView(role, index, socket.gethostname(), 0, process or "starting")
        gauges = self._metrics.member_gauges(role, index)
        return MemberView(
            role,
            index,
            self._coordinator.host_of(member),
            member.pid,
            self._joined_state(member),
            member.activity or _gpu(gauges),
            gauges.get("host_cpu_percent", gauges.get("cpu_percent", 0.0)),
            int(gauges.get("host_memory_bytes", gauges.get("memory_bytes", 0))),
            member.key.incarnation,
        )

    def _joined_state(self, member: Member) -> MemberState:
        late = 3 * self._config.system.telemetry_seconds + 1
        if self._coordinator.membership.silent_seconds(member) > late:
            return "late"
        return "alive" if member.reported else "starting"


def _gpu(gauges: dict[str, float]) -> str:
    """What a role's GPU does, in a few words; empty without one."""
    if "gpu_percent" not in gauges:
        return ""
    return f"GPU {gauges['gpu_percent']:.0f}% {size(gauges['gpu_memory_bytes'])}"
