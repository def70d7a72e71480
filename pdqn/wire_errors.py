"""The error of a message that was rejected, and the reasons by which such messages are counted."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pdqn.text import printable

_SHOWN_CHARACTERS = 40

Reason = Literal[
    # Any message:
    "too large",  # more bytes than its kind may have
    "malformed",  # not a msgpack map with a type, or it has a value of the wrong kind
    "version",  # another protocol version
    "type",  # another type than expected here
    "columns",  # missing, or not the expected ones
    "dtype",  # wrong dtype of a column
    "shape",  # wrong shape of a column
    "size",  # sizes that disagree with each other, with the bytes or with a limit
    # TransitionBatches:
    "other run",
    "ticket",  # not that of the actor
    "count",  # number of transitions or frames
    "blocks",  # not a list of 1 to MAX_BLOCKS maps
    "codec",  # unknown
    "corrupt",  # cannot be decompressed
    # Values in it:
    "not finite",
    "not boolean",
    "category",
    "action",
    "discount",
    "priority",
    "index",
    "history",
]
# Counters are named after the reasons.
REASONS: frozenset[Reason] = frozenset(get_args(Reason))


class WireError(ValueError):
    """A message that was rejected.

    Attributes:
        reason: one of ``REASONS``, to count by.
        count: number of transitions in the message, as far as known.
        sender: (actor, incarnation, sequence) if a TransitionBatch states it; else None.
        made: transitions of the sender up to the last one of that batch; 0 if it does not say.
    """

    def __init__(self, reason: Reason, detail: str = "", count: int = 0) -> None:
        # The detail quotes the message: names that are not fields, or what a library said of it.
        super().__init__(f"{reason}: {printable(detail)}" if detail else reason)
        self.reason: Reason = reason
        self.count = count
        self.sender: tuple[int, int, int] | None = None
        self.made = 0


def shown(value: Any) -> str:
    """Format a value of a message for an error: short, and without the contents of lists."""
    if isinstance(value, str):
        return repr(value[:_SHOWN_CHARACTERS])
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__
