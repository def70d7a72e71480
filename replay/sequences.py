"""The sequence numbers of actors' batches, by which replay finds duplicates and gaps. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdqn.spans import Stream
from replay.sender import UNKNOWN

MOST_STREAMS = 1 << 16
_LONGEST_JUMP = 1 << 32


def bound_streams(streams: dict[Stream, Any]) -> None:
    """Forget streams beyond ``MOST_STREAMS``: earlier incarnations first, and then the oldest.

    One actor that joins again and again would otherwise drive out those that have long been there.
    """
    if len(streams) <= MOST_STREAMS:
        return
    newest: dict[int, int] = {}
    for actor, incarnation in streams:
        newest[actor] = max(incarnation, newest.get(actor, 0))
    for actor, incarnation in list(streams):
        if incarnation < newest[actor]:
            del streams[actor, incarnation]
    while len(streams) > MOST_STREAMS:
        del streams[next(iter(streams))]


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

    def all(self) -> Mapping[Stream, int]:
        """Copy the next sequence numbers of all streams."""
        return dict(self._expected)

    def recover(self, expected: Mapping[Stream, int]) -> None:
        """Continue with what ``all`` returned in a process that has ended."""
        self._expected = dict(expected)

    def advance(self, expected: Mapping[Stream, int]) -> None:
        """Continue with these next sequence numbers where they are later than the known ones."""
        for stream, number in expected.items():
            self._expected[stream] = max(number, self._expected.get(stream, 0))

    def put(self, stream: Stream, expected: int) -> None:
        """Set a stream's next sequence number."""
        self._expected[stream] = expected

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
        bound_streams(self._expected)
        missing = sequence - expected
        return missing if 0 <= missing <= self._window else 0
