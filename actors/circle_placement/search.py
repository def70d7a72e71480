"""Search for placements on one map, within a limit of seconds or of steps.

Exact greedy comes first, so no result is below it. A beam search follows, whose nodes are valued by
greedy completions, and then annealings of the best placement. All can be stopped at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.annealing import anneal, begin_walk
from actors.circle_placement.beam import Best, advance, expand, make_children, make_nodes
from actors.circle_placement.completion import absent, centres_of, complete, weight_of
from actors.circle_placement.tables import Tables

_BEAM_SHARE = 0.5  # of the limit
_STEPS_PER_SECOND = 8e6  # of a processor of 2024; only the number of annealings follows from it
_STEPS_PER_CIRCLE = 3  # a circle that is placed greedily costs as much time as 3 annealing moves
LIST_LENGTH = 256  # blocks that a node of a beam keeps for a radius
_LARGEST_WIDTH = 2000
_PROBE_WIDTH = 2
_NARROW, _BROAD = 16, 32  # children of a node, within a short limit and a longer one
_SHORT = 5e5  # steps
_SPACING = 1 / 32  # of the map's side, between candidates
COARSE = 2  # cells; placements that differ by less count as the same
_COLDEST = 3e-5  # temperatures are shares of the map's weight
_HOTTEST = (5e-4, 1e-3, 2e-3, 1e-3)
_CHUNKS = 40  # of an annealing, each with its temperature
_MOST_MOVES = 20_000  # between two looks at the clock


@dataclass(frozen=True)
class Placement:
    """Circles placed on a map.

    Attributes:
        coverage: share of the map's weight that they collect.
        centres: int64[placed, 2], rows and columns in the order of placement.
    """

    coverage: float
    centres: NDArray[np.int64]


class Budget:
    """A limit in seconds or in steps, as the share of it that is used.

    Args:
        seconds: seconds from now on; None for a limit in steps.
        steps: number of annealing moves, or of what takes as long; None for a limit in seconds.
        clock: clock of the seconds.
    """

    def __init__(
        self,
        seconds: float | None,
        steps: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if (seconds is None) == (steps is None) or (seconds or steps or 0) <= 0:
            raise ValueError(f"seconds={seconds}, steps={steps}: expected one of them, above 0")
        self._seconds, self._steps, self._clock = seconds, steps, clock
        self._began, self._spent = clock(), 0.0
        self.size = float(steps or 0) if seconds is None else seconds * _STEPS_PER_SECOND

    def spend(self, steps: float) -> None:
        """Count steps that were made."""
        self._spent += steps

    @property
    def used(self) -> float:
        """The share of the limit that is used; above 1 after its end."""
        if self._seconds is None:
            return self._spent / self.size
        return (self._clock() - self._began) / self._seconds


def solve(
    tables: Tables,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    start: NDArray[np.int64] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Placement:
    """Search for the placement that covers most.

    Args:
        tables: tables of the map.
        seconds: time to search, of ``clock``; the result depends on the machine's speed.
        steps: annealing moves to make, or what takes as long; the result depends on nothing else.
        seed: seed of the annealings.
        start: int64[placed, 2], centres of a valid placement that the result must not be below.
        clock: clock of ``seconds``.

    Returns:
        The best placement, at least as good as exact greedy's and as ``start``.

    Raises:
        ValueError: not exactly one limit is given, or ``start`` is not a valid placement.
    """
    budget = Budget(seconds, steps, clock)
    best = greedy_best(tables)
    if start is not None:
        rows, columns = absent(tables), absent(tables)
        rows[: len(start)], columns[: len(start)] = start.T
        if weight_of(tables, rows, columns) < 0.0:
            raise ValueError("start is not a valid placement on this map")
        _offer(tables, best, rows, columns)
    rate = _beam(tables, budget, best, _PROBE_WIDTH, _NARROW, 0.0)
    if rate > 0.0:
        breadth = _NARROW if budget.size < _SHORT else _BROAD
        _beam(tables, budget, best, _LARGEST_WIDTH, breadth, rate)
    _anneal(tables, budget, best, seed)
    return placement_of(tables, best.rows, best.columns)


def beam_search(tables: Tables, width: int, breadth: int) -> Placement:
    """Search with a beam of ``width`` placements, of which each has ``breadth`` children."""
    best = greedy_best(tables)
    _beam(tables, Budget(None, 1 << 62), best, width, breadth, 0.0)
    return placement_of(tables, best.rows, best.columns)


def greedy_best(tables: Tables) -> Best:
    """Return exact greedy's placement as the best so far."""
    best = Best(np.full(1, -1.0), absent(tables), absent(tables))
    _offer(tables, best, absent(tables), absent(tables))
    return best


