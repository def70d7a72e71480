"""Checks and insertion of actors' batches; every message is accounted for."""

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
MOST_STREAMS = 1 << 16
_LONGEST_JUMP = 1 << 32

Stream = tuple[int, int]
Columns = Mapping[str, NDArray[Any]]


class Sequences:
    """The next expected sequence number of each stream, an (actor, incarnation).

    A stream begins with its first number here: batches that the actor sent to another replay are
    not missing. After that, a number may be a duplicate, because an actor sends batches again after
    a broken connection. It may also skip up to the actor's window of unacknowledged batches, which
    are then missing. A much larger number means that the actor comes back from another shard.

    A much smaller number is possible only if the expected number did not come from the actor. It is
    accepted: otherwise all of the actor's further batches would be duplicates.

    Args:
        window: largest number of unacknowledged batches of one actor.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._expected: dict[Stream, int] = {}

    def expected(self, stream: Stream) -> int:
        """Return the stream's next sequence number; ``UNKNOWN`` if it has never sent one."""
        return self._expected.get(stream, UNKNOWN)

    def take(self, stream: Stream, sequence: int) -> int | None:
        """Record a batch's number.

        Returns:
            The number of batches missing before it; None if it is a duplicate.

        Raises:
            ValueError: the number is too large for any actor.
        """
        expected = self._expected.get(stream, sequence)
        if sequence - expected > _LONGEST_JUMP:
            raise ValueError(f"{sequence} where {expected} was expected")
        # Numbers from a broken connection may arrive late: a few windows behind the next one.
        if expected - 8 * self._window <= sequence < expected:
            return None
        self._expected[stream] = sequence + 1
        if len(self._expected) > MOST_STREAMS:
            del self._expected[next(iter(self._expected))]
        missing = sequence - expected
        return missing if 0 <= missing <= self._window else 0


class Insertion:
    """Insertion of transitions into the buffer, with a count of those received and those refused.

    Args:
        spec: spec of the environment.
        buffer: the buffer that takes the transitions.
        telemetry: telemetry that counts them.
        warn: function that gets a description of each refusal.

    Attributes:
        learner_steps: last known learner steps, for the policy lag of inserted transitions.
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
        """Insert checked transitions; return their number, 0 if they do not fit.

        Args:
            columns: columns of a TransitionBatch, checked by ``pdqn.wire``.
            blocks: frames of the batch.
            version: learner steps of the parameters that acted.
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
        """Check transitions that did not come in a message, and insert them. See ``insert``."""
        try:
            wire.check_columns(columns, self._spec, [block.count for block in blocks])
            for number, block in enumerate(blocks):
                wire.check_frames(block.fields, self._spec, f"block {number}")
        except wire.WireError as error:
            self.refuse(error.reason, str(error), len(columns["action"]))
            return 0
        return self.insert(columns, blocks, version)

    def refuse(self, reason: str, text: str, count: int) -> None:
        """Count transitions that are settled although no network can learn from them."""
        self.reject(reason, text, count)
        self._telemetry.count("transitions_refused", count)

    def reject(self, reason: str, text: str, count: int) -> None:
        """Count unusable transitions, and note the first rejection of each kind.

        Args:
            reason: kind of the rejection, to count by.
            text: full description.
            count: number of transitions, as far as known; at least one is counted.
        """
        self._telemetry.count(f"rejected/{reason}")
        self._telemetry.count("transitions_rejected", max(1, count))
        if self._telemetry.counters[f"rejected/{reason}"] == 1:
            self._telemetry.note("rejected", f"the first of its kind: {text}")
        self._warn(text)


class Intake:
    """Decoder of actors' messages that inserts new batches and accounts for every message."""

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
        """Return the stream's next sequence number; ``UNKNOWN`` if it has never sent one."""
        return self._sequences.expected(stream)

    def set_learner_steps(self, steps: int) -> None:
        """Set the learner steps from which the policy lag of new transitions is counted."""
        self._insertion.learner_steps = steps

    def take(self, data: memoryview | bytes) -> tuple[int, Stream | None]:
        """Insert one encoded TransitionBatch.

        Returns:
            The number of transitions inserted, and the (actor, incarnation) to acknowledge to, if
            the message names its sender.
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
        """Record a batch's number and count duplicates; return whether the batch is new.

        Raises:
            ValueError: the number is too large for any actor.
        """
        missing = self._sequences.take(stream, sequence)
        if missing is None:
            self._telemetry.count("transitions_duplicate", count)
            return False
        self._telemetry.count("batches_missing", missing)
        return True

    def _refuse(self, error: wire.WireError) -> Stream | None:
        """Count an unusable message, and return the sender to acknowledge it to, if known.

        An actor repeats unacknowledged batches and sends nothing else before they are acknowledged.
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
    """A logger of occasional warnings; other counters cover those that it omits."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, message: str, text: str) -> None:
        """Warn, unless a warning was logged a moment ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            _log.warning(message, text)
