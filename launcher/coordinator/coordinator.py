"""The hub of a run: the socket that all roles join, and everything that goes through it.

Roles connect to one address. The coordinator answers each report with a pulse, and sends pulses at
once when something changes. See ``pdqn.link`` for the other side, ``membership`` for decisions.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import zmq

from launcher.coordinator.files import FileDesk
from launcher.coordinator.flood import LEFT_OUT, EventLimit
from launcher.coordinator.membership import (
    Admit,
    Event,
    Instruction,
    Instructions,
    Membership,
    Send,
    SendPulse,
)
from launcher.coordinator.places import Member
from launcher.coordinator.watchers import Watchers
from launcher.metrics.metrics import MemberKey, RunMetrics
from launcher.metrics.snapshot import Seen
from pdqn import messages, process, transport, wire
from pdqn.clients import Clients
from pdqn.config import resolved
from pdqn.connections import Bounds, Connections, most_connections
from pdqn.errors import RunError, UsageError
from pdqn.messages import (
    Fetch,
    Filed,
    FilePiece,
    Message,
    MessageError,
    Over,
    Piece,
    Unknown,
    Watch,
    Welcome,
)
from pdqn.patterns import fill
from pdqn.silence import ListeningClock
from pdqn.socket_files import SocketFile
from pdqn.tickets import new_seal, ticket_of

_MOST_MESSAGES_PER_TURN = 1000
_MOST_EVENTS = 50_000  # more than the limit lets through at once
_GATHER_SECONDS, _TURN_SECONDS = 0.02, 0.5
# While the disk has to answer first.
_BUSY_SECONDS = 0.005
_WATCHED_SECONDS = 5.0
_MOST_WARNINGS = 100
_MOST_UNREAD = 64
# Of an actor and its host, which may have one key with all others: a minute of their reports.
_UNREAD_BYTES_FOR_ACTOR = 64 << 10
_log = logging.getLogger("coordinator")


class Coordinator:
    """The ROUTER socket that all roles join. Use it from one thread.

    Args:
        context: the process's.
        address: to bind.
        welcome: what every role of the run learns on joining; its ``bind`` may hold ``{role}``.
        metrics: takes the reports.
        files: takes and gives files of the directory; None if the run has none.
        own_actors: number that the launcher starts itself; by default all that are configured.
        incarnations: number of times that each (role, index) has joined in earlier sessions.
        memory: bytes that are planned for one process of each role; without a limit for the others.
        may_admit: tells whether a process may learn its place now; it is asked again if not.

    Attributes:
        membership: the members of the run.
        endpoint: where roles join.
        seen: what watchers are sent; None before there is anything.
        events: to be written down, oldest first.
        rejected: number of refused messages, by kind.

    Raises:
        UsageError: the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        *,
        welcome: Welcome,
        metrics: RunMetrics,
        files: FileDesk | None = None,
        own_actors: int | None = None,
        incarnations: Mapping[tuple[str, int], int] | None = None,
        memory: Mapping[str, int] | None = None,
        may_admit: Callable[[MemberKey], bool] = lambda _: True,
    ) -> None:
        self._may_admit = may_admit
        self._unadmitted: list[Member] = []
        self._context, self._memory = context, memory or {}
        self._seal = new_seal()
        self._socket = context.socket(zmq.ROUTER)
        config = welcome.config
        actors = config.actor.count or 0
        waiting = max(Bounds.key_bytes, actors * _UNREAD_BYTES_FOR_ACTOR)
        bounds = Bounds(most_connections(actors), key_bytes=waiting)
        self._connections = Connections(self._socket, address, bounds)
        self.endpoint = self._bind(address)
        self._socket_file = SocketFile(self._socket, self.endpoint)
        self._welcome, self._metrics, self._files = welcome, metrics, files
        keys = transport.network_of(context).keys
        self.membership = Membership(
            welcome.run, config, metrics, own_actors, incarnations, keys.public if keys else ""
        )
        system = config.system
        timeout_seconds = min(system.heartbeat_timeout_seconds, system.host_timeout_seconds)
        self._listening = ListeningClock(timeout_seconds)
        self._configured_ratio = config.replay.samples_per_insert
        self._watchers = Watchers()
        self.seen: Seen | None = None
        self._flood = EventLimit()
        self.events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.rejected: Counter[str] = Counter()

    @property
    def samples_per_insert(self) -> float:
        """Ratio that every replay is to aim at."""
        return resolved(self.membership.orders.samples_per_insert or self._configured_ratio)

    @property
    def was_away(self) -> bool:
        """Return whether this process was suspended: it last listened after seconds of silence."""
        return self._listening.was_away

    # ---- the socket ----

    def _bind(self, address: str) -> str:
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
        # For each connection: a member sends one report a second, and few pieces of a file ahead.
        self._socket.setsockopt(zmq.RCVHWM, _MOST_UNREAD)
        self._socket.setsockopt(zmq.SNDHWM, _MOST_UNREAD)
        try:
            return transport.bind(self._socket, address)
        except (zmq.ZMQError, RunError) as error:
            self._connections.close()
            self._socket.close()
            reason = error.strerror if isinstance(error, zmq.ZMQError) else error
            raise UsageError(f"cannot bind {address}: {reason}") from error

    def poll(self, timeout_seconds: float) -> None:
        """Handle what roles sent; wait up to the timeout for the first message."""
        transport.tend(self._context, self._connections)
        self._socket_file.tend()
        for who, times in transport.turned_away(self._context).items():
            self._metrics.count(f"refused/{who}", times)
        self._go_on()
        if self._unadmitted or (self._files is not None and self._files.is_busy):
            timeout_seconds = min(timeout_seconds, _BUSY_SECONDS)
        arrived = self._socket.poll(int(timeout_seconds * 1000))
        if arrived and timeout_seconds >= _GATHER_SECONDS:
            # Of a thousand members one speaks every millisecond: a turn is not for it alone.
            time.sleep(_GATHER_SECONDS)
        self._listening.turn()
        self.membership.listened_seconds = self._listening.seconds
        end = time.monotonic() + _TURN_SECONDS
        for _ in range(_MOST_MESSAGES_PER_TURN if arrived else 0):
            if time.monotonic() >= end:
                return  # the launcher has other work, and one member may send what takes long
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            several, user = len(frames) > 2, transport.user_of(frames[-1], self._context)
            self._connections.read(frames[-1], sum(map(len, frames[1:])), user, several=several)
            self._handle(frames, user)

    def _handle(self, frames: list[zmq.Frame], user: str) -> None:
        """Handle a message, whatever it is: no message ends the run."""
        try:
            if len(frames) != 2:
                error = wire.WireError("malformed", f"{len(frames)} frames")
                raise MessageError("unreadable", error)
            identity, data = frames[0].bytes, frames[1].bytes
            self._check_key(user)
            self._receive(identity, messages.decode(data, messages.TO_COORDINATOR), user, len(data))
        except wire.WireError as error:
            self._reject(error.kind if isinstance(error, MessageError) else "file", error)
        except Exception as error:  # noqa: BLE001 - whatever a message does, the run goes on
            self._reject("unforeseen", error)

    def _reject(self, kind: str, error: Exception) -> None:
        self.rejected[kind] += 1
        self._metrics.counters.reject(kind)
        # Whoever is revoked speaks on until it has heard of that: one line is enough.
        is_news = kind != "revoked" or self.rejected[kind] == 1
        if is_news and self.rejected.total() < _MOST_WARNINGS:
            trace = error if kind == "unforeseen" else None
            _log.warning("rejected a message: %s", error, exc_info=trace)

    def _check_key(self, user: str) -> None:
        """Check the public key of a message's sender.

        Raises:
            MessageError: the key has been revoked since the connection was made.
        """
        encrypted = transport.network_of(self._context).keys is not None
        if encrypted and user not in self.membership.orders.clients:
            raise MessageError("revoked", wire.WireError("malformed", "of a revoked key"))

    def _receive(self, identity: bytes, message: Message, user: str, size_bytes: int) -> None:
        if isinstance(message, Watch):
            self._watchers.note(identity, user, time.monotonic())
            self._send(identity, self.seen or Seen())
        elif isinstance(message, FilePiece | Fetch):
            self._exchange_file(identity, message)
        else:
            now = time.monotonic()
            self._do(self.membership.receive(identity, message, now, user, size_bytes), user)

    def _do(self, instructions: Instructions, user: str = "") -> None:
        """Carry out what follows from a message of a public key, or from the launcher's wishes."""
        for instruction in instructions:
            self._carry_out(instruction, user)

    def _carry_out(self, instruction: Instruction, user: str) -> None:
        if isinstance(instruction, SendPulse):
            self._pulse(instruction.member)
        elif isinstance(instruction, Event):
            self._write_down(instruction, user)
        elif isinstance(instruction, Send):
            self._send(instruction.identity, instruction.message)
        elif isinstance(instruction, Admit):
            self._admit(instruction.member)
        else:
            for member in self.membership.members():
                self._pulse(member)

    def _write_down(self, event: Event, user: str) -> None:
        """Keep an event for the run's records, unless its place or its key has had too many."""
        kept = self._flood.take(event, time.monotonic(), user)
        self.events.extend(kept)
        if event not in kept:
            self._metrics.counters.reject(LEFT_OUT)

    def _admit(self, member: Member) -> None:
        key, bind = member.key, self._welcome.bind
        if not self._may_admit(key):
            self._unadmitted.append(member)
            return
        welcome = replace(
            self._welcome,
            index=key.index,
            incarnation=key.incarnation,
            bind=fill(bind, "role", f"{key.role}-{key.index}-{key.incarnation}"),
            pulse=self.membership.orders.pulse(member, time.monotonic()),
            memory_bytes=self._memory.get(key.role, 0),
            **self._secrets_for(member),
        )
        self._send(member.identity, welcome)

    def _secrets_for(self, member: Member) -> dict[str, bytes]:
        """Return what lets an actor prove its batches, and a replay check them."""
        key = member.key
        if key.role == "actor":
            return {"ticket": ticket_of(self._seal, key.index, key.incarnation, member.user)}
        return {"seal": self._seal} if key.role == "replay" else {}

    def _pulse(self, member: Member) -> None:
        self._send(member.identity, self.membership.orders.pulse(member, time.monotonic()))

    def _send(self, identity: bytes, message: Message) -> None:
        # A ROUTER drops messages for a peer that is gone or does not read: pulses are repeated.
        self._socket.send_multipart([identity, message.encoded])

    def close(self) -> None:
        """Tell watchers that the run is over, and close the socket."""
        for identity in self._watchers.since(time.monotonic() - _WATCHED_SECONDS):
            self._send(identity, Over())
        self._connections.close()
        self._socket.close()

    def host_of(self, member: Member) -> str:
        """Name a member's host, distinct from all others."""
        return self.membership.places.host_of(member, process.own_host())

    # ---- files and watchers ----

    def receives_file(self, role: str) -> bool:
        """Tell whether a file of a role on another host is on its way."""
        return self._files is not None and self._files.receives(role)

    def _exchange_file(self, identity: bytes, message: FilePiece | Fetch) -> None:
        """Take or give a piece of a file of a role on another host."""
        member = self.membership.places.find(identity)
        if member is None:
            self._send(identity, Unknown())
            return
        member.heard = self.membership.listened_seconds
        if self._files is None:
            raise wire.WireError("malformed", "a file, and this run has no directory")
        self._files.ask(identity, member.key.role, message)
        self._go_on()

    def _go_on(self) -> None:
        """Answer those who wait for the disk, as far as it has answered."""
        for identity, answer in () if self._files is None else self._files.answered():
            if isinstance(answer, Filed | Piece):
                self._send(identity, answer)
                continue
            is_refused = isinstance(answer, wire.WireError)
            if is_refused and (member := self.membership.places.find(identity)) is not None:
                self._do(self.membership.refuse(member.key, member.user, "a file"), member.user)
            self._reject("file" if is_refused else "unforeseen", answer)
        unadmitted, self._unadmitted = self._unadmitted, []
        for member in unadmitted:
            if self.membership.places.find(member.identity) is member:
                member.heard = self.membership.listened_seconds  # it waits, and says nothing
                self._admit(member)

    # ---- what the run wants ----

    def allow(self, clients: Clients) -> None:
        """Admit these clients only, by public key, and remove members that they do not cover."""
        if isinstance(self._context, transport.Context):
            self._context.allow(clients)
            self._do(self.membership.allow(clients))

    def command(self, roles: Iterable[str], command: str) -> None:
        """Tell roles what to do from now on."""
        self._do(self.membership.command(roles, command))

    def finish(self, final_version: int) -> None:
        """Tell the evaluator to evaluate these parameters last."""
        self._do(self.membership.finish(final_version))

    def save(self) -> None:
        """Let the learner save at once."""
        self._do(self.membership.save())

    def set_samples_per_insert(self, value: float) -> None:
        """Let every replay aim at this many samples for each insert from now on.

        Raises:
            UsageError: not a positive finite number.
        """
        self._do(self.membership.aim_at(value))

    def lost(self, role: str, index: int, pid: int | None = None) -> None:
        """Remove a role whose process has ended; see ``Membership.lost``."""
        self._do(self.membership.lost(role, index, pid))

    def lose_host(self, agent: str, *, for_good: bool = False) -> int:
        """Remove a host that has fallen silent; return how many roles it had."""
        roles, told = self.membership.lose_host(agent, for_good=for_good)
        self._do(told)
        return roles

    def resize(self, agent: str, count: int) -> None:
        """Have a host run a number of actors from now on, at least one."""
        self._do(self.membership.resize(agent, count))
