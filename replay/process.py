"""The replay process: it takes TransitionBatches as permitted, and answers the learner."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import zmq

from pdqn import transport, wire
from pdqn.clients import name_of
from pdqn.config import Config, resolved
from pdqn.connections import Bounds, Connections, most_connections
from pdqn.heartbeat import WAITS_FOR_DISK, Heartbeat
from pdqn.link import CoordinatorLink, role
from pdqn.messages import Welcome
from pdqn.socket_files import SocketFile
from pdqn.spans import MAX_SPANS, Stream
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from pdqn.transport import Network
from replay.durability import StoppedError, open_shard
from replay.intake import Intake
from replay.outlet import MOST_REQUESTS_PER_TURN, Outlet
from replay.sender import Hello, encode_acknowledgement
from replay.sequences import bound_streams
from replay.waiting import largest_batch_bytes, window_batches, window_bytes

_POLL_MILLISECONDS = 50
# While acknowledgements wait for the disk.
_SYNC_MILLISECONDS = 2
# During a drain the end of the run waits for reports.
_DRAIN_REPORT_SECONDS = 0.1
# Inserts and answers take turns of this length, so that neither side waits long.
_TURN_SECONDS = 0.001
_ATTEND_SECONDS = 0.01
_MOST_GREETINGS_PER_TURN = 100
# What an actor may have waiting beside its window: handshakes, and what a broken connection left.
_SLACK_BYTES = 1 << 20
_SPARE_ACTORS = 16
# Of one connection; an actor says hello once.
_MOST_HELLOS = 8
_MOST_STATES_IN_PIPE = 16
# The roles that have business at each socket.
_ROLES = {"transitions": ["actor"], "acknowledgements": ["actor"], "samples": ["learner"]}
_log = logging.getLogger("replay")


class BlockedTime:
    """The time for which inserting or sampling has been blocked, by the caller's clock."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._side: Literal["inserts", "samples"] | None = None
        self._since = self._noted = 0.0

    def note(self, side: Literal["inserts", "samples"] | None, now: float) -> None:
        """Note the side that is blocked from now on; count the time of the side before it."""
        if self._side is not None:
            self._telemetry.count(f"{self._side}_blocked_seconds", now - self._noted)
        if side != self._side:
            self._side, self._since = side, now
        self._noted = now

    @property
    def seconds(self) -> float:
        """Duration of the present block when it was last noted; 0 if there is none."""
        return 0.0 if self._side is None else self._noted - self._since


