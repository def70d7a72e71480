"""Tables of one map for searches: static disc sums, and the centres of each radius in order.

Circles that do not overlap share no cell, except for the one in which two discs may touch. A
placement therefore collects the sum of its disc sums on the empty map, less such cells. The tables
hold these sums, so searches never touch the map again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors.circle_placement.problem import Instance, Problem
from pdqn.discs import disc_widths
from pdqn.jit import compiled

ABSENT = -(10**6)  # coordinate of a circle that is not placed, so far away that none overlaps it
NEVER = -1e300  # disc sum of a centre that is not allowed
LARGEST_SIDE = 1 << 15
_COLUMN_BITS, _COLUMN = 16, 0xFFFF


class Tables(NamedTuple):
    """One map of H x W cells with K circles of D different radii, as kernels take it.

    A centre is packed into an int32: row * 65,536 + column. Centres form square blocks, B for a
    radius, of S cells. Walks in search of the heaviest free centre pass over whole blocks. They
    look into few of them, so that a block's centres are sorted when they are first needed.
    """

    weights: NDArray[np.float64]  # [H, W]: 0 in cells that no circle may cover
    radii: NDArray[np.int64]  # [K]: in cells, in the order of placement
    kinds: NDArray[np.int64]  # [K]: index of a circle's radius among the different ones
    kind_radii: NDArray[np.int64]  # [D]: largest first
    sums: NDArray[np.float64]  # [D, H, W]: disc sums; NEVER where the centre is not allowed
    blocks: NDArray[np.int32]  # [D, B]: packed first cells, by the heaviest centre of the block
    tops: NDArray[np.float64]  # [D, B]: largest disc sum of a block; NEVER after the last
    centres: NDArray[np.int32]  # [D, B, S]: see ``sort_block``
    values: NDArray[np.float64]  # [D, B, S]: see ``sort_block``
    are_sorted: NDArray[np.bool_]  # [D, B]: blocks whose centres and values are there
    lengths: NDArray[np.int64]  # [D]: blocks with an allowed centre
    apart: NDArray[np.int64]  # [D, K]: least squared distance between centres
    side: int  # of a block, in cells
    heaviest: float  # weight of a single cell
    total: float  # weight of the whole map, to which shares refer


def make_tables(
    weights: ArrayLike,
    radii: ArrayLike,
    *,
    allowed: Mapping[int, NDArray[np.bool_]] | None = None,
    placed: ArrayLike = (),
    gap: float = 0.0,
    spare: Tables | None = None,
) -> Tables:
    """Make the tables of a map.

    Args:
        weights: numbers [H, W], none negative. No circle may cover a NaN.
        radii: whole numbers [K], at least 1, in the order of placement.
        allowed: bool[H, W] by radius, True where a circle of that radius may have its centre. It
            adds to the rules that no circle leaves the map or covers a NaN.
        placed: whole numbers [P, 3], row, column and radius of circles that are there already. What
            they cover is collected, and counts towards the total only.
        gap: least distance in cells between the rims of two circles, 0 or more.
        spare: tables that nobody needs any more. Their memory is used again where it is of the
            right size: fresh pages take longer than the tables.

    Raises:
        ValueError: an argument breaks these rules.
    """
    grid, circles, existing = _checked(weights, radii, placed, gap)
    blocked = ~np.isfinite(grid)
    grid[blocked] = 0.0
    total = float(grid.sum())
    for row, column, radius in existing.tolist():
        _clear(grid, row, column, radius)
    tables = _empty_tables(grid, circles, total, gap, spare)
    is_any_blocked = bool(blocked.any())
    for d, radius in enumerate(tables.kind_radii.tolist()):
        sums = tables.sums[d]
        fill_disc_sums(grid, radius * radius, radius, sums)
        if allowed is not None and radius in allowed:
            sums[~allowed[radius]] = NEVER
        if is_any_blocked:
            sums[~_free(blocked, radius)] = NEVER
        for row, column, other in existing.tolist():
            _forbid(sums, row, column, least_squared(radius, other, gap))
    tops = np.empty_like(tables.tops)
    _fill_tops(tables, tops)
    _order_blocks(tables, tops, _nearly_in_order(tops))
    return tables


def tables_of(
    problem: Problem, seed: int, instance: Instance | None = None, spare: Tables | None = None
) -> Tables:
    """Make the tables of a problem's map.

    Args:
        problem: one in which circles may not overlap.
        seed: seed of the map.
        instance: that map and its circles, if they are known; None generates them.
        spare: see ``make_tables``.
    """
    instance, fits = instance or problem.instance(seed), problem.fits_of(seed)
    radii = instance.radii[: instance.num_circles]
    allowed = {int(radius): fits >= radius for radius in radii} if len(fits) else None
    gap = float(problem.spacing)
    return make_tables(instance.weights, radii, allowed=allowed, gap=gap, spare=spare)


def _empty_tables(
    grid: NDArray[np.float64],
    circles: NDArray[np.int64],
    total: float,
    gap: float,
    spare: Tables | None,
) -> Tables:
    """Allocate the tables of a map."""
    ascending, kinds = np.unique(-circles, return_inverse=True)
    kind_radii = -ascending
    count = len(kind_radii)
    # Large blocks are passed over in fewer steps; small ones lie closer to the rims of circles.
    side = _side_of_blocks(max(grid.shape))
    num_blocks = -(-grid.shape[0] // side) * -(-grid.shape[1] // side)
    apart = [[least_squared(a, b, gap) for b in circles.tolist()] for a in kind_radii.tolist()]
    if spare is None or spare.sums.shape != (count, *grid.shape):
        sums = np.empty((count, *grid.shape))
        centres = np.empty((count, num_blocks, side * side), np.int32)
        values = np.empty((count, num_blocks, side * side))
    else:
        sums, centres, values = spare.sums, spare.centres, spare.values
    return Tables(
        weights=grid,
        radii=circles,
        kinds=kinds.reshape(-1).astype(np.int64),
        kind_radii=kind_radii,
        sums=sums,
        blocks=np.zeros((count, num_blocks), np.int32),
        tops=np.full((count, num_blocks), NEVER),
        centres=centres,
        values=values,
        are_sorted=np.zeros((count, num_blocks), np.bool_),
        lengths=np.zeros(count, np.int64),
        apart=np.array(apart, np.int64).reshape(count, len(circles)),
        side=side,
        heaviest=float(grid.max()),
        total=total or 1.0,
    )


def least_squared(radius: int, other: int, gap: float) -> int:
    """Return the least squared distance between the centres of two circles."""
    apart = radius + other + gap
    return int(np.ceil(apart * apart - 1e-9))


def _side_of_blocks(map_side: int) -> int:
    """Return the side of blocks on a map, in cells."""
    return 2 if map_side < 96 else 4 if map_side < 384 else 8


@compiled(borrows=True)
def packed(x, y):
    """Return a centre of this row and column as one number."""
    return (x << _COLUMN_BITS) | y


@compiled(borrows=True)
def unpacked(centre):
    """Return row and column of a packed centre."""
    return np.int64(centre) >> _COLUMN_BITS, np.int64(centre) & _COLUMN


@compiled
def fill_disc_sums(grid, squared_radius, margin, sums):
    """Fill sums, float64[H, W], with disc sums of grid, float64[H, W].

    Args:
        grid: the map.
        squared_radius: cells up to this squared distance belong to a disc.
        margin: distance in cells that a centre keeps from the edge, at least the radius; centres
            nearer to it become NEVER.
        sums: overwritten.
    """
    height, width = grid.shape
    widths = disc_widths(squared_radius)
    radius = len(widths) // 2
    count = width - 2 * margin
    sums[:] = NEVER
    if count <= 0:
        return
    prefixes = np.zeros((height, width + 1))
    for i in range(height):
        total = 0.0
        for j in range(width):
            total += grid[i, j]
            prefixes[i, j + 1] = total
    for x in range(margin, height - margin):
        row = sums[x, margin : margin + count]
        row[:] = 0.0
        for offset in range(-radius, radius + 1):
            reach = widths[offset + radius]
            upper = prefixes[x + offset, margin + reach + 1 :]
            lower = prefixes[x + offset, margin - reach :]
            for y in range(count):
                row[y] += upper[y] - lower[y]


@compiled(borrows=True)
def _fill_tops(tables, tops):
    """Fill tops, float64[D, B], with the largest disc sums of blocks, in the order of the map."""
    height, width = tables.weights.shape
    for kind in range(len(tops)):
        number = 0
        for x in range(0, height, tables.side):
            for y in range(0, width, tables.side):
                top = NEVER
                for i in range(x, min(height, x + tables.side)):
                    for j in range(y, min(width, y + tables.side)):
                        top = max(top, tables.sums[kind, i, j])
                tops[kind, number] = top
                number += 1


def _nearly_in_order(tops: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the numbers of blocks, int64[D, B], heaviest first but for the last bits of tops.

    Numpy sorts whole numbers in a fraction of the time that it takes to sort by other numbers. Here
    a block's number takes the place of its top's last bits.
    """
    last_bits = (1 << int(tops.shape[1]).bit_length()) - 1
    keys = ~np.maximum(tops, 0.0).view(np.int64) & np.iinfo(np.int64).max
    keys[tops == NEVER] = np.iinfo(np.int64).max
    keys &= ~last_bits
    keys |= np.arange(tops.shape[1])
    keys.sort(axis=1)
    return keys & last_bits


