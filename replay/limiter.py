"""A limit on how far sampling and inserting may run ahead of each other: counters, no clocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pdqn.config import Config, resolved
from pdqn.errors import UsageError


class RateLimiter:
    """A limiter that holds the ratio of sampled to inserted transitions near a target.

    With I transitions inserted, S sampled, and the target sigma = ``samples_per_insert``::

        balance = sigma * (I - min_size) - S

    is the number of samples that are still due. Inserting adds to it, sampling takes from it::

        can_insert()   =  I < min_size   or   balance <= tolerance
        can_sample(n)  =  I >= min_size  and  balance - n >= -tolerance

    If both sides ask first, nothing is sampled before I reaches min_size, and from then on::

        -tolerance  <=  balance  <=  tolerance + sigma * m

    where m is the size of the largest insert. An insert is accepted whole, however large it is,
    and therefore overshoots by at most sigma * m.

    **Deadlock.** Inserting is blocked if I >= min_size and balance > tolerance. Sampling a batch of
    B = batch_size is then blocked if balance < B - tolerance. Both are blocked if
    tolerance < balance < B - tolerance. Such a balance does not exist exactly if
    B - tolerance <= tolerance. So tolerance >= B / 2 is required, and is enough, for any sigma and
    any size of inserts. Samples of fewer than B wait no longer than samples of B. Nor can a side
    wait forever while the other one works. Each sampled batch lowers a balance above tolerance by
    B, and each insert raises a low one by sigma or more.

    The limiter counts inserts, not the transitions that the buffer still holds. If a buffer comes
    back from its journal, so do the counts. If it comes back empty, its replay makes a new limiter,
    and so gathers min_size transitions again before it serves a batch.

    If several shards serve a run, each has its own limiter, which follows the counts of the others
    (``follow``). The overall balance may exceed these bounds by the amount not yet reported to it.
    ``replay.sharding`` shows that the shards do not deadlock either.

    Args:
        samples_per_insert: sigma, transitions sampled for each one inserted.
        tolerance: largest distance of the balance from zero, in samples.
        min_size: transitions inserted before the first sample.
        batch_size: largest number of transitions in one sample.
        capacity: capacity of the buffer, if known; min_size must not exceed it.

    Attributes:
        num_inserted: I, transitions.
        num_sampled: S, transitions.

    Raises:
        UsageError: settings that make no sense, or with which the run would stand still.
    """

    def __init__(
        self,
        samples_per_insert: float,
        tolerance: float,
        min_size: int,
        batch_size: int,
        *,
        capacity: int | None = None,
    ) -> None:
        _check_target(samples_per_insert)
        _check_sizes(min_size, batch_size, capacity)
        _check_tolerance(tolerance, batch_size)
        self._target = float(samples_per_insert)
        self._tolerance = float(tolerance)
        self._min_size = min_size
        self._batch_size = batch_size
        self.num_inserted = 0
        self.num_sampled = 0
        self._rebase(balance=0.0)

    @property
    def target(self) -> float:
        """The target of ``samples_per_insert``."""
        return self._target

    @property
    def min_size(self) -> int:
        """Transitions inserted before the first sample."""
        return self._min_size

    @property
    def filled(self) -> bool:
        """Return whether min_size transitions have been inserted."""
        return self.num_inserted >= self._min_size

    @property
    def samples_per_insert(self) -> float:
        """The ratio so far, S / (I - min_size); 0 until it is defined."""
        counted = self.num_inserted - self._min_size
        return self.num_sampled / counted if counted > 0 else 0.0

    @property
    def balance(self) -> float:
        """Samples still due; negative if sampling is ahead."""
        inserted = self.num_inserted - self._base_inserted
        return (
            self._base_balance + self._target * inserted - (self.num_sampled - self._base_sampled)
        )

    @property
    def blocked(self) -> Literal["insert", "sample"] | None:
        """The side that must wait for the other one now, if any; never both."""
        if not self.can_insert():
            return "insert"
        return None if self.can_sample(self._batch_size) else "sample"

    def can_insert(self) -> bool:
        """Return whether the next insert, of any size, may be done now."""
        return not self.filled or self.balance <= self._tolerance

    def can_sample(self, count: int) -> bool:
        """Return whether ``count`` transitions, at most batch_size, may be sampled now."""
        return self.filled and self.balance - count >= -self._tolerance

    def why_not_insert(self) -> str:
        """Describe what actors wait for; empty if they need not wait."""
        if self.can_insert():
            return ""
        return (
            f"actors wait for the learner: {self.balance:.0f} samples due, "
            f"at most {self._tolerance:.0f} may be"
        )

    def why_not_sample(self, count: int) -> str:
        """Describe what a sample of ``count`` waits for; empty if it need not wait."""
        if self.can_sample(count):
            return ""
        if not self.filled:
            return f"fills: {self.num_inserted} of {self._min_size} before the first batch"
        return (
            f"learner waits for the actors: {count - self.balance:.0f} samples ahead, "
            f"at most {self._tolerance:.0f} may be"
        )

    def inserted(self, count: int) -> None:
        """Count ``count`` transitions as inserted."""
        self.num_inserted += _natural(count)

    def sampled(self, count: int) -> None:
        """Count ``count`` transitions as sampled."""
        self.num_sampled += _natural(count)

    def set_samples_per_insert(self, samples_per_insert: float) -> None:
        """Aim at another ratio from now on.

        The balance stays the same. Applied to all of the past, a new ratio would make millions of
        samples or inserts due at once. The other side would wait for them.

        Raises:
            UsageError: the ratio is not a positive finite number.
        """
        _check_target(samples_per_insert)
        balance = self.balance
        self._target = float(samples_per_insert)
        self._rebase(balance)

    def follow(self, num_inserted: int, num_sampled: int, balance: float) -> None:
        """Take over counters that include more shards' transitions than this limiter has counted.

        Unlike a saved state, they are not corrected: several shards at once may grant more samples
        than one of them would.
        """
        self.num_inserted = _natural(num_inserted)
        self.num_sampled = _natural(num_sampled)
        self._base_inserted = max(num_inserted, self._min_size)
        self._base_sampled = num_sampled
        self._base_balance = balance if self.filled else 0.0

    def get_state(self) -> dict[str, float]:
        """Return the counters; the constructor takes the settings."""
        return {
            "num_inserted": self.num_inserted,
            "num_sampled": self.num_sampled,
            "balance": self.balance,
            "target": self._target,
            "min_size": self._min_size,
            "base_inserted": self._base_inserted,
            "base_sampled": self._base_sampled,
            "base_balance": self._base_balance,
        }

    def set_state(self, state: Mapping[str, float]) -> None:
        """Continue from ``get_state``, with this limiter's own settings from now on."""
        self.num_inserted = _natural(int(state["num_inserted"]))
        self.num_sampled = _natural(int(state["num_sampled"]))
        self._rebase(float(state["balance"]))
        settings = state.get("target"), state.get("min_size")
        if settings == (self._target, self._min_size) and state["balance"] >= -self._tolerance:
            # The same sums, rounded in the same way: a run can go on equal to the bit.
            self._base_inserted = int(state["base_inserted"])
            self._base_sampled = int(state["base_sampled"])
            self._base_balance = float(state["base_balance"])

    def _rebase(self, balance: float) -> None:
        """Restart counting at the present counters, with a known balance.

        Below min_size, counting restarts when min_size is reached: nothing is due until then.
        """
        self._base_inserted = max(self.num_inserted, self._min_size)
        self._base_sampled = self.num_sampled
        if self.num_inserted < self._min_size:
            balance = 0.0
        # Only a state saved with another min_size or tolerance can be lower than this.
        self._base_balance = max(balance, -self._tolerance)


