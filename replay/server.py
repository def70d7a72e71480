"""The replay process: takes TransitionBatches while the limiter lets it, answers the learner."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import zmq

from pdqn import seeds, wire
from pdqn.config import Config, resolved
from pdqn.link import CoordinatorLink, Welcome, role
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from replay.buffer import PrioritizedBuffer
from replay.client import encode_sample
from replay.limiter import RateLimiter
from replay.sender import UNKNOWN, encode_ack, subscriber_of

_POLL_MILLISECONDS = 50
_BATCHES_PER_TURN = 64
_MOST_PENDING_REQUESTS = 256
_LOG_SECONDS = 5.0
_log = logging.getLogger("replay")


def make_buffer(config: Config, spec: EnvironmentSpec, incarnation: int = 0) -> PrioritizedBuffer:
    """The buffer that a configuration describes."""
    return PrioritizedBuffer(
        spec,
        resolved(config.replay.capacity),
        priority_exponent=config.replay.priority_exponent,
        importance_sampling_exponent=config.replay.importance_sampling_exponent,
        rng=seeds.generator(config.run.seed, "replay", 0, incarnation),
        # Updates for what another incarnation sent out must not hit what this one holds.
        first_key=incarnation << 40,
    )


def make_limiter(config: Config) -> RateLimiter:
    """The rate limiter that a configuration describes.

    Raises:
        UsageError: settings with which the run would stand still.
    """
    return RateLimiter(
        resolved(config.replay.samples_per_insert),
        resolved(config.replay.samples_per_insert_tolerance),
        resolved(config.replay.min_size),
        config.learner.batch_size,
        capacity=resolved(config.replay.capacity),
    )


class Intake:
    """Checks what actors send and puts it into the buffer; every message is accounted for."""

    def __init__(
        self, spec: EnvironmentSpec, run: str, buffer: PrioritizedBuffer, telemetry: Telemetry
    ) -> None:
        self._spec = spec
        self._run = run
        self._buffer = buffer
        self._telemetry = telemetry
        self._expected: dict[tuple[int, int], int] = {}
        self._next_log = 0.0
        self.learner_steps = 0

    def expected(self, stream: tuple[int, int]) -> int:
        """The sequence number that (actor, incarnation) is to send next, if it ever sent one."""
        return self._expected.get(stream, UNKNOWN)

    def take(self, data: memoryview | bytes) -> tuple[int, tuple[int, int] | None]:
        """Insert one encoded TransitionBatch.

        Returns:
            The number of transitions inserted, and (actor, incarnation) to acknowledge to, if
            the message says who sent it.
        """
        self._telemetry.count("bytes_received", len(data))
        try:
            batch = wire.decode_transitions(data, self._spec, self._run)
        except wire.WireError as error:
            self._reject(error)
            return 0, None
        return self._insert(batch), (batch.actor, batch.incarnation)

    def _insert(self, batch: wire.TransitionBatch) -> int:
        stream = (batch.actor, batch.incarnation)
        # What an actor sent to a replay before this one is not missing here.
        expected = self._expected.get(stream, batch.sequence)
        if batch.sequence < expected:
            self._telemetry.count("transitions_duplicate", batch.count)
            return 0
        self._telemetry.count("batches_missing", batch.sequence - expected)
        self._expected[stream] = batch.sequence + 1
        try:
            self._buffer.insert(batch.columns, batch.parameter_version)
        except ValueError as error:
            self._reject(wire.WireError("too large", str(error), count=batch.count))
            return 0
        lag = max(0, self.learner_steps - batch.parameter_version)
        self._telemetry.count("policy_lag_sum", lag * batch.count)
        self._telemetry.count("transitions_received", batch.count)
        return batch.count

    def _reject(self, error: wire.WireError) -> None:
        self._telemetry.count(f"rejected/{error.reason}")
        self._telemetry.count("transitions_rejected", max(1, error.count))
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + _LOG_SECONDS
            _log.warning("rejected a message: %s", error)


class ReplayServer:
    """Sockets around buffer and limiter."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], link: CoordinatorLink, welcome: Welcome
    ) -> None:
        config = welcome.config
        self._link = link
        self._batch_size = config.learner.batch_size
        self._min_size = resolved(config.replay.min_size)
        self._buffer = make_buffer(config, welcome.spec, welcome.incarnation)
        self._limiter = make_limiter(config)
        self._intake = Intake(welcome.spec, welcome.run, self._buffer, link.telemetry)
        self._pending: deque[bytes] = deque()
        self._pull = context.socket(zmq.PULL)
        # What waits here is bounded by the actors' windows of unacknowledged batches.
        self._pull.setsockopt(zmq.RCVHWM, config.actor.window)
        self._pull.setsockopt(zmq.MAXMSGSIZE, wire.MAX_TRANSITION_BYTES)
        self._router = context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.MAXMSGSIZE, wire.MAX_TRANSITION_BYTES)
        self._acks = context.socket(zmq.XPUB)
        self._acks.setsockopt(zmq.LINGER, 1000)
        self._acks.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
        self._acks.bind(welcome.address("acknowledgements"))
        self._pull.bind(welcome.address("transitions"))
        self._router.bind(welcome.address("samples"))
        link.serve_at(
            {
                "acknowledgements": self._acks.getsockopt_string(zmq.LAST_ENDPOINT),
                "transitions": self._pull.getsockopt_string(zmq.LAST_ENDPOINT),
                "samples": self._router.getsockopt_string(zmq.LAST_ENDPOINT),
            }
        )
        self._all, self._learner_only = zmq.Poller(), zmq.Poller()
        for poller in (self._all, self._learner_only):
            link.register(poller)
            poller.register(self._router, zmq.POLLIN)
            poller.register(self._acks, zmq.POLLIN)
        self._all.register(self._pull, zmq.POLLIN)

    def serve(self) -> None:
        """Take and answer until told to stop."""
        while not self._link.stopping:
            self._wait()
            self._link.poll()
            self._greet()
            self._take_transitions()
            self._take_requests()
            self._answer()

    def _greet(self) -> None:
        """Tell those who newly listen for acknowledgements what they may take as received."""
        while self._acks.poll(0):
            stream = subscriber_of(self._acks.recv())
            if stream is not None:
                self._acks.send(encode_ack(*stream, self._intake.expected(stream)))

    @property
    def _open(self) -> bool:
        """Whether actors' data is taken: the limiter lets it, or the run is being drained."""
        return self._limiter.can_insert() or self._link.pulse.command == "drain"

    def _wait(self) -> None:
        """Sleep until something can be done; account for who waits meanwhile."""
        is_open, started = self._open, time.monotonic()
        (self._all if is_open else self._learner_only).poll(_POLL_MILLISECONDS)
        seconds = time.monotonic() - started
        telemetry = self._link.telemetry
        if not is_open:
            telemetry.count("inserts_blocked_seconds", seconds)
        if self._pending:
            telemetry.count("samples_blocked_seconds", seconds)
        telemetry.gauge("size", self._buffer.size)
        telemetry.gauge("stored_bytes", self._buffer.stored_bytes)
        telemetry.activity = self._describe(is_open)

    def _describe(self, is_open: bool) -> str:
        if not is_open:
            return "actors wait for the learner"
        if not self._pending:
            return ""
        if self._limiter.num_inserted < self._min_size:
            return f"fills to {self._min_size} before the first batch"
        return "learner waits for the actors"

    def _take_transitions(self) -> None:
        for _ in range(_BATCHES_PER_TURN):
            if not self._open or not self._pull.poll(0):
                return
            inserted, stream = self._intake.take(self._pull.recv(copy=False).buffer)
            self._limiter.inserted(inserted)
            if stream is not None:
                self._acks.send(encode_ack(*stream, self._intake.expected(stream)))

    def _take_requests(self) -> None:
        while self._router.poll(0):
            identity, *frames = self._router.recv_multipart(copy=False)
            if len(self._pending) >= _MOST_PENDING_REQUESTS:
                self._link.telemetry.count("requests_dropped")
            elif self._apply_request([frame.buffer for frame in frames]):
                self._pending.append(identity.bytes)

    def _apply_request(self, frames: list[Any]) -> bool:
        """Apply a request's priority updates; whether it is well formed."""
        try:
            header, arrays = wire.decode_arrays(frames)
            if header["type"] != "request" or header.get("batch_size") != self._batch_size:
                raise wire.WireError("type", "not a request of the run's batch size")
            keys, priorities = arrays.get("keys"), arrays.get("priorities")
            if keys is None or priorities is None or keys.shape != priorities.shape:
                raise wire.WireError("columns", "keys and priorities")
            if keys.dtype != "int64" or priorities.dtype != "float32" or keys.ndim != 1:
                raise wire.WireError("dtype", "keys and priorities")
            steps = header.get("learner_steps")
            self._intake.learner_steps = steps if isinstance(steps, int) else 0
        except wire.WireError as error:
            self._link.telemetry.count(f"rejected/request {error.reason}")
            return False
        applied = self._buffer.update_priorities(keys, priorities)
        self._link.telemetry.count("priorities_ignored", len(keys) - applied)
        return True

    def _answer(self) -> None:
        while self._pending and self._limiter.can_sample(self._batch_size):
            frames = encode_sample(self._buffer.sample(self._batch_size), {})
            self._router.send_multipart([self._pending.popleft(), *frames], copy=False)
            self._limiter.sampled(self._batch_size)
            self._link.telemetry.count("samples", self._batch_size)


def run_replay(address: str, index: int | None = None, log_path: Path | None = None) -> None:
    """One replay process, from joining to leaving."""
    with role("replay", address, index, log_path) as (context, link, welcome):
        ReplayServer(context, link, welcome).serve()
