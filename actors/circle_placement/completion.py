"""Greedy completions of placements, on the tables of a map.

A placement is a pair of arrays, rows and columns of all K circles; circles that are not placed are
at ``ABSENT``. A completion places the following circles as exact greedy does, each at the heaviest
centre that is left. It stops where a circle has none, as the environment does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.tables import ABSENT, NEVER, Tables, sort_block, unpacked
from pdqn.jit import compiled

FREE, PARTLY, BLOCKED = 0, 1, 2


def greedy(tables: Tables) -> tuple[float, NDArray[np.int64]]:
    """Return exact greedy's weight on a map, and its centres, int64[placed, 2]."""
    rows, columns = absent(tables), absent(tables)
    weight = complete(tables, rows, columns, 0)
    return weight, centres_of(rows, columns)


def absent(tables: Tables) -> NDArray[np.int64]:
    """Return int64[K], coordinates of circles of which none is placed."""
    return np.full(len(tables.radii), ABSENT, np.int64)


def centres_of(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the centres that the environment can take in order, int64[placed, 2]."""
    missing = np.flatnonzero(rows == ABSENT)
    placed = int(missing[0]) if len(missing) else len(rows)
    return np.stack([rows[:placed], columns[:placed]], axis=1)


@compiled(borrows=True)
def overwrite(target, source):
    """Copy an array [n] into another; an assignment of slices would make an array between them."""
    for i in range(len(target)):
        target[i] = source[i]


@compiled(borrows=True)
def loss_at(tables, rows, columns, kind, x, y, first, end):
    """Return the weight of cells that a circle shares by touching others; -1 if it is invalid.

    Args:
        tables: ``Tables``.
        rows: int64[K], with ``columns`` the placement.
        columns: int64[K].
        kind: index of the circle's radius.
        x: row of its centre.
        y: column of its centre.
        first: the first circle to compare with, up to ``end`` - 1.
        end: see ``first``. The circle itself must be absent, or not among them.
    """
    apart, radius = tables.apart[kind], tables.kind_radii[kind]
    radii, weights = tables.radii, tables.weights
    loss = 0.0
    for other in range(first, end):
        dx, dy = rows[other] - x, columns[other] - y
        squared = dx * dx + dy * dy
        if squared <= apart[other]:
            if squared < apart[other]:
                return -1.0
            both = radius + radii[other]
            if _share_a_cell(dx, dy, radius, both):
                loss += weights[x + dx * radius // both, y + dy * radius // both]
    return loss


@compiled(borrows=True)
def _share_a_cell(dx, dy, radius, both):
    """Return whether two discs touch in the middle of a cell.

    Args:
        dx: rows from the centre of the first to that of the second.
        dy: columns from the one to the other.
        radius: of the first disc.
        both: sum of both radii.
    """
    return dx * dx + dy * dy == both * both and dx * radius % both == 0 and dy * radius % both == 0


@compiled(borrows=True)
def state_of_block(tables, rows, columns, kind, block, first, end):
    """Return whether circles leave a block of centres FREE, or PARTLY so, or have BLOCKED it.

    Args:
        tables: ``Tables``.
        rows: int64[K], with ``columns`` the placement.
        columns: int64[K].
        kind: index of the radius of the circle to place.
        block: the block's packed first cell.
        first: the first circle to compare with, up to ``end`` - 1.
        end: see ``first``.
    """
    apart, last = tables.apart[kind], tables.side - 1
    x, y = unpacked(block)
    state = FREE
    for other in range(first, end):
        dx, dy = rows[other] - x, columns[other] - y
        far_x, far_y = max(dx, last - dx), max(dy, last - dy)
        if far_x * far_x + far_y * far_y < apart[other]:
            return BLOCKED
        near_x, near_y = max(0, dx - last, -dx), max(0, dy - last, -dy)
        if near_x * near_x + near_y * near_y <= apart[other]:
            state = PARTLY
    return state


@compiled(borrows=True)
def best_of_block(tables, rows, columns, kind, rank, best, centre):
    """Return the better of (best, centre) and the heaviest free centre of a block.

    Args:
        tables: ``Tables``.
        rows: int64[K], with ``columns`` the placement, in which the circle is absent.
        columns: int64[K].
        kind: index of the circle's radius.
        rank: the block's place in the order.
        best: weight of the best centre so far.
        centre: that centre, packed; -1 for none.
    """
    sort_block(tables, kind, rank)
    centres, values = tables.centres[kind, rank], tables.values[kind, rank]
    for i in range(len(values)):
        value = values[i]
        if value < best or value == NEVER or (value == best and centres[i] > centre):
            break
        x, y = unpacked(centres[i])
        loss = loss_at(tables, rows, columns, kind, x, y, 0, len(rows))
        if loss < 0.0:
            continue
        value -= loss
        if value > best or (value == best and centres[i] < centre):
            best, centre = value, np.int64(centres[i])
    return best, centre


@compiled(borrows=True)
def best_centre(tables, rows, columns, kind, start, needed):
    """Find exact greedy's centre of a circle beside all that are placed.

    Args:
        tables: ``Tables``.
        rows: int64[K], with ``columns`` the placement, in which the circle is absent.
        columns: int64[K].
        kind: index of its radius.
        start: rank of the first block to look into.
        needed: weight below which no centre is wanted.

    Returns:
        The weight and the packed centre; (-1, -1) without such a centre.
    """
    best, centre = -1.0, np.int64(-1)
    blocks, tops = tables.blocks[kind], tables.tops[kind]
    for rank in range(start, tables.lengths[kind]):
        top = tops[rank]
        if top < best or top < needed:
            break
        state = state_of_block(tables, rows, columns, kind, blocks[rank], 0, len(rows))
        if state == BLOCKED:
            continue
        if state == FREE:
            sort_block(tables, kind, rank)
            first = np.int64(tables.centres[kind, rank, 0])
            if top > best or (top == best and first < centre):
                best, centre = top, first
        else:
            best, centre = best_of_block(tables, rows, columns, kind, rank, best, centre)
    return best, centre


@compiled(borrows=True)
def complete(tables, rows, columns, start):
    """Place the circles from ``start`` on greedily, in place; return the weight that they add."""
    added = 0.0
    for circle in range(start, len(rows)):
        value, centre = best_centre(tables, rows, columns, tables.kinds[circle], 0, 0.0)
        if centre < 0:
            break
        rows[circle], columns[circle] = unpacked(centre)
        added += value
    return added


@compiled(borrows=True)
def weight_of(tables, rows, columns):
    """Return the weight that a placement collects; -1 if it is invalid."""
    weight = 0.0
    for circle in range(len(rows)):
        if rows[circle] == ABSENT:
            continue
        kind, x, y = tables.kinds[circle], rows[circle], columns[circle]
        loss = loss_at(tables, rows, columns, kind, x, y, 0, circle)
        if loss < 0.0 or tables.sums[kind, x, y] == NEVER:
            return -1.0
        weight += tables.sums[kind, x, y] - loss
    return weight
