"""Simulated annealing of placements, with moves whose cost is linear in the number of circles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.completion import best_centre, loss_at, overwrite
from actors.circle_placement.kernels import SEARCH_STREAM, drawn, seeded
from actors.circle_placement.tables import ABSENT, NEVER, Tables, sort_block, unpacked
from pdqn.jit import compiled

_SHIFTS, _SWAPS, _JUMPS = 0.70, 0.80, 0.88  # shares of moves, cumulated; the rest push
_MOST_EJECTED = 4
_UNIT = 2.0**-53


class Walk(NamedTuple):
    """One annealing: its present placement, the best one, and its random numbers."""

    rows: NDArray[np.int64]  # [K]
    columns: NDArray[np.int64]  # [K]
    weight: NDArray[np.float64]  # [1]
    best_rows: NDArray[np.int64]  # [K]
    best_columns: NDArray[np.int64]  # [K]
    best_weight: NDArray[np.float64]  # [1]
    random: NDArray[np.uint64]  # [2]
    moved: NDArray[np.int64]  # [E + 1, 3]: a push's circles, and the centres that they had


def begin_walk(
    tables: Tables, weight: float, rows: NDArray[np.int64], columns: NDArray[np.int64], seed: int
) -> Walk:
    """Begin an annealing at a placement of this weight."""
    bits = np.array(seeded(np.uint64(seed), SEARCH_STREAM), np.uint64)
    weights = np.full(1, weight)
    moved = np.empty((_MOST_EJECTED + 1, 3), np.int64)
    return Walk(
        rows.copy(),
        columns.copy(),
        weights,
        rows.copy(),
        columns.copy(),
        weights.copy(),
        bits,
        moved,
    )


@compiled(borrows=True)
def anneal(tables, walk, moves, temperature):
    """Try a number of moves; an unfavourable one is taken with the Metropolis probability.

    Args:
        tables: ``Tables``.
        walk: ``Walk``, changed in place.
        moves: number of moves to try.
        temperature: loss of weight that is taken with the probability 1 / e.
    """
    placed = 0
    while placed < len(walk.rows) and walk.rows[placed] != ABSENT:
        placed += 1
    if placed == 0:
        return
    for _ in range(moves):
        kind_of_move = _uniform(walk.random)
        circle = _below(walk.random, placed)
        least = walk.weight[0] + temperature * np.log(_uniform(walk.random) + _UNIT)
        if kind_of_move < _SHIFTS:
            _shift(tables, walk, placed, circle, least)
        elif kind_of_move < _SWAPS:
            _swap(tables, walk, placed, circle, least)
        elif kind_of_move < _JUMPS:
            x, y = _good_place(tables, walk, circle)
            _push(tables, walk, placed, circle, x, y, least)
        else:
            reach = 2 if _uniform(walk.random) < 0.5 else max(2, len(tables.weights) // 8)
            x, y = _near(tables, walk, circle, reach)
            _push(tables, walk, placed, circle, x, y, least)
        if walk.weight[0] > walk.best_weight[0]:
            walk.best_weight[0] = walk.weight[0]
            overwrite(walk.best_rows, walk.rows)
            overwrite(walk.best_columns, walk.columns)


@compiled(borrows=True)
def _uniform(random):
    """Return a float64 uniform over [0, 1), and advance the generator, uint64[2]."""
    bits, random[0], random[1] = drawn(random[0], random[1])
    return np.float64(bits >> np.uint64(11)) * _UNIT


@compiled(borrows=True)
def _below(random, limit):
    """Return an int64 uniform over 0..limit - 1."""
    return int(_uniform(random) * limit)


@compiled(borrows=True)
def _near(tables, walk, circle, reach):
    """Return a random cell within a square around a circle's centre, clipped to the map."""
    height, width = tables.weights.shape
    x = walk.rows[circle] + _below(walk.random, 2 * reach + 1) - reach
    y = walk.columns[circle] + _below(walk.random, 2 * reach + 1) - reach
    return min(max(x, 0), height - 1), min(max(y, 0), width - 1)


@compiled(borrows=True)
def _good_place(tables, walk, circle):
    """Return a random centre that is heavy on the empty map."""
    kind = tables.kinds[circle]
    share = _uniform(walk.random)
    rank = int(tables.lengths[kind] * share * share * share)
    sort_block(tables, kind, rank)
    return unpacked(tables.centres[kind, rank, 0])