class ReplayServer:
    """Sockets around the buffer and the limiter.

    Raises:
        StoppedError: the run ended before the journal was read.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], link: CoordinatorLink, welcome: Welcome
    ) -> None:
        config = welcome.config
        self._link = link
        self._telemetry = link.telemetry
        self._configured_target = resolved(config.replay.samples_per_insert)
        self._heartbeat = Heartbeat(self._tell_it_waits)
        contents, self._keeper = open_shard(link, welcome, self._heartbeat)
        self._buffer, self._limiter = contents.buffer, contents.limiter
        self._accounts = contents.accounts
        link.telemetry.take_spans = contents.accounts.take
        self._next_drain_report = 0.0
        self._drained = self._told_drained = False
        self._reports = link.reports
        self._intake = Intake(
            welcome.spec,
            welcome.run,
            self._buffer,
            link.telemetry,
            contents.sequences,
            welcome.seal,
            lambda user: name_of(link.pulse.clients, user),
            self._keeper,
            config.replay.max_age,
        )
        self._blocked = BlockedTime(link.telemetry)
        self._context, self._welcome = context, welcome
        self._bind()
        self._outlet = Outlet(self._router, welcome, contents, self._keeper, link.telemetry)

    def _bind(self) -> None:
        """Make the sockets, and announce their addresses."""
        self._hellos: dict[Stream, bytes] = {}
        self._revocations = self._link.revocations
        shard, welcome, config = self._welcome.index, self._welcome, self._welcome.config
        self._pull, self._router, self._acks = _sockets(
            self._context, config, largest_batch_bytes(welcome.spec, config)
        )
        served = {
            "transitions": self._pull,
            "samples": self._router,
            "acknowledgements": self._acks,
        }
        bounds = _bounds(welcome.spec, config)
        self._actor_bytes = bounds["transitions"].connection_bytes
        self._connections = {
            name: Connections(socket, welcome.address(name), bounds[name])
            for name, socket in served.items()
        }
        bound = {
            name: transport.bind(socket, welcome.address(name), _ROLES[name])
            for name, socket in served.items()
        }
        self._socket_files = [SocketFile(served[name], bound[name]) for name in served]
        self._link.serve_at({f"{name}/{shard}": endpoint for name, endpoint in bound.items()})
        self._all, self._learner_only = zmq.Poller(), zmq.Poller()
        for poller in (self._all, self._learner_only):
            self._link.register(poller)
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._acks, zmq.POLLIN)
        self._all.register(self._pull, zmq.POLLIN)

    def _bind_anew(self) -> None:
        """Drop every connection: those with keys that are still allowed come back by themselves.

        Nothing is lost: actors repeat unacknowledged batches, and the learner asks again.
        """
        for connections in self._connections.values():
            connections.close()
        for socket in (self._pull, self._router, self._acks):
            socket.close(0)
        self._bind()
        self._outlet.serve_at(self._router)

    def serve(self) -> None:
        """Take batches and answer requests until this role must stop."""
        next_attention = 0.0
        while not self._link.stopping:
            now = time.monotonic()
            end = now + _TURN_SECONDS
            busy = self._take_transitions(end)
            busy |= self._take_requests()
            busy |= self._outlet.answer(end + _TURN_SECONDS)
            with self._heartbeat:
                self._keeper.write()
            has_other_work = not busy and self._wait()
            self._note_blocked()
            if has_other_work or now >= next_attention:
                next_attention = now + _ATTEND_SECONDS
                self._attend()
        with self._heartbeat:
            self._keeper.close()

    def _tell_it_waits(self) -> None:
        """Keep in touch with the coordinator while the disk of the journal hangs."""
        self._telemetry.activity = WAITS_FOR_DISK
        self._link.poll()

    @property
    def _open(self) -> bool:
        """Return whether to take actors' data: the limiter permits it, or the run is being drained.

        An empty shard always takes some. It may be the last one alive, with samples due that only
        it could give.
        """
        if self._keeper.blocked:
            return False
        free = self._buffer.size == 0 or self._limiter.limiter.can_insert()
        return free or self._link.pulse.command == "drain"

    def _take_transitions(self, end: float) -> bool:
        any_taken = False
        while self._open:
            try:
                frame = self._pull.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                # Whatever had come by then is settled.
                self._drained = self._link.pulse.command == "drain"
                break
            user = transport.user_of(frame, self._context)
            self._connections["transitions"].read(frame, len(frame), user, several=frame.more)
            inserted, stream = self._intake.take(frame.buffer, user)
            self._limiter.count_inserted(inserted)
            if stream is not None:
                self._keeper.owe(stream, self._intake.expected(stream))
            any_taken = True
            if time.monotonic() >= end:
                break
        # Before anything is acknowledged, and before any of it is sampled.
        with self._heartbeat:
            self._keeper.write()
        self._acknowledge()
        return any_taken

    def _acknowledge(self) -> None:
        """Tell actors which batch is expected next, if they have said hello.

        One acknowledgement covers several batches: sending costs as much as inserting.
        """
        with self._heartbeat:
            settled = self._keeper.settled()
        for stream, expected, greeting in settled:
            identity = self._hellos.get(stream)
            if identity is not None:
                # A ROUTER drops messages for a peer that is gone: it says hello again.
                answer = encode_acknowledgement(expected, greeting=greeting)
                self._acks.send_multipart([identity, answer])

    def _take_requests(self) -> bool:
        any_taken = False
        for _ in range(MOST_REQUESTS_PER_TURN):
            try:
                identity = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            any_taken = True
            frame = self._router.recv(copy=False)
            several, nbytes = frame.more, len(frame) + _drain(self._router, frame)
            user = transport.user_of(frame, self._context)
            self._connections["samples"].read(frame, nbytes, user, several=several)
            if several:
                self._outlet.reject(wire.WireError("malformed", "several frames"))
            else:
                self._outlet.take(identity, frame.bytes)
        self._intake.set_learner_steps(self._outlet.learner_steps)
        return any_taken

    def _wait(self) -> bool:
        """Sleep until there may be work; return whether it may be other than data and requests.

        A replay that waits for single messages wakes up a thousand times a second.
        """
        self._note_blocked()
        milliseconds = _SYNC_MILLISECONDS if self._keeper.waits else _POLL_MILLISECONDS
        woken = (self._all if self._open else self._learner_only).poll(milliseconds)
        return not woken or any(socket not in (self._pull, self._router) for socket, _ in woken)

    def _note_blocked(self) -> None:
        side = None
        if not self._open:
            side = "inserts"
        elif self._outlet.blocked:
            side = "samples"
        self._blocked.note(side, time.monotonic())

    def _attend(self) -> None:
        """Do the work that is not needed in every turn."""
        self._link.poll()
        if self._reports != self._link.reports:
            self._reports = self._link.reports
            self._keeper.note_report()
        with self._heartbeat:
            self._keeper.attend()
        self._connections["transitions"].set_key_bytes(self._most_waiting_bytes)
        for connections in self._connections.values():
            transport.tend(self._context, connections)
        for file in self._socket_files:
            file.tend()
        if self._revocations != self._link.revocations:
            self._bind_anew()
        self._greet()
        self._follow_target()
        self._outlet.attend()
        self._report()
        self._report_drained()

    @property
    def _most_waiting_bytes(self) -> int:
        """The bytes of batches that may wait here: of all actors, which may share one key.

        It is not more than is planned for this process, however many actors join.
        """
        actors = max(self._link.pulse.actor_slots, self._welcome.config.actor.count or 0)
        spare_bytes = _SPARE_ACTORS * self._actor_bytes
        waiting_bytes = actors * self._actor_bytes + spare_bytes
        return min(waiting_bytes, max(spare_bytes, self._welcome.memory_bytes or waiting_bytes))

    def _greet(self) -> None:
        """Answer actors that say hello with the present state."""
        for _ in range(_MOST_GREETINGS_PER_TURN):
            try:
                identity = self._acks.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            frame = self._acks.recv(copy=False)
            several, nbytes = frame.more, len(frame) + _drain(self._acks, frame)
            user = transport.user_of(frame, self._context)
            self._connections["acknowledgements"].read(frame, nbytes, user, several=several)
            hello = None if several else Hello.decode(frame.bytes)
            if hello is None:
                self._telemetry.count("rejected/hello")
                continue
            stream = (hello.actor, hello.incarnation)
            if self._intake.greets(user, stream, hello.ticket):
                self._remember(stream, identity)
                self._keeper.owe(stream, self._intake.expected(stream), greeting=True)
        self._acknowledge()

    def _remember(self, stream: Stream, identity: bytes) -> None:
        """Acknowledge a stream to this connection from now on."""
        self._hellos.pop(stream, None)  # the newest are last
        self._hellos[stream] = identity
        bound_streams(self._hellos)

    def _follow_target(self) -> None:
        """Aim at the run's present samples_per_insert."""
        target = self._link.pulse.samples_per_insert or self._configured_target
        limiter = self._limiter.limiter
        if target != limiter.target:
            _log.info("samples_per_insert is %g from now on, after %g", target, limiter.target)
            limiter.set_samples_per_insert(target)

    def _report(self) -> None:
        telemetry, limiter = self._telemetry, self._limiter.limiter
        telemetry.gauge("size", self._buffer.size)
        telemetry.gauge("stored_bytes", self._buffer.stored_bytes)
        telemetry.counters["priorities_clipped"] = self._buffer.priorities_clipped
        telemetry.gauge("journal_bytes", self._keeper.journal_bytes)
        telemetry.gauge("spans_waiting", max(0, self._accounts.waiting - MAX_SPANS))
        telemetry.gauge("drained", self._drained and self._accounts.waiting <= MAX_SPANS)
        telemetry.gauge("limiter_balance", limiter.balance)
        telemetry.gauge("limiter_target", limiter.target)
        telemetry.gauge("blocked_for_seconds", self._blocked.seconds)
        telemetry.activity = self._describe()

    def _report_drained(self) -> None:
        """Report soon what was settled during a drain, for which the end of the run waits."""
        now = time.monotonic()
        is_news = self._accounts.waiting or self._drained != self._told_drained
        if self._drained and is_news and now >= self._next_drain_report:
            self._next_drain_report = now + _DRAIN_REPORT_SECONDS
            self._told_drained = self._drained
            self._link.report()

    def _describe(self) -> str:
        """Describe which side waits for what; empty if neither waits."""
        limiter = self._limiter.limiter
        if self._keeper.blocked:
            return "actors wait for the journal: it cannot be written"
        if not self._open:
            return limiter.why_not_insert()
        if not limiter.filled:
            # With several shards, the learner asks for rows only when there are enough.
            return limiter.why_not_sample(1)
        return self._outlet.waits_for


