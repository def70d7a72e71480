"""Answers to the learner's requests, with rows of the buffer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import zmq
from numpy.typing import NDArray

from pdqn import wire
from pdqn.messages import Welcome
from pdqn.telemetry import Telemetry
from replay.contents import Contents
from replay.intake import BoundedWarning
from replay.keeper import Keeper
from replay.samples import (
    Sample,
    SampleAnswer,
    SampleLayout,
    SampleRequest,
    SlotLayout,
    decode_request,
    encode_answer,
    rows_of_request,
    slot_count,
)
from replay.shared_memory import Attachments, SharedMemoryError

MOST_REQUESTS_PER_TURN = 64
_MOST_PENDING_REQUESTS = 256
_SLABS = 16


class Slabs:
    """Memory for the rows that go over the socket.

    A slab is used again as soon as the socket has sent it: fresh memory would cost a page fault for
    every 4 KiB. If more slabs are on their way than are kept, the outlet makes more and does not
    keep them. The socket's queue bounds their number.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._kept: list[tuple[NDArray[np.uint8], zmq.MessageTracker | None]] = []

    def take(self) -> NDArray[np.uint8]:
        """Return a slab that is not in use."""
        for index, (slab, tracker) in enumerate(self._kept):
            if tracker is None or tracker.done:
                del self._kept[index]
                return slab
        # Zeros, because not all of its columns may be written.
        return np.zeros(self._nbytes, np.uint8)

    def give(self, slab: NDArray[np.uint8], tracker: zmq.MessageTracker | None) -> None:
        """Give back a slab that is free once the tracker is done."""
        if len(self._kept) < _SLABS:
            self._kept.append((slab, tracker))


class Outlet:
    """Answers to requests: rows into the learner's memory where possible, else as a message."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        welcome: Welcome,
        contents: Contents,
        keeper: Keeper,
        telemetry: Telemetry,
    ) -> None:
        config, spec = welcome.config, welcome.spec
        self._socket = socket
        self._buffer = contents.buffer
        self._limiter = contents.limiter
        self._keeper = keeper
        self._telemetry = telemetry
        self._life = contents.life
        self._batch_size = config.learner.batch_size
        self._rows = rows_of_request(config, spec)
        self._slots = SlotLayout(spec, self._rows, slot_count(config))
        self._layout: Callable[[int], SampleLayout] = lru_cache(64)(
            lambda rows: SampleLayout(spec, rows)
        )
        self._slabs = Slabs(self._layout(self._rows).nbytes)
        self._attachments = Attachments()
        self._pending: deque[tuple[bytes, SampleRequest]] = deque()
        self._warn = BoundedWarning()
        self.learner_steps = 0

    @property
    def blocked(self) -> bool:
        """Return whether there are requests that cannot be answered now."""
        return bool(self._pending) and not self._can_answer(self._pending[0][1])

    @property
    def waits_for(self) -> str:
        """Description of what the oldest request waits for; empty if none waits."""
        if not self.blocked:
            return ""
        why = self._limiter.limiter.why_not_sample(self._pending[0][1].rows)
        return why or "fills: this shard holds nothing yet"

    def take(self, identity: bytes, data: bytes) -> None:
        """Apply a request, and answer it at once or keep it until there are rows for it."""
        try:
            request = decode_request(data, self._rows, self._slots)
        except wire.WireError as error:
            self.reject(error)
            return
        self.learner_steps = request.learner_steps
        # A tally of more than this shard has done is meant for counts that are lost.
        if request.tally is not None and not self._limiter.follow(request.tally):
            self._telemetry.count("tallies_ignored")
        if len(request.keys):
            self._keeper.update(request.keys, request.priorities)
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
        """Answer the requests that the limiter permits, until ``end``; return whether any was."""
        any_answered = False
        while self._pending and self._can_answer(self._pending[0][1]):
            self._sample(*self._pending.popleft())
            any_answered = True
            if time.monotonic() >= end:
                break
        return any_answered

    def attend(self) -> None:
        """Do occasional work: drop the memory of silent learners."""
        self._attachments.drop_silent(time.monotonic())

    def serve_at(self, socket: zmq.Socket[bytes]) -> None:
        """Answer at this socket from now on; clients of the socket before it ask again."""
        self._socket = socket
        self._pending.clear()

    def _can_answer(self, request: SampleRequest) -> bool:
        return self._buffer.size > 0 and self._limiter.limiter.can_sample(request.rows)

    def _sample(self, identity: bytes, request: SampleRequest) -> None:
        # Route first, so that nothing is drawn and counted for a learner that is gone.
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
        self._buffer.sample_into(out, max(1, out.count // self._batch_size))
        self._limiter.count_sampled(out.count)
        self._telemetry.count("samples", out.count)

    def _slot(self, request: SampleRequest) -> tuple[Sample | None, str]:
        """Return the learner's memory for the rows, or the reason why it cannot be used."""
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
        state = self._limiter.state(self._life, buffer.size, buffer.total_priority)
        return encode_answer(
            SampleAnswer(number, request.rows, request.start, slot, refusal, state, waiting)
        )

    def _route(self, identity: bytes) -> bool:
        """Begin an answer; return False if the learner is gone or does not read its answers."""
        if self._is_routed(identity):
            return True
        # libzmq notices what a peer has read only once in a millisecond, or when asked for events.
        # Until then, a quick learner looks like one that does not read.
        self._socket.getsockopt(zmq.EVENTS)
        if self._is_routed(identity):
            return True
        self._telemetry.count("answers_undeliverable")
        return False

    def _is_routed(self, identity: bytes) -> bool:
        try:
            self._socket.send(identity, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True
