"""The replay process: takes TransitionBatches while the limiter lets it, answers the learner."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

import zmq

from pdqn import transport, wire
from pdqn.config import resolved
from pdqn.link import CoordinatorLink, role
from pdqn.messages import Welcome
from pdqn.telemetry import Telemetry
from pdqn.transport import Network
from replay.buffer import make_buffer
from replay.intake import Intake, Stream
from replay.limiter import make_limiter
from replay.outlet import MOST_REQUESTS_PER_TURN, Outlet
from replay.sender import encode_ack, subscriber_of
from replay.sharding import ShardLimiter

_POLL_MILLISECONDS = 50
# Inserts and answers take turns of this length, so that neither waits long for the other.
_TURN_SECONDS = 0.001
_ATTEND_SECONDS = 0.01
_MOST_GREETINGS_PER_TURN = 100
_MOST_ANSWERS_IN_PIPE = 128
_log = logging.getLogger("replay")


class BlockedTime:
    """How long inserting or sampling has been blocked. Clocks are the caller's, in seconds."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._side: Literal["inserts", "samples"] | None = None
        self._since = self._noted = 0.0

    def note(self, side: Literal["inserts", "samples"] | None, now: float) -> None:
        """From now on this side is blocked; until now it was the one noted before."""
        if self._side is not None:
            self._telemetry.count(f"{self._side}_blocked_seconds", now - self._noted)
        if side != self._side:
            self._side, self._since = side, now
        self._noted = now

    @property
    def seconds(self) -> float:
        """How long the present block had lasted when it was last noted; 0 for none."""
        return 0.0 if self._side is None else self._noted - self._since