@compiled(borrows=True)
def _lift(tables, walk, placed, circle):
    """Take a circle away; return the weight that is lost with it."""
    x, y, kind = walk.rows[circle], walk.columns[circle], tables.kinds[circle]
    walk.rows[circle] = walk.columns[circle] = ABSENT
    loss = loss_at(tables, walk.rows, walk.columns, kind, x, y, 0, placed)
    return tables.sums[kind, x, y] - loss


@compiled(borrows=True)
def _drop(tables, walk, placed, circle, x, y):
    """Place an absent circle if it is valid there; return the weight that it adds, or -1."""
    kind = tables.kinds[circle]
    if tables.sums[kind, x, y] == NEVER:
        return -1.0
    loss = loss_at(tables, walk.rows, walk.columns, kind, x, y, 0, placed)
    if loss < 0.0:
        return -1.0
    walk.rows[circle], walk.columns[circle] = x, y
    return tables.sums[kind, x, y] - loss


@compiled(borrows=True)
def _shift(tables, walk, placed, circle, least):
    """Move a circle a little, if at least the weight ``least`` remains."""
    lot = _uniform(walk.random)
    reach = 1 if lot < 0.4 else 3 if lot < 0.75 else max(1, len(tables.weights) // 8)
    x, y = _near(tables, walk, circle, reach)
    old_x, old_y, sums = walk.rows[circle], walk.columns[circle], tables.sums[tables.kinds[circle]]
    # Cheap, and nearly always right: only a cell shared by touching could still make up for it.
    if walk.weight[0] + sums[x, y] - sums[old_x, old_y] + tables.heaviest < least:
        return
    lifted = _lift(tables, walk, placed, circle)
    added = _drop(tables, walk, placed, circle, x, y)
    if added < 0.0 or walk.weight[0] - lifted + added < least:
        walk.rows[circle], walk.columns[circle] = old_x, old_y
    else:
        walk.weight[0] += added - lifted


@compiled(borrows=True)
def _swap(tables, walk, placed, circle, least):
    """Exchange the centres of two circles, if at least the weight ``least`` remains."""
    other = _below(walk.random, placed)
    if tables.kinds[other] == tables.kinds[circle]:
        return
    x, y = walk.rows[circle], walk.columns[circle]
    other_x, other_y = walk.rows[other], walk.columns[other]
    weight = walk.weight[0] - _lift(tables, walk, placed, circle)
    weight -= _lift(tables, walk, placed, other)
    added = _drop(tables, walk, placed, circle, other_x, other_y)
    if added >= 0.0:
        more = _drop(tables, walk, placed, other, x, y)
        if more >= 0.0 and weight + added + more >= least:
            walk.weight[0] = weight + added + more
            return
    walk.rows[circle], walk.columns[circle] = x, y
    walk.rows[other], walk.columns[other] = other_x, other_y


@compiled(borrows=True)
def _push(tables, walk, placed, circle, x, y, least):
    """Move a circle, and place smaller ones that are in its way greedily elsewhere.

    Nothing changes unless at least the weight ``least`` remains.
    """
    kind, apart = tables.kinds[circle], tables.apart[tables.kinds[circle]]
    if tables.sums[kind, x, y] == NEVER:
        return
    moved = walk.moved
    moved[0, 0], moved[0, 1], moved[0, 2] = circle, walk.rows[circle], walk.columns[circle]
    count = 1
    for other in range(placed):
        dx, dy = walk.rows[other] - x, walk.columns[other] - y
        if other != circle and dx * dx + dy * dy < apart[other]:
            if count > _MOST_EJECTED or tables.radii[other] > tables.radii[circle]:
                return
            moved[count, 0], moved[count, 1] = other, walk.rows[other]
            moved[count, 2] = walk.columns[other]
            count += 1
    weight, hoped = walk.weight[0], 0.0
    for i in range(count):
        weight -= _lift(tables, walk, placed, moved[i, 0])
        hoped += tables.tops[tables.kinds[moved[i, 0]], 0] if i else 0.0
    weight += _drop(tables, walk, placed, circle, x, y)
    for i in range(1, count):
        ejected = moved[i, 0]
        other_kind = tables.kinds[ejected]
        hoped -= tables.tops[other_kind, 0]
        # No centre below this weight can make the move good enough.
        needed = least - weight - hoped
        value, centre = best_centre(tables, walk.rows, walk.columns, other_kind, 0, needed)
        if centre < 0:
            weight = NEVER
            break
        walk.rows[ejected], walk.columns[ejected] = unpacked(centre)
        weight += value
    if weight >= least:
        walk.weight[0] = weight
        return
    for i in range(count):
        walk.rows[moved[i, 0]], walk.columns[moved[i, 0]] = moved[i, 1], moved[i, 2]
