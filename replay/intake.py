"""Checks and insertion of actors' batches; every message is accounted for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from numpy.typing import NDArray

from pdqn import wire
from pdqn.checks import MAX_NAME
from pdqn.spans import Stream
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from pdqn.tickets import is_valid
from pdqn.wire import FrameBlock
from replay.buffer import PrioritizedBuffer
from replay.keeper import Keeper
from replay.sequences import Sequences, bound_streams

_log = logging.getLogger("replay")
_LOG_SECONDS = 5.0
Columns = Mapping[str, NDArray[Any]]


class ForeignBatchError(wire.WireError):
    """A batch without the ticket of the actor that it names."""


class TicketCheck:
    """The check that a batch comes from the actor that it names; see ``pdqn.tickets``.

    After a stream's first batch, this compares with what that batch had.

    Args:
        seal: the secret of which the run's tickets are made.
    """

    def __init__(self, seal: bytes) -> None:
        self._seal = seal
        self._verified: dict[Stream, tuple[str, bytes]] = {}

    def check(self, user: str, actor: int, incarnation: int, ticket: bytes) -> None:
        """Check the head of a batch.

        Args:
            user: public key of the sender; empty if nothing is encrypted.
            actor: index of the actor that the batch names.
            incarnation: incarnation of that actor.
            ticket: the ticket of the batch.

        Raises:
            ForeignBatchError: it is not the ticket of that actor with this key.
        """
        stream = (actor, incarnation)
        if self._verified.get(stream) == (user, ticket):
            return
        if not is_valid(self._seal, ticket, actor, incarnation, user):
            raise ForeignBatchError("ticket", f"not that of actor {actor}")
        self._verified[stream] = (user, ticket)
        bound_streams(self._verified)


class Insertion:
    """Insertion of transitions into the buffer, with a count of those received and those refused.

    Args:
        spec: spec of the environment.
        buffer: the buffer that takes the transitions.
        telemetry: telemetry that counts them.
        max_age: ``replay.max_age``; 0 for no limit.
        warn: function that gets a description of each refusal.

    Attributes:
        learner_steps: last known learner steps, from which the age of transitions is counted.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        buffer: PrioritizedBuffer,
        telemetry: Telemetry,
        max_age: int,
        warn: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._spec = spec
        self._buffer = buffer
        self._max_age = max_age
        self._telemetry = telemetry
        self._warn = warn
        self.learner_steps = 0

    def make_room(self, count: int, blocks: Sequence[FrameBlock], version: int) -> bool:
        """Make room for checked transitions; refuse them, and return False, if there is none.

        Those that are too old to be sampled get none.

        Args:
            count: number of transitions.
            blocks: their frames.
            version: learner steps of the parameters that acted.
        """
        age = self.learner_steps - version
        if self._max_age and age > self._max_age:
            text = f"{count} transitions are {age} learner steps old"
            self.refuse("too old", f"too old: {text}, at most {self._max_age} may be", count)
            return False
        try:
            self._buffer.make_room(count, blocks)
        except ValueError as error:
            self.refuse("too large", f"too large: {error}", count)
            return False
        return True

    def insert(self, columns: Columns, blocks: Sequence[FrameBlock], version: int) -> int:
        """Insert checked transitions that fit; return their number.

        Args:
            columns: columns of a TransitionBatch, checked by ``pdqn.wire``.
            blocks: frames of the batch.
            version: learner steps of the parameters that acted.
        """
        count = len(columns["action"])
        self._buffer.insert(columns, blocks, version)
        lag = max(0, self.learner_steps - version)
        self._telemetry.count("policy_lag_sum", lag * count)
        self._telemetry.count("transitions_received", count)
        return count

    def expire(self) -> None:
        """Stop sampling transitions that have become too old, and count them."""
        if self._max_age:
            expired = self._buffer.expire(self.learner_steps - self._max_age)
            self._telemetry.count("transitions_expired", expired)

    def check(self, columns: Columns, blocks: Sequence[FrameBlock]) -> bool:
        """Check transitions that did not come in a message; refuse them, and return False, if bad.

        Args:
            columns: columns of a TransitionBatch.
            blocks: frames of the batch.
        """
        try:
            wire.check_columns(columns, self._spec, [block.count for block in blocks])
            for number, block in enumerate(blocks):
                wire.check_frames(block.fields, self._spec, f"block {number}")
        except wire.WireError as error:
            self.refuse(error.reason, str(error), len(columns["action"]))
            return False
        return True

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
    """Decoder of actors' messages that inserts new batches and accounts for every message.

    Args:
        spec: spec of the environment.
        run: id of the run.
        buffer: the buffer that takes the transitions.
        telemetry: telemetry that counts them.
        sequences: the next sequence number of each stream.
        seal: the secret of which the run's tickets are made.
        name_of: names the holder of a public key for a person.
        keeper: the journal's, which gets each batch before it is inserted.
        max_age: ``replay.max_age``; 0 for no limit.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        run: str,
        buffer: PrioritizedBuffer,
        telemetry: Telemetry,
        sequences: Sequences,
        seal: bytes,
        name_of: Callable[[str], str],
        keeper: Keeper,
        max_age: int = 0,
    ) -> None:
        self._spec = spec
        self._run = run
        self._telemetry = telemetry
        self._sequences = sequences
        self._keeper = keeper
        self._tickets = TicketCheck(seal)
        self._name_of = name_of
        self._warn = partial(BoundedWarning(), "rejected a message: %s")
        self._insertion = Insertion(spec, buffer, telemetry, max_age, self._warn)

    def expected(self, stream: Stream) -> int:
        """Return the stream's next sequence number; ``UNKNOWN`` if it has never sent one."""
        return self._sequences.expected(stream)

    def set_learner_steps(self, steps: int) -> None:
        """Set the learner steps from which the age of transitions is counted."""
        if steps != self._insertion.learner_steps:
            self._insertion.learner_steps = steps
            self._insertion.expire()

    def take(self, data: memoryview | bytes, user: str = "") -> tuple[int, Stream | None]:
        """Insert one encoded TransitionBatch.

        Args:
            data: the message.
            user: public key of the sender; empty if nothing is encrypted.

        Returns:
            The number of transitions inserted, and the (actor, incarnation) to acknowledge to, if
            the message names its sender.
        """
        self._telemetry.count("bytes_received", len(data))
        try:
            admit = partial(self._tickets.check, user)
            batch = wire.decode_transitions(data, self._spec, self._run, admit)
        except ForeignBatchError as error:
            self._turn_away(user, "a batch", error)
            return 0, None
        except wire.WireError as error:
            return 0, self._refuse(error)
        stream = batch.stream
        try:
            is_new = self._is_new(stream, batch.sequence, batch.count)
        except ValueError as error:
            self._insertion.reject("sequence", f"sequence: {error}", batch.count)
            return 0, None
        if not is_new:
            return 0, stream
        if not self._insertion.make_room(batch.count, batch.blocks, batch.parameter_version):
            self._keeper.refuse(stream, batch.sequence, batch.count, batch.made)
            return 0, stream
        self._keeper.store(batch, data)
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

    def greets(self, user: str, stream: Stream, ticket: bytes) -> bool:
        """Return whether a sender is the actor of a stream; count it if it is another."""
        try:
            self._tickets.check(user, *stream, ticket)
        except ForeignBatchError as error:
            self._turn_away(user, "a hello", error)
            return False
        return True

    def _turn_away(self, user: str, what: str, error: ForeignBatchError) -> None:
        """Count what came in another actor's name by its sender, and note the first of each one."""
        name = self._name_of(user)
        counter = f"refused/{name}: {what} in another actor's name"[:MAX_NAME]
        self._telemetry.count(counter)
        text = f"{name} sent {what} in another actor's name: {error}"
        if self._telemetry.counters[counter] == 1:
            self._telemetry.note("refused", text)
        self._warn(text)

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
            self._keeper.refuse((actor, incarnation), sequence, error.count, error.made)
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