def placement_of(tables: Tables, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Placement:
    """Describe a valid placement: int64[K] rows and columns."""
    weight = weight_of(tables, rows, columns)
    return Placement(weight / tables.total, centres_of(rows, columns))


def spacing_of(tables: Tables) -> int:
    """Return the squared distance in cells that candidates of a beam exceed."""
    return int((_SPACING * min(tables.weights.shape)) ** 2)


def _offer(tables: Tables, best: Best, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
    """Complete a placement greedily, in place, and keep it if it is the best."""
    placed = int((rows >= 0).sum())
    weight = weight_of(tables, rows, columns) + complete(tables, rows, columns, placed)
    if weight > best.weight[0]:
        best.weight[0], best.rows[:], best.columns[:] = weight, rows, columns


def _beam(
    tables: Tables, budget: Budget, best: Best, width: int, breadth: int, rate: float
) -> float:
    """Search with a beam, and improve ``best`` in place; return the share of the limit for a step.

    Args:
        tables: tables of the map.
        budget: the limit, of which the beam may use a part.
        best: the best placement.
        width: number of nodes at most.
        breadth: children of a node.
        rate: share of the limit that a step takes; the width follows from it. 0 for not known.
    """
    circles = len(tables.radii)
    costs = _STEPS_PER_CIRCLE * breadth * np.arange(circles, 0, -1)  # of a node, in steps
    width = _affordable(budget, rate, costs.sum(), width)
    if rate > 0.0 and width <= _PROBE_WIDTH:
        return rate
    spacing = spacing_of(tables)
    nodes, following = (make_nodes(tables, width, LIST_LENGTH) for _ in range(2))
    children = make_children(width * breadth)
    live, steps, began = 1, 0.0, budget.used
    for circle in range(circles):
        if budget.used > _BEAM_SHARE:
            break
        count = expand(tables, nodes, live, circle, breadth, spacing, COARSE, children, best)
        steps += live * costs[circle]
        budget.spend(live * costs[circle])
        if count == 0:
            break
        allowed = _affordable(budget, rate, costs[circle + 1 :].sum(), width)
        live = advance(tables, nodes, following, circle, children, count, allowed)
        nodes, following = following, nodes
    return (budget.used - began) / steps if steps else 0.0


def _affordable(budget: Budget, rate: float, cost: float, width: int) -> int:
    """Return the width, from 1 to ``width``, for which the beam's part of the limit suffices."""
    if rate <= 0.0 or cost <= 0.0:
        return width
    return int(min(max(1.0, (_BEAM_SHARE - budget.used) / rate / cost), width))


def _anneal(tables: Tables, budget: Budget, best: Best, seed: int) -> None:
    """Anneal the best placement for the rest of the limit, and improve it in place."""
    legs = 1 if budget.size < 1e6 else 2 if budget.size < 8e6 else len(_HOTTEST)
    rate = 0.0
    for leg in range(legs):
        walk = begin_walk(tables, best.weight[0], best.rows, best.columns, seed + leg)
        began = budget.used
        end = began + (1.0 - began) / (legs - leg)
        while (used := budget.used) < end:
            moves = int(min((end - began) / _CHUNKS, end - used) / rate) if rate else 500
            moves = min(max(moves, 100), _MOST_MOVES)
            progress = (used - began) / (end - began)
            temperature = _HOTTEST[leg] * (_COLDEST / _HOTTEST[leg]) ** progress
            anneal(tables, walk, moves, temperature * tables.total)
            budget.spend(moves)
            rate = (budget.used - used) / moves
        _offer(tables, best, walk.best_rows, walk.best_columns)
