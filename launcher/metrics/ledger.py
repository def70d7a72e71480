"""The ledger of a run: what became of each transition that its actors made. Pure.

A stream is all that one incarnation of an actor makes. Of every stream and at any time::

    made = received + refused + waiting + lost + died

Actors report how many they have made and sent, and replays which of them they have settled, stored
or refused. Both are states: a report that is lost or comes twice does no harm. Nothing is lost as
long as it may still come, and what a replay reports late takes it off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from launcher.metrics.bounds import LARGEST
from launcher.metrics.counters import MemberKey
from pdqn.messages import Report
from pdqn.spans import Span, Stream

MOST_STREAMS, MOST_SPANS = 1 << 16, 1 << 18

End = Literal["", "left", "died"]


class Balance(NamedTuple):
    """Numbers of transitions, of one stream or of all.

    Attributes:
        made: made by actors, as far as their reports and batches tell.
        sent: those of them that actors have sent.
        received: stored by replay, each counted once.
        refused: refused by replay, since no network can learn from them.
        waiting: at actors that are there, or on their way.
        lost: neither received nor refused, and nothing will bring them.
        died: with actors that were killed before they had sent them.
        stored_twice: received once more, by another shard than the first.
    """

    made: int = 0
    sent: int = 0
    received: int = 0
    refused: int = 0
    waiting: int = 0
    lost: int = 0
    died: int = 0
    stored_twice: int = 0

    def minus(self, others: Iterable[Balance]) -> Balance:
        """Take other balances off."""
        sums = map(sum, zip(*others, strict=True))
        return Balance(*(a - b for a, b in zip(self, [*sums] or Balance(), strict=True)))


@dataclass
class _Account:
    """The account of one stream.

    Attributes:
        made: transitions that its actor has reported as made.
        sent: those that it has reported as sent.
        end: way in which its actor has ended; empty while it is there.
        spans: end and refused number of each span, by (shard, start).
        balance: the balance when it was last computed.
    """

    made: int = 0
    sent: int = 0
    end: End = "died"  # until its actor reports: that of a session before is gone
    spans: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    balance: Balance = Balance()

    def compute(self) -> Balance:
        """Compute the balance from the rest."""
        if len(self.spans) <= 1:  # as nearly all of them
            for (_, start), (last, refused) in self.spans.items():
                return self._balance(last - start, last, refused, 0)
            return self._balance(0, 0, 0, 0)
        shards: dict[int, list[tuple[int, int]]] = {}
        for (shard, start), (end, _) in self.spans.items():
            shards.setdefault(shard, []).append((start, end))
        everywhere = [span for spans in shards.values() for span in spans]
        settled = _covered(everywhere)
        last = max((end for _, end in everywhere), default=0)
        refused = min(settled, sum(refused for _, refused in self.spans.values()))
        twice = sum(map(_covered, shards.values())) - settled if len(shards) > 1 else 0
        return self._balance(settled, last, refused, twice)

    def _balance(self, settled: int, last: int, refused: int, twice: int) -> Balance:
        sent = max(self.sent, last)
        made = max(self.made, sent)
        rest = made - settled
        gone = made - last if self.end == "died" else 0
        return Balance(
            made,
            sent,
            settled - refused,
            refused,
            0 if self.end else rest,
            rest - gone if self.end else 0,
            gone,
            twice,
        )


class Ledger:
    """The accounts of all streams, those of earlier sessions included."""

    def __init__(self) -> None:
        self._accounts: dict[Stream, _Account] = {}
        self._total = Balance()
        self._number_of_spans = 0
        self._stale: set[Stream] = set()
        self._away: set[int] = set()

    # ---- what is reported ----

    def ingest(self, key: MemberKey, report: Report) -> int:
        """Take in one report of one role; return the number of spans beyond the bounds."""
        dropped = 0
        if key.role == "actor":
            self.report((key.index, key.incarnation), report.counters)
        elif key.role == "replay":
            dropped = self.settle(key.index, report.spans)
            # It is missing while a replay reads its journal.
            if report.gauges.get("spans_waiting") == 0:
                self.shard_is_back(key.index)
        return dropped

    def report(self, stream: Stream, counters: Mapping[str, float]) -> None:
        """Take in what the actor of a stream has counted; it is there."""
        account = self._accounts.get(stream) or self._new(stream)
        if account is not None:
            account.made = max(account.made, int(counters.get("transitions_made", 0)))
            account.sent = max(account.sent, int(counters.get("transitions_sent", 0)))
            account.made = max(account.made, account.sent)
            account.end = ""
            self._stale.add(stream)

    def end(self, stream: Stream, how: End) -> None:
        """Note that the actor of a stream has ended; the first way counts."""
        account = self._accounts.get(stream)
        if account is not None and not account.end:
            account.end = how
            self._stale.add(stream)

    def settle(self, shard: int, spans: Iterable[Span]) -> int:
        """Take in what a shard of replay has settled; return the number of spans dropped."""
        dropped = 0
        for span in spans:
            account = self._accounts.get(span.stream) or self._new(span.stream)
            key, before = (shard, span.start), (0, 0)
            if account is not None:
                before = account.spans.get(key, before)
            if account is None or (not before[0] and self._number_of_spans >= MOST_SPANS):
                dropped += 1
                continue
            self._number_of_spans += not before[0]
            account.spans[key] = max(before[0], span.end), max(before[1], span.refused)
            self._stale.add(span.stream)
        return dropped

    def shard_is_away(self, shard: int) -> None:
        """Note that a shard has ended, which may come back with more than it has reported."""
        self._away.add(shard)

    def shard_is_back(self, shard: int) -> None:
        """Note that a shard has reported all that it has settled."""
        self._away.discard(shard)

    def close(self) -> None:
        """Note the end of the session: nothing comes any more."""
        for stream in self._accounts:
            self.end(stream, "died")
        self._away.clear()

    def _new(self, stream: Stream) -> _Account | None:
        """Open an account, if there is room; the oldest that cannot change makes room."""
        if len(self._accounts) >= MOST_STREAMS:
            self._update()
            oldest = next((s for s, account in self._accounts.items() if account.end), None)
            if oldest is None:
                return None
            self._number_of_spans -= len(self._accounts.pop(oldest).spans)
        return self._accounts.setdefault(stream, _Account())

    # ---- what is asked ----

    def balance(self) -> Balance:
        """Return the balance of all streams."""
        self._update()
        total = self._total
        if self._away:
            # A shard that is read again may hold some of these.
            coming = total.waiting + total.lost + total.died
            total = total._replace(waiting=coming, lost=0, died=0)
        return Balance(*(min(int(LARGEST), number) for number in total))

    def of(self, stream: Stream) -> Balance:
        """Return the balance of one stream, of zeros for one that is not known."""
        self._update()
        account = self._accounts.get(stream)
        return Balance() if account is None else account.balance

    def _update(self) -> None:
        if not self._stale:
            return
        befores, nows = [], [self._total]
        for stream in self._stale:
            account = self._accounts.get(stream)
            if account is not None:
                before, account.balance = account.balance, account.compute()
                befores.append(before)
                nows.append(account.balance)
        self._total = Balance(*map(sum, zip(*nows, strict=True))).minus(befores)
        self._stale.clear()

    # ---- later sessions ----

    def get_state(self) -> dict[str, Any]:
        """Return plain data for a later session."""
        self._update()
        streams = [
            [*stream, account.made, account.sent, account.end]
            for stream, account in self._accounts.items()
        ]
        spans = [
            [*stream, shard, start, *rest]
            for stream, account in self._accounts.items()
            for (shard, start), rest in account.spans.items()
        ]
        return {"streams": streams, "spans": spans, "former": list(self._former())}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``get_state`` gave in a session that has ended."""
        for actor, incarnation, made, sent, end in state["streams"]:
            self._accounts[actor, incarnation] = _Account(made, sent, end or "died")
        for actor, incarnation, shard, start, end, refused in state["spans"]:
            self._accounts[actor, incarnation].spans[shard, start] = end, refused
        self._number_of_spans = len(state["spans"])
        self._stale = set(self._accounts)
        self._total = Balance(*state["former"])

    def _former(self) -> Balance:
        """Return the balance of all streams that have no account any more."""
        return self._total.minus(account.balance for account in self._accounts.values())

    def awaited(self) -> tuple[int, int]:
        """Count what may still come once actors make no more.

        Returns:
            Transitions that actors have sent that are there or have left, not settled yet.
            All others of actors that were killed; some may be on their way.
        """
        self._update()
        sent = dead = 0
        for account in self._accounts.values():
            balance = account.balance
            if account.end == "died":
                dead += balance.died + balance.lost
            else:
                sent += balance.sent - balance.received - balance.refused
        return sent, dead


def state_of_sums(total: Callable[[str, str], float]) -> dict[str, Any]:
    """Return the state after sessions that had no ledger, from their totals by role and name."""
    sent = int(total("actor", "transitions_sent"))
    received, refused = (
        int(total("replay", name)) for name in ("transitions_received", "transitions_refused")
    )
    lost = max(0, sent - received - refused)
    made = received + refused + lost
    former = Balance(made, made, received, refused, lost=lost)
    return {"streams": [], "spans": [], "former": list(former)}


def _covered(spans: list[tuple[int, int]]) -> int:
    """Count the numbers in any of the spans, each once."""
    if len(spans) == 1:
        return spans[0][1] - spans[0][0]
    covered, reached = 0, 0
    for start, end in sorted(spans):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered
