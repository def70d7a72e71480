"""The replay process: takes TransitionBatches while the limiter lets it, answers the learner."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import zmq
from numpy.typing import NDArray

from pdqn import seeds, transport, wire
from pdqn.config import Config, resolved
from pdqn.link import CoordinatorLink, Welcome, role
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from pdqn.transport import Network
from replay.buffer import PrioritizedBuffer, make_store
from replay.limiter import make_limiter
from replay.samples import (
    Sample,
    SampleAnswer,
    SampleLayout,
    SampleRequest,
    SlotLayout,
    decode_request,
    encode_answer,
    slot_count,
)
from replay.sender import UNKNOWN, encode_ack, subscriber_of
from replay.sharding import ShardLimiter
from replay.shared_memory import Attachments, SharedMemoryError

_POLL_MILLISECONDS = 50
# Inserts and answers take turns of this length, so that neither waits long for the other.
_TURN_SECONDS = 0.001
_ATTEND_SECONDS = 0.01
_MOST_REQUESTS_PER_TURN = 64
_MOST_GREETINGS_PER_TURN = 100
_MOST_PENDING_REQUESTS = 256
_MOST_ANSWERS_IN_PIPE = 128
_SLABS = 16
_LOG_SECONDS = 5.0
_MOST_STREAMS = 1 << 16
_LONGEST_JUMP = 1 << 32
_log = logging.getLogger("replay")

Stream = tuple[int, int]


def make_buffer(
    config: Config, spec: EnvironmentSpec, shard: int = 0, incarnation: int = 0
) -> PrioritizedBuffer:
    """One shard of the buffer that a configuration describes.

    Raises:
        UsageError: the shard's memory is too small for what it must hold.
    """
    replay = config.replay
    capacity = -(-resolved(replay.capacity) // replay.shards)
    kind = replay.store
    if kind == "auto":
        raise RuntimeError("replay.store is still auto after planning")
    memory_bytes = None if replay.memory is None else int(replay.memory) // replay.shards
    threads = resolved(replay.decode_threads) if kind == "compressed" else 1
    return PrioritizedBuffer(
        spec,
        capacity,
        store=make_store(kind, spec, capacity, memory_bytes, threads),
        priority_exponent=replay.priority_exponent,
        rng=seeds.generator(config.run.seed, "replay", shard, incarnation),
        # Updates for what another incarnation sent out must not hit what this one holds.
        first_key=incarnation << 40,
    )


class Sequences:
    """Which sequence number each stream, an (actor, incarnation), is to send next.

    A stream begins with whatever comes first: what an actor sent to another replay is not missing
    here. From then on a number may be a duplicate, which a connection that broke makes the actor
    send, or may leave out as many as the actor may have had unacknowledged, which then are
    missing. It may also be much larger, when an actor comes back from another shard. Much smaller
    it can only be if what was taken for the actor's last number was not the actor's; it is
    believed then, or all that the actor ever sends would be duplicates.

    Args:
        window: batches of one actor that may be unacknowledged.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._expected: dict[Stream, int] = {}

    def expected(self, stream: Stream) -> int:
        """The number that the stream is to send next; ``UNKNOWN`` if it never sent one."""
        return self._expected.get(stream, UNKNOWN)

    def take(self, stream: Stream, sequence: int) -> int | None:
        """Take in a batch's number.

        Returns:
            How many are missing before it; None if it is a duplicate.

        Raises:
            ValueError: a number that no actor comes to.
        """
        expected = self._expected.get(stream, sequence)
        if sequence - expected > _LONGEST_JUMP:
            raise ValueError(f"{sequence} where {expected} was expected")
        # Those of a connection that broke may come late: a few windows behind the next one's.
        if expected - 8 * self._window <= sequence < expected:
            return None
        self._expected[stream] = sequence + 1
        if len(self._expected) > _MOST_STREAMS:
            del self._expected[next(iter(self._expected))]
        missing = sequence - expected
        return missing if 0 <= missing <= self._window else 0


