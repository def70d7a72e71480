"""Spans of transitions that replay has settled, by which the ledger of a run is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

from pdqn.checks import as_tuple, check_whole, refusal
from pdqn.wire_errors import WireError

MAX_SPANS = 2048
_LARGEST = 1 << 53

Stream = tuple[int, int]  # actor, incarnation


class Span(NamedTuple):
    """Consecutive transitions of one stream, each stored or refused.

    A stream is all that one incarnation of an actor makes; its transitions are numbered from 0.

    Attributes:
        actor: index of the actor.
        incarnation: incarnation of that actor.
        start: number of the first transition.
        end: number of the last one, plus 1.
        refused: number of those that were refused.
    """

    actor: int
    incarnation: int
    start: int
    end: int
    refused: int = 0

    @property
    def stream(self) -> Stream:
        """The (actor, incarnation) that made the transitions."""
        return self.actor, self.incarnation


def as_spans(value: Any) -> tuple[Span, ...]:
    """Check a list of at most ``MAX_SPANS`` spans.

    Raises:
        WireError: it is another thing, or a span is impossible.
    """
    spans = []
    for row in as_tuple(value, "spans", MAX_SPANS):
        if not isinstance(row, list | tuple) or len(row) != len(Span._fields):
            raise WireError("malformed", f"a span is not {len(Span._fields)} numbers")
        for number in row:
            check_whole(number, "a span's number", _LARGEST)
        span = Span(*row)
        if span.start >= span.end or span.refused > span.end - span.start:
            raise refusal(list(span), "a span", "a start, a later end, and no more refused")
        spans.append(span)
    return tuple(spans)