def make_limiter(config: Config) -> RateLimiter:
    """Make the rate limiter that a configuration describes, over all shards.

    Raises:
        UsageError: the run would stand still with these settings.
    """
    return RateLimiter(
        resolved(config.replay.samples_per_insert),
        resolved(config.replay.samples_per_insert_tolerance),
        resolved(config.replay.min_size),
        config.learner.batch_size,
        capacity=resolved(config.replay.capacity),
    )


def _check_target(samples_per_insert: float) -> None:
    if not (math.isfinite(samples_per_insert) and samples_per_insert > 0):
        raise UsageError(
            f"samples_per_insert is {samples_per_insert}: it must be a positive number, "
            "or one side would wait for the other forever"
        )


def _check_sizes(min_size: int, batch_size: int, capacity: int | None) -> None:
    if batch_size < 1:
        raise UsageError(f"the batch size is {batch_size}: a batch has at least 1 transition")
    if min_size < 1:
        raise UsageError(f"min_size is {min_size}: nothing can be sampled from an empty buffer")
    if capacity is not None and min_size > capacity:
        raise UsageError(
            f"min_size is {min_size}, but the buffer holds only {capacity} transitions: "
            "it would never be as full as the first batch requires"
        )


def _check_tolerance(tolerance: float, batch_size: int) -> None:
    if not math.isfinite(tolerance):
        raise UsageError(f"the samples_per_insert tolerance is {tolerance}: it must be finite")
    if tolerance < batch_size / 2:
        raise UsageError(
            f"the samples_per_insert tolerance is {tolerance}, less than half of the batch size "
            f"{batch_size}. With more than {tolerance} and fewer than {batch_size - tolerance} "
            "samples due, actors and learner would wait for each other; "
            f"it must be at least {batch_size / 2}"
        )


def _natural(count: int) -> int:
    if count < 0:
        raise ValueError(f"{count} transitions cannot be counted")
    return count
