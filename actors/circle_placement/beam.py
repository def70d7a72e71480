"""Beam search over placements, valued by greedy completions.

Each node of the beam is a placement of the first circles. It keeps, for each radius, the heaviest
blocks of centres that its circles leave free. All completions of a node walk down these lists; a
child takes over its parent's, without the blocks that the new circle closes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.completion import (
    BLOCKED,
    best_centre,
    best_of_block,
    loss_at,
    overwrite,
    state_of_block,
)
from actors.circle_placement.kernels import GOLDEN, mixed
from actors.circle_placement.tables import ABSENT, NEVER, Tables, sort_block, unpacked
from pdqn.jit import compiled

_CELLS_EACH = 16  # centres to choose from, for each one that is chosen


class Nodes(NamedTuple):
    """Placements of the same number of circles: W nodes, lists of at most L blocks."""

    rows: NDArray[np.int64]  # [W, K]
    columns: NDArray[np.int64]  # [W, K]
    weights: NDArray[np.float64]  # [W]: collected so far
    hashes: NDArray[np.uint64]  # [W]: equal for placements that hardly differ
    parents: NDArray[np.int64]  # [W]: indices among the nodes of one circle less
    lists: NDArray[np.int32]  # [W, D, L]: ranks of blocks, heaviest first
    lengths: NDArray[np.int64]  # [W, D]
    ends: NDArray[np.int64]  # [W, D]: the first rank that the list does not account for


class Children(NamedTuple):
    """Placements with one circle more than the nodes that they come from: C children."""

    parents: NDArray[np.int64]  # [C]
    centres: NDArray[np.int64]  # [C]: packed
    weights: NDArray[np.float64]  # [C]: collected so far
    completed: NDArray[np.float64]  # [C]: with the greedy completion
    hashes: NDArray[np.uint64]  # [C]


class Best(NamedTuple):
    """The best complete placement so far."""

    weight: NDArray[np.float64]  # [1]
    rows: NDArray[np.int64]  # [K]
    columns: NDArray[np.int64]  # [K]


def make_nodes(tables: Tables, width: int, list_length: int) -> Nodes:
    """Allocate nodes; the first one is the empty map."""
    circles, kinds = len(tables.radii), len(tables.kind_radii)
    shape = (width, kinds, list_length)
    nodes = Nodes(
        rows=np.full((width, circles), ABSENT, np.int64),
        columns=np.full((width, circles), ABSENT, np.int64),
        weights=np.zeros(width),
        hashes=np.zeros(width, np.uint64),
        parents=np.zeros(width, np.int64),
        lists=np.empty(shape, np.int32),
        lengths=np.zeros(shape[:2], np.int64),
        ends=np.zeros(shape[:2], np.int64),
    )
    fill_lists(tables, nodes, 0, 0)
    return nodes


def make_children(count: int) -> Children:
    """Allocate children."""
    return Children(
        np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count), np.empty(count),
        np.empty(count, np.uint64),
    )  # fmt: skip


@compiled(borrows=True)
def _first_kind(tables, circle):
    """Return the lowest kind of the circles from ``circle`` on, of which there is one."""
    first = tables.kinds[circle]
    for other in range(circle + 1, len(tables.kinds)):
        first = min(first, tables.kinds[other])
    return first


@compiled(borrows=True)
def fill_lists(tables, nodes, node, circle):
    """Fill the lists of a node up for the circles from ``circle`` on."""
    rows, columns = nodes.rows[node], nodes.columns[node]
    for kind in range(_first_kind(tables, circle), len(tables.kind_radii)):
        listed, blocks = nodes.lists[node, kind], tables.blocks[kind]
        count, rank = nodes.lengths[node, kind], nodes.ends[node, kind]
        while count < len(listed) and rank < tables.lengths[kind]:
            state = state_of_block(tables, rows, columns, kind, blocks[rank], 0, circle)
            if state != BLOCKED:
                listed[count] = rank
                count += 1
            rank += 1
        nodes.lengths[node, kind], nodes.ends[node, kind] = count, rank


@compiled(borrows=True)
def complete_from_lists(tables, nodes, node, known, rows, columns, start):
    """Place the circles from ``start`` on greedily, in place; return the weight that they add.

    Args:
        tables: ``Tables``.
        nodes: ``Nodes``.
        node: index of the node that the placement goes on from.
        known: circles of that node, which its lists account for.
        rows: int64[K], with ``columns`` the placement; changed in place.
        columns: int64[K].
        start: the first circle to place.
    """
    added = 0.0
    for circle in range(start, len(rows)):
        kind = tables.kinds[circle]
        listed, blocks, tops = nodes.lists[node, kind], tables.blocks[kind], tables.tops[kind]
        best, centre, is_over = -1.0, np.int64(-1), False
        for i in range(nodes.lengths[node, kind]):
            rank = listed[i]
            if tops[rank] < best:
                is_over = True
                break
            state = state_of_block(tables, rows, columns, kind, blocks[rank], known, circle)
            if state != BLOCKED:
                best, centre = best_of_block(tables, rows, columns, kind, rank, best, centre)
        if not is_over:
            further = best_centre(tables, rows, columns, kind, nodes.ends[node, kind], best)
            if further[0] > best:
                best, centre = further
        if centre < 0:
            break
        rows[circle], columns[circle] = unpacked(centre)
        added += best
    return added


@compiled
def candidates(tables, nodes, node, circle, spacing, chosen):
    """Choose heavy centres of a node's next circle that keep their distance; return their number.

    Args:
        tables: ``Tables``.
        nodes: ``Nodes``.
        node: index of the node.
        circle: the circle to place.
        spacing: squared distance that chosen centres exceed; -1 chooses all.
        chosen: int64[M], overwritten: packed centres, exact greedy's first.
    """
    rows, columns, kind = nodes.rows[node], nodes.columns[node], tables.kinds[circle]
    room = _CELLS_EACH * len(chosen)
    centres, values = np.empty(room, np.int64), np.empty(room)
    count = 0
    for rank in nodes.lists[node, kind, : nodes.lengths[node, kind]]:
        if count == room:
            break
        sort_block(tables, kind, rank)
        block_centres, block_values = tables.centres[kind, rank], tables.values[kind, rank]
        for i in range(len(block_values)):
            if block_values[i] == NEVER or count == room:
                break
            x, y = unpacked(block_centres[i])
            loss = loss_at(tables, rows, columns, kind, x, y, 0, circle)
            if loss >= 0.0:
                centres[count], values[count] = block_centres[i], loss - block_values[i]
                count += 1
    chosen[0] = best_centre(tables, rows, columns, kind, 0, 0.0)[1]
    found = 0 if chosen[0] < 0 else 1
    for i in np.argsort(values[:count], kind="mergesort"):
        if found == len(chosen) or found == 0:
            break
        if _is_apart(chosen, found, centres[i], spacing):
            chosen[found] = centres[i]
            found += 1
    return found


@compiled(borrows=True)
def _is_apart(chosen, found, centre, spacing):
    """Return whether a centre is further than ``spacing``, squared, from all chosen ones."""
    x, y = unpacked(centre)
    for other in range(found):
        other_x, other_y = unpacked(chosen[other])
        if (other_x - x) ** 2 + (other_y - y) ** 2 <= spacing:
            return False
    return True


@compiled
def expand(tables, nodes, live, circle, breadth, spacing, coarse, children, best):
    """Value the children of all nodes by their completions; return the number of children.

    Args:
        tables: ``Tables``.
        nodes: ``Nodes``.
        live: number of nodes.
        circle: the circle to place.
        breadth: children of a node.
        spacing: squared distance that their centres exceed.
        coarse: side in cells of the squares within which centres count as the same.
        children: ``Children``, overwritten.
        best: ``Best``, improved in place.
    """
    count = 0
    chosen = np.empty(breadth, np.int64)
    for node in range(live):
        found = candidates(tables, nodes, node, circle, spacing, chosen)
        value_children(tables, nodes, node, circle, chosen[:found], coarse, children, count, best)
        count += found
    return count


@compiled(borrows=True)
def value_children(tables, nodes, node, circle, chosen, coarse, children, first, best):
    """Value the children of one node by their completions.

    Args:
        tables: ``Tables``.
        nodes: ``Nodes``.
        node: index of the node.
        circle: the circle to place.
        chosen: int64[C], its packed centres, all valid.
        coarse: side in cells of the squares within which centres count as the same.
        children: ``Children``, overwritten from index ``first`` on.
        first: see ``children``.
        best: ``Best``, improved in place.
    """
    kind, rows, columns = tables.kinds[circle], nodes.rows[node], nodes.columns[node]
    for i in range(len(chosen)):
        x, y = unpacked(chosen[i])
        loss = loss_at(tables, rows, columns, kind, x, y, 0, circle)
        weight = nodes.weights[node] + tables.sums[kind, x, y] - loss
        rows[circle], columns[circle] = x, y
        completed = weight + complete_from_lists(
            tables, nodes, node, circle, rows, columns, circle + 1
        )
        if completed > best.weight[0]:
            best.weight[0] = completed
            overwrite(best.rows, rows)
            overwrite(best.columns, columns)
        rows[circle:] = ABSENT
        columns[circle:] = ABSENT
        child = first + i
        children.parents[child], children.centres[child] = node, chosen[i]
        children.weights[child], children.completed[child] = weight, completed
        place = (np.uint64(kind) << np.uint64(32)) + np.uint64(x // coarse * 65536 + y // coarse)
        children.hashes[child] = nodes.hashes[node] + mixed(place + GOLDEN)


@compiled
def advance(tables, nodes, following, circle, children, count, width):
    """Make nodes of the best children that differ; return their number.

    Args:
        tables: ``Tables``.
        nodes: ``Nodes``, the children's parents.
        following: ``Nodes``, overwritten.
        circle: the circle that the children have placed.
        children: ``Children``.
        count: number of children.
        width: number of nodes at most.
    """
    live = 0
    for child in np.argsort(-children.completed[:count], kind="mergesort"):
        if live == width:
            break
        is_new = True
        for other in range(live):
            if following.hashes[other] == children.hashes[child]:
                is_new = False
                break
        if is_new:
            following.hashes[live] = children.hashes[child]
            following.weights[live] = children.weights[child]
            parent = children.parents[child]
            following.parents[live] = parent
            _place(tables, nodes, parent, following, live, circle, children.centres[child])
            live += 1
    return live


@compiled(borrows=True)
def _place(tables, nodes, node, following, target, circle, centre):
    """Copy a node with one circle more, and shorten its lists by what that circle blocks."""
    rows, columns = following.rows[target], following.columns[target]
    overwrite(rows, nodes.rows[node])
    overwrite(columns, nodes.columns[node])
    rows[circle], columns[circle] = unpacked(centre)
    if circle + 1 == len(rows):
        return
    for kind in range(_first_kind(tables, circle + 1), len(tables.kind_radii)):
        kept, blocks = following.lists[target, kind], tables.blocks[kind]
        count = 0
        for rank in nodes.lists[node, kind, : nodes.lengths[node, kind]]:
            block = blocks[rank]
            if state_of_block(tables, rows, columns, kind, block, circle, circle + 1) != BLOCKED:
                kept[count] = rank
                count += 1
        following.lengths[target, kind] = count
        following.ends[target, kind] = nodes.ends[node, kind]
    fill_lists(tables, following, target, circle + 1)
