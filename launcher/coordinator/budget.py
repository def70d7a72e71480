"""The budget of a run, which gives each actor its part so that the run ends at its limit. Pure.

Actors report about once a second, and may do hundreds of episodes in between. A run that only
looked at its counters would end long after its limit. So each actor may go on up to a number that
is a few seconds ahead of what it has done. No actor holds a large part that others could do sooner.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

# A part lasts for about this many reports; the first, at an unknown pace, is this many batches.
_AHEAD = 4


@dataclass
class _Share:
    """The share of one actor: what it has done, may do in all, and did since its last report."""

    done: int = 0
    allowed: int = 0
    pace: int = 0

    @property
    def left(self) -> int:
        return max(0, self.allowed - self.done)


class Budget:
    """A limit in episodes or in steps, handed out to actors.

    Args:
        limit: the whole run's.
        batch: environments that an actor steps at once. Parts are multiples of it, since
            environments that end their episodes together would overshoot any other part.
    """

    def __init__(self, limit: int, batch: int) -> None:
        self._limit, self._batch = limit, batch
        self._shares: dict[Hashable, _Share] = {}
        self._left = 0  # of all shares: summing thousands for every report would cost cores

    def note(self, actor: Hashable, done: int) -> int:
        """Note what an actor has done; return how far it may go without a new part."""
        share = self._shares.setdefault(actor, _Share())
        if done > share.done:
            # A report that came early says little: the pace falls by half at most.
            share.pace = max(done - share.done, share.pace // 2)
        self._change(share, done, max(share.allowed, done))
        return share.allowed

    def allow(self, actor: Hashable, done: int, done_by_all: int) -> int:
        """Give an actor its next part; return how many it may do in all, as things stand.

        Args:
            actor: one incarnation of an actor.
            done: by this actor.
            done_by_all: in the whole run, by actors that are gone and in earlier sessions as well.
        """
        self.note(actor, done)
        share, batch = self._shares[actor], self._batch
        free = self._limit - done_by_all - self._left
        wanted = max(_AHEAD * batch, _AHEAD * share.pace)
        part = max(1, min(wanted, free // (2 * len(self._shares))) // batch) * batch
        self._change(share, done, share.allowed + max(0, min(free, part - share.left)))
        return share.allowed

    def take_back(self, actor: Hashable) -> int:
        """Leave what an idle actor has not done to the others; return what it has done."""
        share = self._shares[actor]
        self._change(share, share.done, share.done)
        return share.done

    def forget(self, actor: Hashable) -> None:
        """Remove an actor that is gone, and leave what it has not done to the others."""
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
        limits: the whole run's; None if there is none.
        batch: environments that an actor steps at once.
    """

    def __init__(self, limits: Mapping[str, int | None], batch: int) -> None:
        self._budgets = {n: Budget(most, batch) for n, most in limits.items() if most is not None}

    def note(self, actor: Hashable, done: Mapping[str, int]) -> dict[str, int]:
        """Note what an actor has done; return how far it may go in all, without new parts."""
        return {name: budget.note(actor, done[name]) for name, budget in self._budgets.items()}

    def allow(
        self, actor: Hashable, done: Mapping[str, int], done_by_all: Mapping[str, int]
    ) -> dict[str, int]:
        """Give an actor its next parts; return how far it may go in all, as things stand.

        An actor that has used up one of its parts holds nothing of the others. Otherwise an actor
        with only steps left and one with only episodes left would wait for each other.
        """
        allowed = {
            name: budget.allow(actor, done[name], done_by_all[name])
            for name, budget in self._budgets.items()
        }
        if all(allowed[name] > done[name] for name in allowed):
            return allowed
        return {name: budget.take_back(actor) for name, budget in self._budgets.items()}

    def forget(self, actor: Hashable) -> None:
        """Remove an actor that is gone."""
        for budget in self._budgets.values():
            budget.forget(actor)
