"""Batches from actors, checked and put into the buffer; every message is accounted for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from pdqn import wire
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from pdqn.wire import FrameBlock
from replay.buffer import PrioritizedBuffer
from replay.sender import UNKNOWN

_log = logging.getLogger("replay")
_LOG_SECONDS = 5.0
_MOST_STREAMS = 1 << 16
_LONGEST_JUMP = 1 << 32

Stream = tuple[int, int]
Columns = Mapping[str, NDArray[Any]]


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


class Insertion:
    """Puts transitions into the buffer; each is counted as received, or as refused and why.

    Args:
        spec: of the environment.
        buffer: takes them.
        telemetry: counts them.
        warn: hears of each refusal, in words.

    Attributes:
        learner_steps: as far as they are known, for the policy lag of what is inserted.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        buffer: PrioritizedBuffer,
        telemetry: Telemetry,
        warn: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._spec = spec
        self._buffer = buffer
        self._telemetry = telemetry
        self._warn = warn
        self.learner_steps = 0

    def insert(self, columns: Columns, blocks: Sequence[FrameBlock], version: int) -> int:
        """Insert transitions that ``pdqn.wire`` has checked; their number, 0 if they do not fit.

        Args:
            columns: those of a TransitionBatch.
            blocks: its frames.
            version: of the parameters that acted, in learner steps.
        """
        count = len(columns["action"])
        try:
            self._buffer.insert(columns, blocks, version)
        except ValueError as error:
            self.refuse("too large", f"too large: {error}", count)
            return 0
        lag = max(0, self.learner_steps - version)
        self._telemetry.count("policy_lag_sum", lag * count)
        self._telemetry.count("transitions_received", count)
        return count

    def check_and_insert(self, columns: Columns, blocks: Sequence[FrameBlock], version: int) -> int:
        """Insert what came without a message: it is checked like one. See ``insert``."""
        try:
            wire.check_columns(columns, self._spec, [block.count for block in blocks])
            for number, block in enumerate(blocks):
                wire.check_frames(block.fields, self._spec, f"block {number}")
        except wire.WireError as error:
            self.refuse(error.reason, str(error), len(columns["action"]))
            return 0
        return self.insert(columns, blocks, version)

    def refuse(self, reason: str, text: str, count: int) -> None:
        """Count transitions that are done with, though nothing can be learned from them."""
        self.reject(reason, text, count)
        self._telemetry.count("transitions_refused", count)

    def reject(self, reason: str, text: str, count: int) -> None:
        """Count what cannot be used, and note the first of its kind.

        Args:
            reason: to count by.
            text: the whole of it, in words.
            count: transitions, as far as their number is known; at least one is counted.
        """
        self._telemetry.count(f"rejected/{reason}")
        self._telemetry.count("transitions_rejected", max(1, count))
        if self._telemetry.counters[f"rejected/{reason}"] == 1:
            self._telemetry.note("rejected", f"the first of its kind: {text}")
        self._warn(text)


class Intake:
    """Decodes what actors send, and inserts what is new; every message is accounted for."""

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
        self._telemetry = telemetry
        self._sequences = Sequences(window)
        warn = partial(BoundedWarning(), "rejected a message: %s")
        self._insertion = Insertion(spec, buffer, telemetry, warn)

    def expected(self, stream: Stream) -> int:
        """The sequence number that the stream is to send next, if it ever sent one."""
        return self._sequences.expected(stream)

    def set_learner_steps(self, steps: int) -> None:
        """Count the policy lag of what comes by these."""
        self._insertion.learner_steps = steps

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
            self._insertion.reject("sequence", f"sequence: {error}", batch.count)
            return 0, None
        if not is_new:
            return 0, stream
        inserted = self._insertion.insert(batch.columns, batch.blocks, batch.parameter_version)
        return inserted, stream

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
            self._insertion.reject(error.reason, str(error), error.count)
            return None
        actor, incarnation, sequence = error.sender
        try:
            is_new = self._is_new((actor, incarnation), sequence, error.count)
        except ValueError as jump:
            self._insertion.reject("sequence", f"sequence: {jump}", error.count)
            return None
        if is_new:
            self._insertion.refuse(error.reason, str(error), error.count)
        return actor, incarnation


class BoundedWarning:
    """Warns in the log once in a while; what is left out is counted elsewhere."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, message: str, text: str) -> None:
        """Warn, unless a warning was logged a moment ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            _log.warning(message, text)
