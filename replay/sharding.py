"""One buffer in several processes: shares of a batch, and one limit over all. Pure functions.

Each shard of replay samples its own transitions in proportion to their priorities. If each shard k
gives a share of a batch in proportion to its total T_k, the batch is like one from a single buffer.
A transition of scaled priority p is then drawn with probability T_k / T * p / T_k = p / T.

**One limit over all.** The ratio of sampled to inserted transitions concerns the whole run. Each
shard has a limiter for all of them. It counts the shard's own work at once. The client, which hears
from all shards, keeps the *ledger* and reports the work of the others. The ledger also holds the
balance, which cannot be derived from the counts after a change of samples_per_insert.

**Bounded priorities.** Each shard bounds priorities by the mean of its own (``replay.priorities``).
A clipped transition of shard k has at most ``c T_k / N_k``, with c the bound's factor for scaled
priorities. It is drawn with probability at most ``(T_k / T) (c / N_k)``: the shard's share of all
rows times its share in the shard. One transition raises T_k by a factor of at most
``1 + c / N_k``, so it does not draw the rows of other shards to its own.

The bound is not global. If all errors of an actor are large, the mean and the total of its shard
grow with them, and the shard gets more rows. Where actors differ by chance only, so do the bounds.

**Deadlock.** The client reports to every shard again and again, even if nothing is sampled. After a
pause, all shards know everything, and their limiters agree with the ledger. They then block
inserting, or a batch of at most batch_size, but never both (``replay.limiter``). If inserting is
free, it is free at every live shard, wherever the actors are. If sampling is free, it is free at
every shard that was asked for rows.

The counts of a lost shard stay in the ledger, and a new shard learns of them, so neither makes
anything due again. The transitions of a lost shard are gone, however. If the live shards have not
inserted min_size between them, samples may be due that no shard can give. In that case nothing is
due, and min_size is gathered again, as at the start.

**Out of reach.** A shard may live, and take actors' batches, although its client does not hear it.
The ledger then works without it, as if it were lost, but its incarnation may come back. Meanwhile
the shard gets no reports about the others. Its limiter holds its actors up once it has taken as
much as may be due.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from replay.limiter import RateLimiter


@dataclass(frozen=True)
class ShardState:
    """A shard's report of itself in every answer.

    Attributes:
        incarnation: how often the shard had been started when its counts began. Counts that come
            from a journal go on, and keep the number with which they began.
        inserted: number of transitions that the shard has inserted since its counts began.
        sampled: number of transitions that it has sampled.
        size: number of live transitions.
        total_priority: sum of their priority^priority_exponent.
        num_inserted: transitions inserted by all shards, as its limiter counts them.
        num_sampled: transitions sampled by all shards, as its limiter counts them.
        balance: samples still due, as its limiter counts them.
    """

    incarnation: int
    inserted: int
    sampled: int
    size: int
    total_priority: float
    num_inserted: int
    num_sampled: int
    balance: float


@dataclass(frozen=True)
class Tally:
    """The ledger's contents, for one shard.

    Attributes:
        inserted: transitions inserted by this incarnation of the shard, as far as the ledger knows.
        sampled: transitions sampled by it, as far as the ledger knows.
        inserted_elsewhere: transitions inserted by all other shards, including lost ones.
        sampled_elsewhere: transitions sampled by all other shards, including lost ones.
        balance: samples due after all of these.
    """

    inserted: int
    sampled: int
    inserted_elsewhere: int
    sampled_elsewhere: int
    balance: float


class ShardLimiter:
    """A shard's own counts, and its limiter over all shards.

    Attributes:
        limiter: the limiter; ask it for permission, but count here.
        inserted: number of transitions that this shard has inserted.
        sampled: number of transitions that this shard has sampled.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.inserted = 0
        self.sampled = 0
        self._recovered = False

    def get_state(self) -> dict[str, float]:
        """Return the counts, and those of the limiter."""
        own = {"inserted": self.inserted, "sampled": self.sampled}
        return {**own, **self.limiter.get_state()}

    def recover(self, state: Mapping[str, float], inserted: int, sampled: int) -> None:
        """Continue the counts of a process that has ended.

        Args:
            state: what ``get_state`` returned there.
            inserted: transitions that the shard inserted afterwards.
            sampled: transitions that it sampled afterwards.
        """
        self.limiter.set_state(state)
        self.inserted, self.sampled = int(state["inserted"]), int(state["sampled"])
        self.count_inserted(inserted)
        self.count_sampled(sampled)
        self._recovered = True

    def count_inserted(self, count: int) -> None:
        """Count transitions as inserted by this shard."""
        self.limiter.inserted(count)
        self.inserted += count

    def count_sampled(self, count: int) -> None:
        """Count transitions as sampled by this shard."""
        self.limiter.sampled(count)
        self.sampled += count

    def follow(self, tally: Tally) -> bool:
        """Take over the ledger's counts, and add this shard's work since then.

        Returns:
            Whether they were taken over. If the tally counts more work of this shard than it has
            done, nothing is changed. A shard whose counts come from a journal may have done more
            than it knows of, just before its process ended; it believes the tally.
        """
        if self._recovered:
            self.inserted = max(self.inserted, tally.inserted)
            self.sampled = max(self.sampled, tally.sampled)
        inserted, sampled = self.inserted - tally.inserted, self.sampled - tally.sampled
        if inserted < 0 or sampled < 0:
            return False
        self.limiter.follow(
            tally.inserted + tally.inserted_elsewhere,
            tally.sampled + tally.sampled_elsewhere,
            tally.balance,
        )
        self.limiter.inserted(inserted)
        self.limiter.sampled(sampled)
        return True

    def state(self, incarnation: int, size: int, total_priority: float) -> ShardState:
        """Make the shard's report."""
        limiter = self.limiter
        return ShardState(
            incarnation,
            self.inserted,
            self.sampled,
            size,
            total_priority,
            limiter.num_inserted,
            limiter.num_sampled,
            limiter.balance,
        )