def run_replay(
    address: str,
    index: int | None = None,
    log_path: Path | None = None,
    network: Network | None = None,
) -> None:
    """Run one replay process, from joining to leaving."""
    with (
        role("replay", address, index, log_path, network) as (context, link, welcome),
        suppress(StoppedError),
    ):
        ReplayServer(context, link, welcome).serve()


def _drain(socket: zmq.Socket[bytes], frame: zmq.Frame) -> int:
    """Drop the frames that follow one in the same message; return their size in bytes."""
    nbytes = 0
    while frame.more:
        frame = socket.recv(copy=False)
        nbytes += len(frame)
    return nbytes


def _bounds(spec: EnvironmentSpec, config: Config) -> dict[str, Bounds]:
    """Return the bounds of each socket's connections."""
    most = most_connections(config.actor.count or 0)
    each = window_bytes(spec, config) + largest_batch_bytes(spec, config) + _SLACK_BYTES
    return {
        "transitions": Bounds(most, each, most * each),
        "samples": Bounds(most),
        "acknowledgements": Bounds(most, 1 << 20, 8 << 20, _MOST_HELLOS),
    }


def _sockets(
    context: zmq.Context[zmq.Socket[bytes]], config: Config, batch_bytes: int
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Make the sockets for transitions, samples and acknowledgements, not bound yet."""
    pull = context.socket(zmq.PULL)
    # The actors' windows of unacknowledged batches bound the queue.
    pull.setsockopt(zmq.RCVHWM, window_batches(config))
    pull.setsockopt(zmq.MAXMSGSIZE, batch_bytes)
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
    # A learner has few batches outstanding; states come between them.
    router.setsockopt(zmq.SNDHWM, _MOST_STATES_IN_PIPE + 4 * config.learner.prefetch)
    # An answer to a peer that is gone or does not read raises an error instead of vanishing.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    acks = context.socket(zmq.ROUTER)
    acks.setsockopt(zmq.LINGER, 1000)
    # Not less: the limit also applies to the handshake's own messages.
    acks.setsockopt(zmq.MAXMSGSIZE, 1024)
    acks.setsockopt(zmq.RCVHWM, _MOST_HELLOS)
    return pull, router, acks
