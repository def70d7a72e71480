"""A run's roles on a Dask cluster, kept alive while workers come and go.

The learner and each replay are one process on one worker; each worker has a group of actors. Each
process runs the command that a person would give there (``pdqn actor --join ...``). To the
coordinator it is a host, so all that holds for hosts that people add holds here as well. The
coordinator tells each group how many actors to have, so that actors move without a restart.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from launcher.hosts.dask.assignment import ClusterWorker, place_servers, share_actors
from launcher.hosts.dask.cluster import DaskCluster, Ending
from launcher.hosts.leash import Leash
from launcher.hosts.supervisor import RestartPolicy
from pdqn.errors import RunError, UsageError

# Nobody tells when a command is ready. It waits for a run for a minute, which is not work.
_ENOUGH_SECONDS = 90.0
_PROGRAM = ["-c", "from launcher.cli.main import main; main()"]


class Hosts(Protocol):
    """The methods of the coordinator that are needed here."""

    def resize(self, agent: str, count: int) -> None:
        """Have a host run this many actors."""
        ...

    def lose_host(self, agent: str, *, for_good: bool = False) -> int:
        """Note that a host is gone."""
        ...


@dataclass(frozen=True)
class Wanted:
    """The roles that a run has on a cluster.

    Attributes:
        actors: number in all.
        replays: number of shards.
        pins: hosts that roles must be on, by role.
        address: where they join.
        key: text of their key file; empty where nothing is encrypted.
    """

    actors: int
    replays: int
    pins: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    key: str = ""


@dataclass
class _Seat:
    """A process on the cluster, or one that is to be started.

    Attributes:
        worker: its address.
        agent: its name as a host, and the key of its task; empty while it does not run.
    """

    role: str
    worker: str
    policy: RestartPolicy
    count: int = 1
    agent: str = ""
    started: float = 0.0
    start_at: float = 0.0


class DaskRoles:
    """The roles of one run on a cluster. Call ``turn`` several times a second.

    Args:
        cluster: where they run.
        wanted: which roles.
        hosts: the coordinator.
        say: prints a line for a person.
        restarts: number in a row before a process is given up.
        restarted: restarts of each role so far; this object goes on counting in it.

    Raises:
        UsageError: there are no workers, or a pin fits none of them.
    """

    def __init__(
        self,
        cluster: DaskCluster,
        wanted: Wanted,
        hosts: Hosts,
        say: Callable[[str], None],
        restarts: int,
        restarted: dict[str, int],
    ) -> None:
        self._restarted = restarted
        self._cluster, self._wanted, self._hosts, self._say = cluster, wanted, hosts, say
        self._restarts = restarts
        # A task's key must be unique in the whole cluster, where other runs may be.
        self._run, self._numbers = uuid.uuid4().hex[:12], itertools.count()
        self._servers: dict[tuple[str, int], _Seat] = {}
        self._groups: dict[str, _Seat] = {}
        self._stopping = False
        if not cluster.workers:
            raise UsageError("the Dask cluster has no workers")
        self._arrange()

    def turn(self) -> None:
        """Follow the cluster, and start what is due.

        Raises:
            RunError: the scheduler is gone, or a role cannot be kept alive.
        """
        if self._stopping:
            return
        changed = self._cluster.poll()
        if self._cluster.is_gone:
            raise RunError("the Dask scheduler does not answer any more")
        if not self._cluster.is_heard:
            return  # what Dask says about its tasks means nothing now
        for ending in self._cluster.endings():
            self._ended(ending)
        if changed:
            self._arrange()
        now = time.monotonic()
        for seat in (*self._servers.values(), *self._groups.values()):
            there = seat.worker in self._cluster.workers
            if there and not seat.agent and now >= seat.start_at:
                self._start(seat)

    def stop_restarting(self) -> None:
        """Start nothing again: from now on processes are expected to end."""
        self._stopping = True

    # ---- placement ----

    def _arrange(self) -> None:
        """Move the roles of workers that are gone, and give new workers their share."""
        workers = self._cluster.workers
        for seat in [*self._servers.values(), *self._groups.values()]:
            if seat.worker not in workers:
                self._lose(seat)
        if not workers:
            return
        self._arrange_servers(list(workers.values()))
        self._arrange_actors(list(workers.values()))

    def _arrange_servers(self, workers: list[ClusterWorker]) -> None:
        missing = self._missing_servers()
        if not missing:
            return
        try:
            places = place_servers(workers, self._wanted.replays, self._wanted.pins)
        except UsageError as error:
            if not self._servers:
                raise
            self._say(f"{error}; the role waits for one")
            return
        for name in missing:
            self._servers[name] = _Seat(name[0], places[name], self._policy())

    def _missing_servers(self) -> list[tuple[str, int]]:
        wanted = [("replay", index) for index in range(self._wanted.replays)] + [("learner", 0)]
        workers = self._cluster.workers
        return [
            name
            for name in wanted
            if name not in self._servers or self._servers[name].worker not in workers
        ]

    def _arrange_actors(self, workers: list[ClusterWorker]) -> None:
        shares = share_actors(workers, self._wanted.actors)
        for address in [a for a in self._groups if a not in shares]:
            seat = self._groups.pop(address)
            if seat.agent:
                self._cluster.stop(seat.agent)
        for address, count in shares.items():
            seat = self._groups.get(address)
            if seat is None:
                seat = self._groups[address] = _Seat("actor", address, self._policy())
            seat.count = count
            if seat.agent:
                self._hosts.resize(seat.agent, count)

    def _policy(self) -> RestartPolicy:
        return RestartPolicy(self._restarts, _ENOUGH_SECONDS)

    # ---- processes ----

    def _start(self, seat: _Seat) -> None:
        seat.agent = f"pdqn-{self._run}-{seat.role}-{next(self._numbers)}"
        seat.started = time.monotonic()
        command = [*_PROGRAM, seat.role, "--join", self._wanted.address, "--leash"]
        if seat.role == "actor":
            command += ["--count", str(seat.count)]
        line = Leash(seat.agent, self._wanted.key).to_line()
        self._cluster.start(seat.agent, seat.worker, command, line)

    def _lose(self, seat: _Seat) -> None:
        """Handle the loss of a worker, and of the process on it."""
        if seat.agent:
            self._say(f"Dask worker {seat.worker} is gone, and with it {self._described(seat)}")
            self._cluster.stop(seat.agent)
            self._hosts.lose_host(seat.agent, for_good=True)
            self._count_restart(seat)
        seat.agent = ""
        if seat.role == "actor":
            self._groups.pop(seat.worker, None)

    def _ended(self, ending: Ending) -> None:
        seats = (*self._servers.values(), *self._groups.values())
        seat = next((seat for seat in seats if seat.agent == ending.key), None)
        if seat is None or seat.worker not in self._cluster.workers:
            return
        last = ending.tail.strip().rpartition("\n")[2]
        what = f"{self._described(seat)} on {seat.worker}: {ending.cause}"
        self._hosts.lose_host(seat.agent, for_good=True)
        seat.agent = ""
        wait = seat.policy.after_end(time.monotonic() - seat.started)
        if wait is None:
            self._say(f"{what} too often ({last}): that worker gets no more roles")
            self._cluster.exclude(seat.worker)
            if not self._cluster.workers:
                raise RunError(f"no worker of the Dask cluster can keep a role alive: {last}")
            self._arrange()
            return
        self._say(f"{what} ({last}); starts again in {wait:g} s")
        self._count_restart(seat)
        seat.start_at = time.monotonic() + wait

    def _count_restart(self, seat: _Seat) -> None:
        self._restarted[seat.role] = self._restarted.get(seat.role, 0) + seat.count

    def _described(self, seat: _Seat) -> str:
        return f"{seat.count} actors" if seat.role == "actor" else seat.role