class Ledger:
    """The work of all shards, as reported to their client.

    A client that joins a running run starts from the counts that the client before it reported to
    the shards. For this it needs a report from every reachable shard, and holds back until then.
    Shards that do not answer join the ledger later.

    Args:
        limiter: a new limiter, which counts for the whole run.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self._states: dict[int, ShardState] = {}
        # By shard and incarnation. Those of lost shards remain.
        self._counted: dict[tuple[int, int], tuple[int, int]] = {}
        self._begun = False

    @property
    def open(self) -> bool:
        """Return whether to ask for rows: the ledger has begun, and there is enough to sample."""
        return self._begun and self._gathered >= self.limiter.min_size

    @property
    def totals(self) -> dict[int, float]:
        """Total priorities of the shards that have reported and hold transitions, in order."""
        totals = {s: state.total_priority for s, state in sorted(self._states.items())}
        return {shard: total for shard, total in totals.items() if total > 0}

    def hear(self, shard: int, state: ShardState) -> None:
        """Record a shard's report; reports must come in the order in which the shard made them."""
        self._states[shard] = state
        if self._begun:
            self._count(shard, state)

    def lose(self, shard: int) -> None:
        """Forget the report of a shard that is gone or out of reach; its work remains counted."""
        self._states.pop(shard, None)

    def begin(self, shards: Collection[int]) -> None:
        """Begin to count once all of these shards, the live and reachable ones, have reported."""
        if self._begun or not shards or any(shard not in self._states for shard in shards):
            return
        self._begun = True
        told = max(self._states.values(), key=lambda state: state.num_inserted)
        self.limiter.follow(told.num_inserted, told.num_sampled, told.balance)
        self._counted = {
            (shard, state.incarnation): (state.inserted, state.sampled)
            for shard, state in self._states.items()
        }
        self._count_untold()

    def tally(self, shard: int) -> Tally | None:
        """Return the report for a shard; None before there is anything to report."""
        state = self._states.get(shard)
        if state is None or not self._begun:
            return None
        self._gather_again()
        inserted, sampled = self._counted[shard, state.incarnation]
        return Tally(
            inserted,
            sampled,
            self.limiter.num_inserted - inserted,
            self.limiter.num_sampled - sampled,
            self.limiter.balance,
        )

    @property
    def _gathered(self) -> int:
        """Number of transitions that the present shards have inserted."""
        return sum(state.inserted for state in self._states.values())

    def _gather_again(self) -> None:
        """Set nothing as due before min_size is there again."""
        limiter = self.limiter
        short = limiter.min_size - self._gathered
        if limiter.filled and short > 0:
            balance = -short * limiter.target
            limiter.follow(limiter.num_inserted, limiter.num_sampled, balance)

    @property
    def _unclaimed(self) -> tuple[int, int]:
        """Transitions inserted and sampled that no shard is known to have inserted or sampled."""
        inserted, sampled = (sum(counts) for counts in zip(*self._counted.values(), strict=True))
        return self.limiter.num_inserted - inserted, self.limiter.num_sampled - sampled

    def _count_untold(self) -> None:
        """Count work that earlier reports lack: all work, if there was no earlier client."""
        inserted, sampled = self._unclaimed
        self.limiter.inserted(max(0, -inserted))
        self.limiter.sampled(max(0, -sampled))

    def _count(self, shard: int, state: ShardState) -> None:
        key = (shard, state.incarnation)
        known = self._counted[key] if key in self._counted else self._counted_before(state)
        inserted, sampled = max(state.inserted, known[0]), max(state.sampled, known[1])
        self.limiter.inserted(inserted - known[0])
        self.limiter.sampled(sampled - known[1])
        self._counted[key] = inserted, sampled

    def _counted_before(self, state: ShardState) -> tuple[int, int]:
        """Return how much of a late shard's work the ledger has counted from the beginning.

        If the earlier client knew the shard, it reported the shard's work to the others. Then this
        is all but the shard's work since, which its limiter kept small. It also reported the
        others' work to the shard, unless they had done nothing. In that case the shard itself has
        done all unclaimed work.
        """
        own, (inserted, sampled) = (state.inserted, state.sampled), self._unclaimed
        was_told = own != (state.num_inserted, state.num_sampled)
        if was_told or (state.inserted >= inserted and state.sampled >= sampled):
            return min(state.inserted, inserted), min(state.sampled, sampled)
        return 0, 0


def allocate(rows: int, totals: Mapping[int, float], u: float) -> dict[int, int]:
    """Divide the rows of a batch in proportion to totals, by systematic sampling.

    The totals lie end to end on a line, which is cut into ``rows`` equal pieces. A comb falls on
    it, with one tooth at the same place in each piece. Every shard gets the floor or the ceiling of
    its exact share, and the exact share in expectation over u.

    Args:
        rows: number of rows to divide.
        totals: totals of the shards, positive and finite; at least one.
        u: uniform in [0, 1).

    Returns:
        Rows of the shards that get any.
    """
    line, last = math.fsum(totals.values()), list(totals)[-1]
    counts: dict[int, int] = {}
    given, before = 0, 0.0
    for shard, total in totals.items():
        before += total
        # Teeth are at u, u + 1, ...; count those before the end of this shard's piece.
        teeth = min(rows, max(given, math.ceil(before / line * rows - u)))
        counts[shard] = teeth - given
        given = teeth
    # Rounding may leave the last tooth without a shard.
    counts[last] += rows - given
    return {shard: count for shard, count in counts.items() if count}
