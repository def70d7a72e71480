"""A run of many processes: it starts the roles, watches them, and stops them in order."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import replace
from functools import partial

from launcher.console.controls import Controls
from launcher.console.views import MemberViews
from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.files import FileDesk, FileStore
from launcher.hosts.access import Access
from launcher.hosts.address import RunAddress, remove_address
from launcher.hosts.dask.cluster import DaskCluster
from launcher.hosts.dask.roles import DaskRoles, Wanted
from launcher.hosts.keys import ALLOWED
from launcher.hosts.supervisor import Supervisor
from launcher.interrupts import EXIT_INTERRUPTED_TWICE
from launcher.metrics.metrics import MemberKey
from launcher.metrics.roster import Roster
from launcher.plan.inspector import Inspector
from launcher.plan.memory import LAUNCHER_BYTES, Estimates
from launcher.processes.forkserver import ForkServer
from launcher.results.rescue import LastParameters
from launcher.run.ends import Ends
from launcher.run.session import Session
from launcher.run.stopping import Stopping
from launcher.rundir import STATE_FILE
from launcher.sockets import SocketsFolder, make_folder
from pdqn import transport
from pdqn.broadcast import Relay
from pdqn.clients import Clients
from pdqn.config import resolved
from pdqn.errors import RunError
from pdqn.memory import MemoryLimit, held_bytes
from pdqn.messages import Welcome

_TURN_SECONDS, _CHECK_SECONDS = 0.1, 0.1
_JOIN_SECONDS = 120.0
_HOLD_SECONDS = 30.0
_LAST_SAVE_SECONDS = 10.0
_FLUSH_SECONDS = 0.5


class Run:
    """A run whose roles are processes: on this host, or joined from elsewhere.

    Args:
        session: the run's settings, records and console.
        access: the terms on which other hosts take part; by default they cannot.
        cluster: runs all roles but the evaluator, in place of this host.
        forkserver: what actors are forked from, if it is begun already.
        parameter_bytes: size of the network's parameters.
    """

    def __init__(
        self,
        session: Session,
        access: Access | None = None,
        cluster: DaskCluster | None = None,
        forkserver: ForkServer | None = None,
        parameter_bytes: int = 0,
    ) -> None:
        self._access = access or Access()
        self._cluster = cluster
        self._dask: DaskRoles | None = None
        self._session = session
        self._config = session.config
        self._metrics = session.metrics
        self._run = uuid.uuid4().hex
        self._sockets = SocketsFolder(make_folder())
        self._context = transport.Context(self._access.network)
        self._files = FileStore(session.run_dir.path, self._config.checkpoint.keep)
        try:
            self._coordinator = self._make_coordinator(parameter_bytes)
        except BaseException:
            self._close_doors()
            raise
        logs, allowed = session.run_dir.logs, self._config.system.restarts
        network = self._access.network
        # Parameters from another host cross the network once for all actors here.
        self._relay: Relay | None = None
        if "learner" in self._access.elsewhere and self._actors_here:
            self._relay = Relay(network, f"ipc://{self._sockets.path}/parameters")
            network = replace(network, relay=self._relay.endpoint)
        self._supervisor = Supervisor(
            self._local_endpoint(),
            logs,
            allowed,
            session.restarts,
            network,
            forkserver=(forkserver or ForkServer()) if self._actors_here else None,
        )
        session.state.incarnations = self._coordinator.membership.incarnations
        self._ends = Ends(session, self._coordinator, self._supervisor)
        late_seconds = 3 * self._config.system.telemetry_seconds + 1
        self._views = MemberViews(self._coordinator, self._supervisor, self._metrics, late_seconds)
        self._last = LastParameters(self._context, self._run)
        self._next_check, self._key_trouble = 0.0, ""
        self._allowed: Clients | None = None
        self._memory = MemoryLimit("launcher", LAUNCHER_BYTES, self._config.system.memory_limit)
        session.take(self._controls())

    def execute(self) -> int:
        """Run to the end; return the exit code."""
        session = self._session
        session.rescue = lambda: self._last.save(session.run_dir.path, self._config, session.spec)
        session.start(self._end_now)
        try:
            self._start_roles()
            reason = self._train()
            session.enter("stopping")
            session.records.event("stopping", reason=reason)
            self._stop()
        except Exception:
            # A fault of this program itself must not lose what was learned, and the terminal must
            # show it.
            session.console.stop()
            self._supervisor.ask_to_leave()
            self._supervisor.join(_LAST_SAVE_SECONDS, ["learner"])
            session.records.aside(session.rescue)
            raise
        finally:
            self._supervisor.kill_all()
            self._last.close()
            if self._relay is not None:
                self._relay.close()
            self._coordinator.close()
            self._close_doors()
        session.state.reserved.clear()  # no process starts any more
        return session.conclude(reason, Roster.of(self._views.present()))

    def _make_coordinator(self, parameter_bytes: int) -> Coordinator:
        address, bind = f"ipc://{self._sockets.path}/coordinator", self._access.address
        versions: dict[str, str] = {}
        role_bind = f"ipc://{self._sockets.path}/{{role}}-{{name}}"
        if bind is not None:
            address, role_bind = f"tcp://{bind}", "tcp://{host}:*"
            # Only other hosts compare versions, and looking through all packages takes a moment.
            with Inspector(self._config.system) as inspector:
                versions = inspector.versions(self._config.run.env)
        if self._access.clients is not None:
            # Before anybody can connect: a host that is refused does not try again.
            self._context.allow(self._access.clients.clients)
        directory = self._session.run_dir
        directory.name_run(self._run)
        directory.restore = self._restore
        config, spec, path = self._config, self._session.spec, str(directory.path.resolve())
        coordinator = Coordinator(
            self._context,
            address,
            welcome=Welcome(self._run, 0, 0, config, spec, role_bind, path, versions),
            metrics=self._metrics,
            files=FileDesk(self._files, self._session.records.aside),
            own_actors=0 if "actor" in self._access.elsewhere else None,
            incarnations=self._session.state.incarnations,
            memory=Estimates(config, spec, parameter_bytes).of_roles(),
            may_admit=self._reserve,
        )
        if self._access.clients is not None:
            coordinator.allow(self._access.clients.clients)
        return coordinator

    def _controls(self) -> Controls:
        coordinator = self._coordinator
        return Controls(
            hold=lambda hold: coordinator.command(["actor"], "hold" if hold else "run"),
            save=coordinator.save,
            samples_per_insert=lambda: coordinator.samples_per_insert,
            set_samples_per_insert=coordinator.set_samples_per_insert,
        )

    def _local_endpoint(self) -> str:
        return self._access.local_endpoint(self._coordinator.endpoint)

    def _reserve(self, key: MemberKey) -> bool:
        """Return whether the next session will count this start, even if this one is killed now.

        If it would not, the state that reserves it is written first. Only a start waits for that.
        """
        session, state = self._session, self._session.state
        if state.covers(key.role, key.index, key.incarnation):
            return True
        if not session.records.replaces(STATE_FILE):
            state.reserve_around(key.role, key.index)
            session.save_state()
        return False

    def _reserve_own(self) -> None:
        """Reserve the first starts of all roles that are configured, in one write."""
        config = self._config
        counts = {"replay": config.replay.shards, "learner": 1, "evaluator": 1}
        counts["actor"] = config.actor.count or 0
        self._session.state.reserve((role, i) for role, n in counts.items() for i in range(n))
        self._session.save_state()

    def _start_roles(self) -> None:
        self._reserve_own()
        self._invite()
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
            if self._session.is_hurried:
                return
            self._supervisor.start("actor", index)
            self._turn(0.0)

    def _invite(self) -> None:
        """Let other processes find the run, and tell a person how they join."""
        if self._access.address is None:
            return
        directory = self._session.run_dir.path
        RunAddress(self._run, self._local_endpoint()).write(directory)
        if invitation := self._access.invitation(self._coordinator.endpoint, directory):
            self._session.say(invitation)

    def _restore(self) -> None:
        """Write the way in again, into a directory that was removed.

        Keys are not written again: without the list of them, only this host is admitted.
        """
        directory = self._session.run_dir
        self._files.run_dir = directory.path
        if self._access.address is not None:
            RunAddress(self._run, self._local_endpoint()).write(directory.path)

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
        """Watch the run until it is to end; return the reason."""
        while not (reason := self._session.end_reason()):
            self._turn(_TURN_SECONDS)
        return reason

    def _turn(self, timeout_seconds: float) -> None:
        """Hear the roles, look after them, and show the run; called until the very end."""
        self._hear(timeout_seconds)
        # Not with every message: asking a hundred processes whether they live takes a millisecond.
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECONDS
            self._supervise()
        if self._session.tick():
            if line := self._sockets.look():
                self._session.records.event("sockets", text=line)
                self._session.say(line)
            self._look_at_memory()
            self._ends.look()
        self._session.record()
        self._session.obey_keys()
        self._session.show(self._views.recent)
        self._coordinator.seen = self._session.seen

    def _hear(self, timeout_seconds: float) -> None:
        """Take in what roles send, and write down what happens to them."""
        self._coordinator.poll(timeout_seconds)
        self._last.hear()
        if self._coordinator.was_away:
            # This process was suspended, and with it all actors here: that was not a standstill.
            self._metrics.expect_steps(time.monotonic())
        # First what a role said about its end, then the end itself.
        while self._coordinator.events:
            self._ends.take(self._coordinator.events.popleft())

    def _look_at_keys(self) -> None:
        """Admit the keys that the list names now, and report when it cannot be read."""
        if (clients := self._access.clients) is None:
            return
        if not self._session.records.replaces(ALLOWED):
            self._session.records.aside(clients.look, key=ALLOWED)
        if clients.clients is not self._allowed:  # each reading makes a new one
            self._allowed = clients.clients
            self._coordinator.allow(self._allowed)
        if clients.trouble != self._key_trouble:
            self._key_trouble = clients.trouble
            self._session.say(clients.trouble or "the list of keys can be read again")

    def _look_at_memory(self) -> None:
        """Warn once if this process holds too much: if it ended, so would the run."""
        if excess := self._memory.excess(held_bytes()):
            self._memory.multiple = 0.0
            self._session.note("memory", "launcher", 0, excess)

    def _follow_learner(self) -> None:
        """Point the relay at the learner's present address."""
        if self._relay is None:
            return
        try:
            self._relay.follow(
                self._coordinator.membership.places.served().get("parameters", ""),
                self._coordinator.membership.orders.revoked,
            )
        except RunError as error:
            self._session.fail(str(error))

    def _supervise(self) -> None:
        session = self._session
        for ended in self._supervisor.check(may_start=self._sockets.is_open):
            self._coordinator.lost(ended.role, ended.index, ended.pid)
            if session.stage != "stopping":
                self._ends.handle(ended)
        self._look_at_keys()
        self._follow_cluster()
        self._follow_learner()
        if session.stage == "starting":
            self._maybe_begin()
        elif session.stage == "running":
            if self._access.elsewhere:
                session.wait_for(self._coordinator.membership.missing())
            else:
                gone = (f"{role} (none is left)" for role in self._ends.absent())
                session.wait_for(", ".join(gone))

    def _follow_cluster(self) -> None:
        if self._dask is None:
            return
        try:
            self._dask.turn()
        except RunError as error:
            self._session.fail(str(error))

    def _maybe_begin(self) -> None:
        """Let the actors step once all roles are there, or after a while one of each kind."""
        session = self._session
        session.wait_for(self._coordinator.membership.missing())
        waited = session.session_seconds
        some = all(
            self._coordinator.membership.count(role) for role in ("replay", "learner", "actor")
        )
        if not session.waiting_for or (some and waited > _HOLD_SECONDS):
            session.enter("running")
            self._coordinator.command(["actor", "evaluator"], "run")
            session.records.event("running", seconds=round(waited, 3))
        elif waited > self._join_seconds:
            session.fail(f"still waiting for {session.waiting_for}")

    @property
    def _join_seconds(self) -> float:
        """Return the seconds to wait for roles, which are more if a person starts them."""
        by_hand = self._access.elsewhere or not self._config.actor.count
        return self._config.system.join_seconds if by_hand else _JOIN_SECONDS

    def _stop(self) -> None:
        """End all roles in order."""
        if self._dask is not None:
            self._dask.stop_restarting()
        self._last.follow(self._coordinator.membership.places.served().get("parameters", ""))
        Stopping(self._session, self._coordinator, self._supervisor, self._turn).stop()

    def _end_now(self) -> None:
        """End at once, after a second Ctrl-C."""
        self._supervisor.kill_all()
        self._session.console.stop()
        self._close_doors()
        if self._cluster is not None:
            self._cluster.remove_files()
        os._exit(EXIT_INTERRUPTED_TWICE)

    def _close_doors(self) -> None:
        """Remove the ways in, which nobody serves any more."""
        records = self._session.records
        records.aside(partial(remove_address, self._session.run_dir.path))
        records.flush(_FLUSH_SECONDS)  # for a run that fails; another one waits at its end
        self._sockets.remove()