class Intake:
    """Checks what actors send and puts it into the buffer; every message is accounted for."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        run: str,
        buffer: PrioritizedBuffer,
        telemetry: Telemetry,
        window: int,
    ) -> None:
        self._spec = spec
        self._run = run
        self._buffer = buffer
        self._telemetry = telemetry
        self._sequences = Sequences(window)
        self._warn = _BoundedWarning()
        self.learner_steps = 0

    def expected(self, stream: Stream) -> int:
        """The sequence number that the stream is to send next, if it ever sent one."""
        return self._sequences.expected(stream)

    def take(self, data: memoryview | bytes) -> tuple[int, Stream | None]:
        """Insert one encoded TransitionBatch.

        Returns:
            The number of transitions inserted, and (actor, incarnation) to acknowledge to, if
            the message says who sent it.
        """
        self._telemetry.count("bytes_received", len(data))
        try:
            batch = wire.decode_transitions(data, self._spec, self._run)
        except wire.WireError as error:
            return 0, self._refuse(error)
        stream = (batch.actor, batch.incarnation)
        try:
            is_new = self._is_new(stream, batch.sequence, batch.count)
        except ValueError as error:
            self._reject("sequence", f"sequence: {error}", batch.count)
            return 0, None
        return self._insert(batch) if is_new else 0, stream

    def _is_new(self, stream: Stream, sequence: int, count: int) -> bool:
        """Take in a batch's number; a batch that was here already is counted.

        Raises:
            ValueError: a number that no actor comes to.
        """
        missing = self._sequences.take(stream, sequence)
        if missing is None:
            self._telemetry.count("transitions_duplicate", count)
            return False
        self._telemetry.count("batches_missing", missing)
        return True

    def _refuse(self, error: wire.WireError) -> Stream | None:
        """Count what cannot be used; whom to acknowledge it to all the same.

        An actor sends what is not acknowledged again, and does not go on before it is.
        """
        if error.sender is None:
            self._reject(error.reason, str(error), error.count)
            return None
        actor, incarnation, sequence = error.sender
        try:
            is_new = self._is_new((actor, incarnation), sequence, error.count)
        except ValueError as jump:
            self._reject("sequence", f"sequence: {jump}", error.count)
            return None
        if is_new:
            self._reject(error.reason, str(error), error.count)
            self._telemetry.count("transitions_refused", error.count)
        return actor, incarnation

    def _insert(self, batch: wire.TransitionBatch) -> int:
        try:
            self._buffer.insert(batch.columns, batch.blocks, batch.parameter_version)
        except ValueError as error:
            self._reject("too large", f"too large: {error}", batch.count)
            self._telemetry.count("transitions_refused", batch.count)
            return 0
        lag = max(0, self.learner_steps - batch.parameter_version)
        self._telemetry.count("policy_lag_sum", lag * batch.count)
        self._telemetry.count("transitions_received", batch.count)
        return batch.count

    def _reject(self, reason: str, text: str, count: int) -> None:
        self._telemetry.count(f"rejected/{reason}")
        self._telemetry.count("transitions_rejected", max(1, count))
        if self._telemetry.counters[f"rejected/{reason}"] == 1:
            self._telemetry.note("rejected", f"the first of its kind: {text}")
        self._warn("rejected a message: %s", text)


class Slabs:
    """Memory for the rows that go over the socket.

    It is used again as soon as the socket has sent it: fresh memory would cost a page fault for
    every 4 KiB. When more is on its way than is kept, what is missing is made and not kept;
    how much that can be is bounded by the socket's queue.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._kept: list[tuple[NDArray[np.uint8], zmq.MessageTracker | None]] = []

    def take(self) -> NDArray[np.uint8]:
        """Memory that nobody uses."""
        for index, (slab, tracker) in enumerate(self._kept):
            if tracker is None or tracker.done:
                del self._kept[index]
                return slab
        return np.empty(self._nbytes, np.uint8)

    def give(self, slab: NDArray[np.uint8], tracker: zmq.MessageTracker | None) -> None:
        """Give memory back that is free once the tracker is done."""
        if len(self._kept) < _SLABS:
            self._kept.append((slab, tracker))