class ReplayServer:
    """Sockets around buffer and limiter."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], link: CoordinatorLink, welcome: Welcome
    ) -> None:
        config = welcome.config
        self._link = link
        self._telemetry = link.telemetry
        self._configured_target = resolved(config.replay.samples_per_insert)
        self._buffer = make_buffer(config, welcome.spec, welcome.index, welcome.incarnation)
        self._limiter = ShardLimiter(make_limiter(config))
        self._intake = Intake(
            welcome.spec, welcome.run, self._buffer, link.telemetry, config.actor.window
        )
        self._blocked = BlockedTime(link.telemetry)
        self._context, self._welcome = context, welcome
        self._bind()
        self._outlet = Outlet(self._router, welcome, self._buffer, self._limiter, link.telemetry)

    def _bind(self) -> None:
        """Make the sockets, and tell everybody where they are."""
        self._revocations = self._link.revocations
        self._pull, self._router, self._acks = _sockets(
            self._context, self._welcome.config.actor.window
        )
        shard, welcome = self._welcome.index, self._welcome
        served = {
            "transitions": self._pull,
            "samples": self._router,
            "acknowledgements": self._acks,
        }
        self._link.serve_at(
            {
                f"{name}/{shard}": transport.bind(socket, welcome.address(name))
                for name, socket in served.items()
            }
        )
        self._all, self._learner_only = zmq.Poller(), zmq.Poller()
        for poller in (self._all, self._learner_only):
            self._link.register(poller)
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._acks, zmq.POLLIN)
        self._all.register(self._pull, zmq.POLLIN)

    def _bind_anew(self) -> None:
        """Drop every connection: those whose keys are still let in come back by themselves.

        Nothing is lost: actors send again what is not acknowledged, the learner asks again.
        """
        for socket in (self._pull, self._router, self._acks):
            socket.close(0)
        self._bind()
        self._outlet.serve_at(self._router)

    def serve(self) -> None:
        """Take and answer until told to stop."""
        next_attention = 0.0
        while not self._link.stopping:
            now = time.monotonic()
            end = now + _TURN_SECONDS
            busy = self._take_transitions(end)
            busy |= self._take_requests()
            busy |= self._outlet.answer(end + _TURN_SECONDS)
            if not busy:
                self._wait()
            self._note_blocked()
            if not busy or now >= next_attention:
                next_attention = now + _ATTEND_SECONDS
                self._attend()

    @property
    def _open(self) -> bool:
        """Whether actors' data is taken: the limiter lets it, or the run is being drained.

        An empty shard always takes some: it may be the last one alive, with samples due that only
        it could give.
        """
        free = self._buffer.size == 0 or self._limiter.limiter.can_insert()
        return free or self._link.pulse.command == "drain"

    def _take_transitions(self, end: float) -> bool:
        any_taken = False
        streams: set[Stream] = set()
        while self._open:
            try:
                frame = self._pull.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            inserted, stream = self._intake.take(frame.buffer)
            self._limiter.count_inserted(inserted)
            if stream is not None:
                streams.add(stream)
            any_taken = True
            if time.monotonic() >= end:
                break
        # One for several batches: sending costs as much as inserting.
        for stream in streams:
            self._acks.send(encode_ack(*stream, self._intake.expected(stream)))
        return any_taken

    def _take_requests(self) -> bool:
        any_taken = False
        for _ in range(MOST_REQUESTS_PER_TURN):
            try:
                identity = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            any_taken = True
            frame = self._router.recv(copy=False)
            if frame.more:
                while self._router.recv(copy=False).more:
                    pass
                self._outlet.reject(wire.WireError("malformed", "several frames"))
            else:
                self._outlet.take(identity, frame.bytes)
        self._intake.learner_steps = self._outlet.learner_steps
        return any_taken

    def _wait(self) -> None:
        """Sleep until something can be done."""
        self._note_blocked()
        (self._all if self._open else self._learner_only).poll(_POLL_MILLISECONDS)

    def _note_blocked(self) -> None:
        side = None
        if not self._open:
            side = "inserts"
        elif self._outlet.blocked:
            side = "samples"
        self._blocked.note(side, time.monotonic())

    def _attend(self) -> None:
        """What need not be looked at all the time."""
        self._link.poll()
        if self._revocations != self._link.revocations:
            self._bind_anew()
        self._greet()
        self._follow_target()
        self._outlet.attend()
        self._report()

    def _greet(self) -> None:
        """Tell those who newly listen for acknowledgements what they may take as received."""
        for _ in range(_MOST_GREETINGS_PER_TURN):
            try:
                stream = subscriber_of(self._acks.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if stream is not None:
                expected = self._intake.expected(stream)
                self._acks.send(encode_ack(*stream, expected, greeting=True))

    def _follow_target(self) -> None:
        """Aim at the samples_per_insert that the run has now."""
        target = self._link.pulse.samples_per_insert or self._configured_target
        limiter = self._limiter.limiter
        if target != limiter.target:
            _log.info("samples_per_insert is %g from now on, after %g", target, limiter.target)
            limiter.set_samples_per_insert(target)

    def _report(self) -> None:
        telemetry, limiter = self._telemetry, self._limiter.limiter
        telemetry.gauge("size", self._buffer.size)
        telemetry.gauge("stored_bytes", self._buffer.stored_bytes)
        telemetry.gauge("limiter_balance", limiter.balance)
        telemetry.gauge("limiter_target", limiter.target)
        telemetry.gauge("blocked_for_seconds", self._blocked.seconds)
        telemetry.activity = self._describe()

    def _describe(self) -> str:
        """Who waits for what; empty if nobody does."""
        limiter = self._limiter.limiter
        if not self._open:
            return limiter.why_not_insert()
        if not limiter.filled:
            # The learner of several shards does not ask for rows before there are enough.
            return limiter.why_not_sample(1)
        return self._outlet.waits_for


def run_replay(
    address: str,
    index: int | None = None,
    log_path: Path | None = None,
    network: Network | None = None,
) -> None:
    """One replay process, from joining to leaving."""
    with role("replay", address, index, log_path, network) as (context, link, welcome):
        ReplayServer(context, link, welcome).serve()


def _sockets(
    context: zmq.Context[zmq.Socket[bytes]], window: int
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes], zmq.Socket[bytes]]:
    """The sockets for transitions, samples and acknowledgements, not bound yet."""
    pull = context.socket(zmq.PULL)
    # What waits here is bounded by the actors' windows of unacknowledged batches.
    pull.setsockopt(zmq.RCVHWM, window)
    pull.setsockopt(zmq.MAXMSGSIZE, wire.MAX_TRANSITION_BYTES)
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
    router.setsockopt(zmq.SNDHWM, _MOST_ANSWERS_IN_PIPE)
    # An answer to somebody who is gone, or who does not read, is an error and not dropped.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    acks = context.socket(zmq.XPUB)
    acks.setsockopt(zmq.LINGER, 1000)
    acks.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
    # A subscriber whose connection broke subscribes again, maybe before the old one is gone.
    acks.setsockopt(zmq.XPUB_VERBOSE, 1)
    return pull, router, acks
