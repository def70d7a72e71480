"""Who may still do how much of what a run is limited to, so that it ends where it should. Pure.

Actors report about once a second, in which they do hundreds of episodes: a run that only looked at
its counters would end long after its limit. So every actor is allowed to go on to a number of its
own, a few seconds ahead of what it has done: nobody holds a large part that others could do sooner.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

# Parts last for about so many reports; the first ones, of an unknown pace, are so many batches.
_AHEAD = 4


@dataclass
class _Share:
    """What one actor has done, may do in all, and did from one report to the next."""

    done: int = 0
    allowed: int = 0
    pace: int = 0

    @property
    def left(self) -> int:
        return max(0, self.allowed - self.done)


class Budget:
    """A limit in episodes or in steps, handed out to actors.

    Args:
        limit: of the whole run.
        batch: environments of an actor, which it steps at once: parts are multiples of it, since
            environments that end their episodes together would overshoot any other.
    """

    def __init__(self, limit: int, batch: int) -> None:
        self._limit, self._batch = limit, batch
        self._shares: dict[Hashable, _Share] = {}
        self._left = 0  # of all shares: a sum over thousands for every report would cost cores

    def note(self, actor: Hashable, done: int) -> int:
        """Take in what an actor has done; how far it may go, with nothing more."""
        share = self._shares.setdefault(actor, _Share())
        if done > share.done:
            # A report that came early says little: the pace falls by half at most.
            share.pace = max(done - share.done, share.pace // 2)
        self._change(share, done, max(share.allowed, done))
        return share.allowed

    def allow(self, actor: Hashable, done: int, done_by_all: int) -> int:
        """How many an actor may do in all, as things stand.

        Args:
            actor: one incarnation of one.
            done: by this actor.
            done_by_all: in the whole run, by those who are gone and in earlier sessions, too.
        """
        self.note(actor, done)
        share, batch = self._shares[actor], self._batch
        free = self._limit - done_by_all - self._left
        wanted = max(_AHEAD * batch, _AHEAD * share.pace)
        part = max(1, min(wanted, free // (2 * len(self._shares))) // batch) * batch
        self._change(share, done, share.allowed + max(0, min(free, part - share.left)))
        return share.allowed

    def take_back(self, actor: Hashable) -> int:
        """What an actor that stands still has not done is for the others; what it has done."""
        share = self._shares[actor]
        self._change(share, share.done, share.done)
        return share.done

    def forget(self, actor: Hashable) -> None:
        """An actor is gone: what it has not done is for the others."""
        share = self._shares.pop(actor, None)
        if share is not None:
            self._left -= share.left

    def _change(self, share: _Share, done: int, allowed: int) -> None:
        """Change a share, and with it what all have left."""
        self._left -= share.left
        share.done, share.allowed = done, allowed
        self._left += share.left


class Budgets:
    """All limits of a run, by the name of what is counted.

    Args:
        limits: of the whole run, None where there is none.
        batch: environments of an actor.
    """

    def __init__(self, limits: Mapping[str, int | None], batch: int) -> None:
        self._budgets = {n: Budget(most, batch) for n, most in limits.items() if most is not None}

    def note(self, actor: Hashable, done: Mapping[str, int]) -> dict[str, int]:
        """How far an actor may go in everything, with nothing more than it has been given."""
        return {name: budget.note(actor, done[name]) for name, budget in self._budgets.items()}

    def allow(
        self, actor: Hashable, done: Mapping[str, int], done_by_all: Mapping[str, int]
    ) -> dict[str, int]:
        """How far an actor may go in everything, as things stand.

        One that stands still for want of one thing holds nothing of the others: else one with
        steps left and one with episodes left would wait for each other.
        """
        allowed = {
            name: budget.allow(actor, done[name], done_by_all[name])
            for name, budget in self._budgets.items()
        }
        if all(allowed[name] > done[name] for name in allowed):
            return allowed
        return {name: budget.take_back(actor) for name, budget in self._budgets.items()}

    def forget(self, actor: Hashable) -> None:
        """An actor is gone."""
        for budget in self._budgets.values():
            budget.forget(actor)