@compiled(borrows=True)
def _order_blocks(tables, tops, numbers):
    """Fill blocks, tops and lengths of tables, heaviest blocks first, lowest among equals.

    Args:
        tables: ``Tables``.
        tops: float64[D, B], of blocks in the order of the map.
        numbers: int64[D, B], of blocks in nearly the right order.
    """
    in_row = -(-tables.weights.shape[1] // tables.side)
    for kind in range(len(tops)):
        count = 0
        for rank in range(numbers.shape[1]):
            number = numbers[kind, rank]
            top = tops[kind, number]
            if top == NEVER:
                continue
            at = count
            while at > 0 and tables.tops[kind, at - 1] < top:
                tables.tops[kind, at] = tables.tops[kind, at - 1]
                tables.blocks[kind, at] = tables.blocks[kind, at - 1]
                at -= 1
            row, column = number // in_row, number % in_row
            tables.tops[kind, at] = top
            tables.blocks[kind, at] = packed(row * tables.side, column * tables.side)
            count += 1
        tables.lengths[kind] = count


@compiled(borrows=True)
def sort_block(tables, kind, rank):
    """Fill a block's centres and values, heaviest first, unless that has been done.

    Centres are packed, the lowest first among equals; values are NEVER after the last.

    Args:
        tables: ``Tables``, changed in place.
        kind: index of the radius.
        rank: the block's place in the order.
    """
    if not tables.are_sorted[kind, rank]:
        tables.are_sorted[kind, rank] = True
        centres, values = tables.centres[kind, rank], tables.values[kind, rank]
        _sort_block(tables.sums[kind], tables.side, tables.blocks[kind, rank], centres, values)


@compiled(borrows=True)
def _sort_block(sums, side, block, centres, values):
    """Fill one block's centres, int32[S], and their sums, heaviest first."""
    first_x, first_y = unpacked(block)
    count = 0
    for x in range(first_x, min(sums.shape[0], first_x + side)):
        for y in range(first_y, min(sums.shape[1], first_y + side)):
            value = sums[x, y]
            if value == NEVER:
                continue
            at = count
            while at > 0 and values[at - 1] < value:
                values[at], centres[at] = values[at - 1], centres[at - 1]
                at -= 1
            values[at], centres[at] = value, packed(x, y)
            count += 1
    centres[count:], values[count:] = 0, NEVER


def _checked(
    weights: ArrayLike, radii: ArrayLike, placed: ArrayLike, gap: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Check the arguments of ``make_tables``, and return copies of the arrays."""
    grid = np.array(weights, np.float64)
    if grid.ndim != 2 or not 1 <= min(grid.shape) <= max(grid.shape) < LARGEST_SIDE:
        raise ValueError(
            f"weights of shape {list(grid.shape)}: expected [H, W] below {LARGEST_SIDE} cells"
        )
    if (grid < 0).any() or np.isinf(grid).any():
        raise ValueError("weights: expected numbers that are neither negative nor infinite")
    circles = np.atleast_1d(np.asarray(radii))
    if circles.ndim != 1 or circles.dtype.kind not in "iu" or (circles < 1).any():
        raise ValueError(f"radii={radii!r:.80}: expected whole numbers >= 1")
    if not 0.0 <= gap < np.inf:
        raise ValueError(f"gap={gap!r}: expected a number >= 0")
    existing = np.asarray(placed, np.int64).reshape(-1, 3)
    return grid, circles.astype(np.int64), existing


def _disc(
    shape: tuple[int, ...], row: int, column: int, squared: int
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return the part of a map that may be within a distance of a cell, and which of it is."""
    reach = int(np.sqrt(squared))
    rows = slice(max(0, row - reach), max(0, min(shape[0], row + reach + 1)))
    columns = slice(max(0, column - reach), max(0, min(shape[1], column + reach + 1)))
    i, j = np.ogrid[rows, columns]
    return (rows, columns), (i - row) ** 2 + (j - column) ** 2 <= squared


def _clear(grid: NDArray[np.float64], row: int, column: int, radius: int) -> None:
    """Zero a disc, clipped to the map."""
    part, within = _disc(grid.shape, row, column, radius * radius)
    grid[part][within] = 0.0


def _forbid(sums: NDArray[np.float64], row: int, column: int, least: int) -> None:
    """Forbid the centres that are nearer to a cell than the root of ``least``."""
    part, within = _disc(sums.shape, row, column, least - 1)
    sums[part][within] = NEVER


def _free(blocked: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the centres, bool[H, W], around which a disc covers no blocked cell."""
    sums = np.empty(blocked.shape)
    fill_disc_sums(blocked.astype(np.float64), radius * radius, radius, sums)
    return sums == 0.0
