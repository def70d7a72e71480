"""Discs on square maps: their rows, and sums over all of them at once.

The disc of radius r around the cell (x, y) holds the cells (i, j) with (i - x)² + (j - y)² <= r².
Each of its rows is an interval, whose sum is one difference of that row's prefix sums. The sum over
the disc therefore costs one difference per row rather than one addition per cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdqn.jit import compiled


def disc_sums(maps: NDArray[np.floating], radii: ArrayLike) -> NDArray[np.float32]:
    """Sum every map over the disc around each of its cells, clipped to the map.

    Args:
        maps: float16 or float32[B, N, N].
        radii: integers[B], in cells, one for each map. A radius of 0 or less means "no disc", as at
            the end of an episode, and not a disc of one cell.

    Returns:
        float32[B, N, N]: at [b, x, y] the sum of map b over the disc of radius radii[b] around (x,
        y). Sums are accumulated in float64, and are zeros where radii[b] <= 0.

    Raises:
        ValueError: the arrays do not have these shapes, or the radii are not integers.
    """
    grids = np.ascontiguousarray(maps, dtype=np.float32)  # numba does not support float16
    discs = np.asarray(radii)
    if grids.ndim != 3 or grids.shape[1] != grids.shape[2]:
        raise ValueError(f"maps must be of shape [B, N, N], got {list(grids.shape)}")
    if discs.shape != grids.shape[:1] or discs.dtype.kind not in "iu":
        raise ValueError(
            f"radii must be {len(grids)} integers, one for each map, "
            f"got {discs.dtype}{list(discs.shape)}"
        )
    sums = np.empty_like(grids)
    _fill_disc_sums(grids, discs.astype(np.int64), sums)
    return sums


@compiled
def disc_widths(squared_radius):
    """Return int64[2 * r + 1], the extent of each row of cells within this distance.

    Extents are from the middle column; r is the whole part of the distance.
    """
    radius = int(np.sqrt(squared_radius))
    widths = np.empty(2 * radius + 1, np.int64)
    for row in range(2 * radius + 1):
        offset = row - radius
        # Exact: square roots of perfect squares are, and all others are far from an integer.
        widths[row] = int(np.sqrt(squared_radius - offset * offset))
    return widths


@compiled
def half_widths(radius):
    """Return int64[2 * radius + 1]: for each row, the disc's extent from its middle column."""
    return disc_widths(radius * radius)


@compiled
def padded_prefix_sums(grid, padding):
    """Return the running sums of every row, continued to both sides.

    The result is float64[N, N + 1 + 2 * padding]. Its element [i, padding + j] is the sum of the
    first j cells of row i: none for j < 0, all for j > N. The padding clips a disc to the map
    without a branch in ``disc_sums_of_row``.
    """
    size = grid.shape[0]
    prefixes = np.empty((size, size + 1 + 2 * padding), np.float64)
    for i in range(size):
        total = 0.0
        prefixes[i, : padding + 1] = 0.0
        for j in range(size):
            total += grid[i, j]
            prefixes[i, padding + 1 + j] = total
        prefixes[i, padding + 1 + size :] = total
    return prefixes


@compiled
def disc_sums_of_row(prefixes, padding, widths, x, sums):
    """Fill sums, float64[N], with the disc sums around the cells (x, 0), ..., (x, N - 1).

    Args:
        prefixes: the result of ``padded_prefix_sums`` for the map and this padding.
        padding: at least every half-width, or at least N.
        widths: the disc's ``half_widths``.
        x: the row of the centres.
        sums: float64[N], overwritten.
    """
    size = prefixes.shape[0]
    radius = len(widths) // 2
    sums[:] = 0.0
    for i in range(max(0, x - radius), min(size, x + radius + 1)):
        reach = min(widths[i - x + radius], padding)
        upper = prefixes[i, padding + 1 + reach :]
        lower = prefixes[i, padding - reach :]
        for y in range(size):
            sums[y] += upper[y] - lower[y]


@compiled
def _fill_disc_sums(grids, radii, sums):
    """Fill sums, float32[B, N, N], as documented in ``disc_sums``."""
    row_sums = np.empty(grids.shape[1], np.float64)
    for b in range(len(grids)):
        disc_sums_of_map(grids[b], radii[b], row_sums, sums[b])


@compiled
def disc_sums_of_map(grid, radius, row_sums, sums):
    """Fill sums, float32[N, N], with the disc sums of a map; zeros where the radius is below 1.

    Args:
        grid: float32[N, N].
        radius: in cells.
        row_sums: [N], overwritten; its dtype is that of the running sums. float32 takes half the
            time. Its error is that of a row's sum, so it hides what is small beside it.
        sums: overwritten.
    """
    size = len(grid)
    if radius <= 0:
        sums[:] = 0.0
        return
    reach = min(radius, 2 * size)  # a radius that already covers the whole map
    padding = min(reach, size)
    widths = half_widths(reach)
    prefixes = padded_prefix_sums(grid, padding).astype(row_sums.dtype)
    for x in range(size):
        disc_sums_of_row(prefixes, padding, widths, x, row_sums)
        sums[x] = row_sums
