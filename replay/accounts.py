"""The account of what a shard has settled, stored or refused, of each stream. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pdqn.spans import MAX_SPANS, Span, Stream

MOST_SPANS = 1 << 16
# Spans in a report beside those that changed: a report that was lost does no harm.
_REPEATED = 200

_Key = tuple[int, int, int]  # actor, incarnation, start


class Accounts:
    """Spans of the transitions that were settled, and those of them that are not reported yet.

    A stream has one span here as long as nothing is missing. It has several if its actor sent to
    another shard in between, or if something was lost on its way.
    """

    def __init__(self) -> None:
        self._spans: dict[_Key, tuple[int, int]] = {}  # end, refused
        self._newest: dict[Stream, int] = {}  # start of the span that grows
        self._changed: dict[_Key, None] = {}
        self._cycle: Iterator[_Key] = iter(())

    def all(self) -> tuple[Span, ...]:
        """Return all spans, the oldest first."""
        return tuple(Span(*key, *value) for key, value in self._spans.items())

    def recover(self, spans: Iterable[Span]) -> None:
        """Continue with what ``all`` returned in a process that has ended."""
        self._spans = {(*s.stream, s.start): (s.end, s.refused) for s in spans}
        self._newest = {key[:2]: key[2] for key in self._spans}
        self._changed = dict.fromkeys(self._spans)

    def advance(self, spans: Iterable[Span]) -> None:
        """Add what a process that has ended knew of earlier batches than those added here."""
        for span in spans:
            newest = (*span.stream, self._newest.get(span.stream, -1))
            end, refused = self._spans.get(newest, (-1, 0))
            if span.start <= newest[2] <= span.end:
                # One span, of which the journal has only the later part.
                self._forget(newest)
                end, refused = max(end, span.end), max(refused, span.refused)
            else:
                end, refused = span.end, span.refused
            key = (*span.stream, span.start)
            self._spans[key], self._changed[key] = (end, refused), None
            self._newest[span.stream] = max(span.start, self._newest.get(span.stream, -1))

    def add(self, stream: Stream, made: int, count: int, refused: int = 0) -> None:
        """Account for a batch.

        Args:
            stream: (actor, incarnation) of its sender.
            made: transitions of the stream up to its last one; 0 if it does not say.
            count: its transitions.
            refused: those of them that were refused.
        """
        if not count or made < count:
            return
        key = (*stream, self._newest.get(stream, -1))
        end, before = self._spans.get(key, (-1, 0))
        if end != made - count:
            key = (*stream, made - count)
            end, before = self._spans.get(key, (0, 0))
            self._newest[stream] = made - count
        self._spans[key] = max(end, made), min(before + refused, max(end, made) - key[2])
        self._changed[key] = None
        if len(self._spans) > MOST_SPANS:
            self._forget(next(iter(self._spans)))

    @property
    def waiting(self) -> int:
        """Number of spans with changes that no report has had."""
        return len(self._changed)

    def take(self) -> tuple[Span, ...]:
        """Return the spans for a report: those that changed, and some of the others in turn."""
        keys = dict.fromkeys(key for key, _ in zip(self._changed, range(MAX_SPANS), strict=False))
        for key in keys:
            del self._changed[key]
        for _ in range(min(_REPEATED, MAX_SPANS - len(keys), len(self._spans))):
            keys[self._next()] = None
        return tuple(Span(*key, *self._spans[key]) for key in keys)

    def _next(self) -> _Key:
        """Return the key whose turn it is to be reported again."""
        while True:
            for key in self._cycle:
                if key in self._spans:
                    return key
            self._cycle = iter(tuple(self._spans))

    def _forget(self, key: _Key) -> None:
        """Forget a span, which the coordinator keeps; a stream that goes on begins another."""
        del self._spans[key]
        self._changed.pop(key, None)
        if self._newest.get(key[:2]) == key[2]:
            del self._newest[key[:2]]
