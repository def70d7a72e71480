"""One buffer in several processes: whose rows a batch gets, and one limit over all. Pure.

Each shard of replay samples its own transitions in proportion to their priorities. A batch is as
from one buffer if each shard k gives a share of it in proportion to its total T_k: a transition
of scaled priority p is then drawn with probability T_k / T * p / T_k = p / T.

**One limit over all.** The ratio of sampled to inserted transitions is a matter of the whole run.
Each shard has a limiter for all of them. What the shard does itself it counts at once; what the
others do it is told by their client, who hears from all of them and keeps the *ledger*. A ledger
holds the balance, too: it cannot be derived from the counts once samples_per_insert was changed.

**Deadlock.** A shard is told again and again, whether anything is sampled or not. When nothing
has happened for a while, all shards have been told of everything, and their limiters agree with
the ledger. Then they block inserting, or a batch of at most batch_size, but never both
(``replay.limiter``). If inserting is free it is so at every shard that lives, wherever the
actors are; if sampling is free it is so at every shard that was asked for rows. A shard that is
lost leaves its counts in the ledger, and one that starts is told of them, so that neither makes
anything due again. What it held is lost, however: when those that live have not inserted min_size
between them, samples may be due that nobody can give. So nothing is due then, and min_size is
gathered again, as at the start.

**Out of reach.** A shard may live, and take what actors send, where its client does not hear it.
The ledger does without it: it is lost, with its incarnation still to come back. Nobody tells it
of the others meanwhile, so its limiter holds its actors up once it has taken what may be due.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from replay.limiter import RateLimiter


@dataclass(frozen=True)
class ShardState:
    """What a shard reports of itself with every answer.

    Attributes:
        incarnation: how often the shard was started before.
        inserted: transitions that this incarnation has inserted.
        sampled: transitions that it has sampled.
        size: live transitions.
        total_priority: sum of their priority^priority_exponent.
        num_inserted: transitions inserted by all shards, as its limiter counts them.
        num_sampled: transitions sampled by all shards, likewise.
        balance: samples still due, likewise.
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
    """What the ledger holds, for one shard.

    Attributes:
        inserted: by this incarnation of the shard, as far as the ledger knows.
        sampled: likewise.
        inserted_elsewhere: by all others, those included that are gone.
        sampled_elsewhere: likewise.
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
        limiter: ask it what may be done; count here.
        inserted: transitions that this shard has inserted.
        sampled: transitions that this shard has sampled.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.inserted = 0
        self.sampled = 0

    def count_inserted(self, count: int) -> None:
        """Count transitions as inserted by this shard."""
        self.limiter.inserted(count)
        self.inserted += count

    def count_sampled(self, count: int) -> None:
        """Count transitions as sampled by this shard."""
        self.limiter.sampled(count)
        self.sampled += count

    def follow(self, tally: Tally) -> bool:
        """Take over what the ledger holds; what this shard has done since is added.

        False, and nothing is changed, if the tally counts more of this shard than it has done.
        """
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
        """What to report."""
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
    """What all shards have done, as their client hears it from each.

    A client that comes into a running run begins with what the shards were told by the one before
    it. It needs a word from every shard that is there for that, and holds back until then; but
    for those that do not answer it, which come in later.

    Args:
        limiter: a new one; it counts for the whole run.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self._states: dict[int, ShardState] = {}
        # By shard and incarnation, of those that are gone, too: their counts remain.
        self._counted: dict[tuple[int, int], tuple[int, int]] = {}
        self._begun = False

    @property
    def open(self) -> bool:
        """Whether rows may be asked for: the ledger has begun, and there is enough to sample."""
        return self._begun and self._gathered >= self.limiter.min_size

    @property
    def totals(self) -> dict[int, float]:
        """Total priorities of the shards that have told theirs and hold transitions, in order."""
        totals = {s: state.total_priority for s, state in sorted(self._states.items())}
        return {shard: total for shard, total in totals.items() if total > 0}

    def hear(self, shard: int, state: ShardState) -> None:
        """Take in a shard's report; they must come in the order in which it made them."""
        self._states[shard] = state
        if self._begun:
            self._count(shard, state)

    def lose(self, shard: int) -> None:
        """The shard is gone, out of reach, or to be heard of anew; what it did remains counted."""
        self._states.pop(shard, None)

    def begin(self, shards: Collection[int]) -> None:
        """Begin to count once all of these shards, those alive that can be heard, have reported."""
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
        """What to tell a shard; None before there is anything to say."""
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
        """Transitions that the present shards have inserted."""
        return sum(state.inserted for state in self._states.values())

    def _gather_again(self) -> None:
        """Have nothing due before min_size is there again."""
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
        """Count what nobody was told of yet; everything, where there was no client before."""
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
        """What the ledger began with of a shard that is heard late.

        All but what it has done since, which its limiter kept small, if the client before knew it
        and so told the others of it. Then it was told of them, too, unless they had done nothing:
        in that case it has itself done all that is unclaimed.
        """
        own, (inserted, sampled) = (state.inserted, state.sampled), self._unclaimed
        was_told = own != (state.num_inserted, state.num_sampled)
        if was_told or (state.inserted >= inserted and state.sampled >= sampled):
            return min(state.inserted, inserted), min(state.sampled, sampled)
        return 0, 0


def allocate(rows: int, totals: Mapping[int, float], u: float) -> dict[int, int]:
    """Share out the rows of a batch in proportion to totals, by systematic sampling.

    The totals lie end to end on a line, which is cut into ``rows`` equal pieces; a comb with one
    tooth in each piece, at the same place in all, falls on it. Every shard gets the floor or the
    ceiling of its exact share, and the exact share in expectation over u.

    Args:
        rows: to share out.
        totals: of each shard, positive and finite; at least one.
        u: uniform in [0, 1).

    Returns:
        Rows of the shards that get any.
    """
    line, last = math.fsum(totals.values()), list(totals)[-1]
    counts: dict[int, int] = {}
    given, before = 0, 0.0
    for shard, total in totals.items():
        before += total
        # Teeth are at u, u + 1, ...; so many of them lie before the end of this shard's piece.
        teeth = min(rows, max(given, math.ceil(before / line * rows - u)))
        counts[shard] = teeth - given
        given = teeth
    # Rounding may leave the last tooth to nobody.
    counts[last] += rows - given
    return {shard: count for shard, count in counts.items() if count}