class Outlet:
    """Answers requests: rows into the learner's memory where possible, else as a message."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        welcome: Welcome,
        buffer: PrioritizedBuffer,
        limiter: ShardLimiter,
        telemetry: Telemetry,
    ) -> None:
        config, spec = welcome.config, welcome.spec
        self._socket = socket
        self._buffer = buffer
        self._limiter = limiter
        self._telemetry = telemetry
        self._incarnation = welcome.incarnation
        self._batch_size = config.learner.batch_size
        self._slots = SlotLayout(spec, self._batch_size, slot_count(config))
        self._layout: Callable[[int], SampleLayout] = lru_cache(64)(
            lambda rows: SampleLayout(spec, rows)
        )
        self._slabs = Slabs(self._layout(self._batch_size).nbytes)
        self._attachments = Attachments()
        self._pending: deque[tuple[bytes, SampleRequest]] = deque()
        self._warn = _BoundedWarning()
        self.learner_steps = 0

    @property
    def blocked(self) -> bool:
        """Whether there are requests that cannot be answered now."""
        return bool(self._pending) and not self._can_answer(self._pending[0][1])

    @property
    def waits_for(self) -> str:
        """What the oldest request waits for, in words; empty if none waits."""
        if not self.blocked:
            return ""
        why = self._limiter.limiter.why_not_sample(self._pending[0][1].rows)
        return why or "fills: this shard holds nothing yet"

    def take(self, identity: bytes, data: bytes) -> None:
        """Apply a request, and answer it at once or keep it until there are rows for it."""
        try:
            request = decode_request(data, self._batch_size, self._slots)
        except wire.WireError as error:
            self.reject(error)
            return
        self.learner_steps = request.learner_steps
        # One of more than was done is meant for the incarnation before this one.
        if request.tally is not None and not self._limiter.follow(request.tally):
            self._telemetry.count("tallies_ignored")
        if len(request.keys):
            applied = self._buffer.update_priorities(request.keys, request.priorities)
            self._telemetry.count("priorities_ignored", len(request.keys) - applied)
        if not request.rows:
            waiting = tuple(r.request for asker, r in self._pending if asker == identity)
            if self._route(identity):
                self._socket.send(self._answer(request, waiting=waiting))
        elif len(self._pending) < _MOST_PENDING_REQUESTS:
            self._pending.append((identity, request))
        else:
            self._telemetry.count("requests_dropped")

    def reject(self, error: wire.WireError) -> None:
        """Count a request that must not be used."""
        self._telemetry.count(f"rejected/request {error.reason}")
        self._warn("rejected a request: %s", str(error))

    def answer(self, end: float) -> bool:
        """Answer what the limiter lets, until ``end`` at most; whether there was anything."""
        any_answered = False
        while self._pending and self._can_answer(self._pending[0][1]):
            self._sample(*self._pending.popleft())
            any_answered = True
            if time.monotonic() >= end:
                break
        return any_answered

    def attend(self) -> None:
        """What is to be done now and then."""
        self._attachments.drop_silent(time.monotonic())

    def serve_at(self, socket: zmq.Socket[bytes]) -> None:
        """Answer at this socket from now on; who asked at the one before asks again."""
        self._socket = socket
        self._pending.clear()

    def _can_answer(self, request: SampleRequest) -> bool:
        return self._buffer.size > 0 and self._limiter.limiter.can_sample(request.rows)

    def _sample(self, identity: bytes, request: SampleRequest) -> None:
        # First, so that nothing is drawn, and counted, for somebody who is gone.
        if not self._route(identity):
            return
        slot, refusal = self._slot(request)
        if slot is not None:
            self._draw(slot)
            self._socket.send(self._answer(request, slot=request.slot))
            return
        slab, layout = self._slabs.take(), self._layout(request.rows)
        self._draw(layout.view(slab))
        self._socket.send(self._answer(request, refusal=refusal), zmq.SNDMORE)
        rows = slab[: layout.nbytes].data
        self._slabs.give(slab, self._socket.send(rows, copy=False, track=True))

    def _draw(self, out: Sample) -> None:
        self._buffer.sample_into(out)
        self._limiter.count_sampled(out.count)
        self._telemetry.count("samples", out.count)

    def _slot(self, request: SampleRequest) -> tuple[Sample | None, str]:
        """The learner's memory for the rows, or why it cannot be used."""
        if request.slot is None or request.memory is None:
            return None, ""
        try:
            memory = self._attachments.get(request.memory, time.monotonic())
        except SharedMemoryError as error:
            return None, str(error)
        slot = self._slots.view(memory, request.slot)
        return slot.rows(request.start, request.start + request.rows), ""

    def _answer(
        self,
        request: SampleRequest,
        *,
        slot: int | None = None,
        refusal: str = "",
        waiting: tuple[int, ...] = (),
    ) -> bytes:
        buffer, number = self._buffer, request.request
        state = self._limiter.state(self._incarnation, buffer.size, buffer.total_priority)
        return encode_answer(
            SampleAnswer(number, request.rows, request.start, slot, refusal, state, waiting)
        )

    def _route(self, identity: bytes) -> bool:
        """Begin an answer, unless the learner is gone, or does not read what it asked for."""
        try:
            self._socket.send(identity, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._telemetry.count("answers_undeliverable")
            return False
        return True


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
        for _ in range(_MOST_REQUESTS_PER_TURN):
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


class _BoundedWarning:
    """Warns in the log once in a while; what is left out is counted elsewhere."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, message: str, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            _log.warning(message, text)


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
