"""The dual bound: coverage that no placement without overlaps can exceed.

Open discs of a valid placement share no cell. Let every cell have a price of 0 or more, which a
circle pays for each cell of its open disc. All circles together then pay at most the sum of all
prices, wherever they are. So no placement collects more than that sum, plus for each circle the
largest difference of disc sum and price. This holds for any prices. They are lowered along the
gradient of that value, smoothed over the best centres of each circle.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.tables import NEVER, Tables, fill_disc_sums
from pdqn.discs import disc_widths
from pdqn.jit import compiled

_ITERATIONS = 800
_SMOOTHING = (3e-4, 1e-5)  # first and last, as shares of the map's weight
_STEP, _SHORTER, _PATIENCE = 0.5, 0.7, 20  # the step falls after iterations without success
_MOMENTUM = 0.7
_WITHIN = 6.0  # smoothing lengths below the best centre, up to which others count
_SUCCESS = 1e-7


class Descent(NamedTuple):
    """Prices of H x W cells and the arrays that lower them; weights are shares of the map's."""

    prices: NDArray[np.float64]  # [H, W]
    best_prices: NDArray[np.float64]  # [H, W]
    velocity: NDArray[np.float64]  # [H, W]
    usage: NDArray[np.float64]  # [H, W + 1]: by how many open discs a cell is used, as differences
    prefixes: NDArray[np.float32]  # [H, W + 1]: running sums of the rows of prices
    margins: NDArray[np.float32]  # [H, W]: disc sum less price of each centre of one radius
    sums: NDArray[np.float32]  # [D, H, W]: disc sums of the map
    counts: NDArray[np.int64]  # [D]: circles of each radius


def dual_bound(tables: Tables, known: float, iterations: int = _ITERATIONS) -> float:
    """Compute a coverage that no placement without overlaps exceeds.

    Args:
        tables: tables of the map.
        known: coverage of the best known placement, which guides the steps; any value is safe.
        iterations: number of steps; more of them lower the bound.

    Returns:
        The bound, as a share of the map's weight, at least the coverage of every valid placement.
        It is never above the weight of the heaviest cells, as many as all discs have together.
    """
    if len(tables.radii) == 0:
        return 0.0
    descent = _begin(tables)
    _descend(tables.kind_radii, descent, iterations, known)
    # Open discs of radius 1 are single cells, so prices say little where such circles prevail.
    heaviest = _heaviest(tables, np.square(tables.radii))
    return min(_value(tables, descent), float(heaviest.sum()) / tables.total)


def _begin(tables: Tables) -> Descent:
    """Start with prices whose bound is that of the heaviest cells."""
    shape = height, width = tables.weights.shape
    heaviest = _heaviest(tables, np.square(tables.radii) - 1)
    least = float(heaviest.min()) if heaviest.size < tables.weights.size else 0.0
    prices = np.maximum(tables.weights - least, 0.0) / tables.total
    return Descent(
        prices=prices,
        best_prices=prices.copy(),
        velocity=np.zeros(shape),
        usage=np.zeros((height, width + 1)),
        prefixes=np.zeros((height, width + 1), np.float32),
        margins=np.zeros(shape, np.float32),
        sums=np.maximum(tables.sums / tables.total, -1e30).astype(np.float32),
        counts=np.bincount(tables.kinds, minlength=len(tables.kind_radii)),
    )


def _heaviest(tables: Tables, squared_radii: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the heaviest cells, as many as discs of these squared radii have together."""
    cells = sum(int((2 * disc_widths(squared) + 1).sum()) for squared in squared_radii.tolist())
    flat = tables.weights.ravel()
    if cells >= flat.size:
        return flat
    return np.partition(flat, flat.size - cells)[flat.size - cells :]


def _value(tables: Tables, descent: Descent) -> float:
    """Return the bound of the best prices, in double precision."""
    prices = descent.best_prices
    bound = float(prices.sum())
    costs = np.empty_like(prices)
    for kind, radius in enumerate(tables.kind_radii.tolist()):
        fill_disc_sums(prices, radius * radius - 1, radius, costs)
        is_allowed = tables.sums[kind] > NEVER
        if is_allowed.any():
            margins = tables.sums[kind][is_allowed] / tables.total - costs[is_allowed]
            # A circle may also remain without a place.
            bound += int(descent.counts[kind]) * max(0.0, float(margins.max()))
    return bound


@compiled
def _descend(radii, descent, iterations, known):
    """Lower the prices, and keep the best ones.

    Args:
        radii: int64[D], in cells.
        descent: ``Descent``, changed in place.
        iterations: number of steps at most.
        known: coverage of a placement; steps aim at it (Polyak).
    """
    best, step, failures = np.inf, _STEP, 0
    for iteration in range(iterations):
        first, last = _SMOOTHING
        smoothing = first * (last / first) ** (iteration / iterations)
        value = _sum_rows(descent.prices, descent.prefixes)
        descent.usage[:] = 0.0
        for kind in range(len(radii)):
            top = _fill_margins(descent, kind, radii[kind])
            if top > 0.0:
                value += descent.counts[kind] * top
                _use_cells(descent, kind, radii[kind], top, smoothing)
        if value < best - _SUCCESS:
            best, failures = value, 0
            descent.best_prices[:] = descent.prices
        else:
            failures += 1
            if failures == _PATIENCE:
                step, failures = step * _SHORTER, 0
        squared = _accelerate(descent)
        if squared < 1e-12 or value <= known:
            break
        _lower(descent, step * (value - known) / squared)


@compiled
def _sum_rows(grid, prefixes):
    """Fill prefixes, [H, W + 1], with the running sums of rows; return the sum of all."""
    height, width = grid.shape
    whole = 0.0
    for x in range(height):
        total = 0.0
        for y in range(width):
            total += grid[x, y]
            prefixes[x, y + 1] = total
        whole += total
    return whole


@compiled(reassociates=True)
def _fill_margins(descent, kind, radius):
    """Fill the margins of the centres of a radius; return the largest."""
    height, width = descent.margins.shape
    widths = disc_widths(radius * radius - 1)
    reach, count = len(widths) // 2, width - 2 * radius
    top = np.float32(-1e30)
    for x in range(radius, height - radius):
        row = descent.margins[x, radius : radius + count]
        row[:] = descent.sums[kind, x, radius : radius + count]
        for offset in range(-reach, reach + 1):
            half = widths[offset + reach]
            upper = descent.prefixes[x + offset, radius + half + 1 :]
            lower = descent.prefixes[x + offset, radius - half :]
            for y in range(count):
                row[y] -= upper[y] - lower[y]
        for y in range(count):
            top = max(top, row[y])
    return top


@compiled
def _use_cells(descent, kind, radius, top, smoothing):
    """Count the cells that the circles of a radius use, shared among their best centres."""
    height, width = descent.margins.shape
    widths = disc_widths(radius * radius - 1)
    reach, least = len(widths) // 2, top - _WITHIN * smoothing
    total = 0.0
    for x in range(radius, height - radius):
        for y in range(radius, width - radius):
            if descent.margins[x, y] > least:
                total += np.exp((descent.margins[x, y] - top) / smoothing)
    for x in range(radius, height - radius):
        for y in range(radius, width - radius):
            if descent.margins[x, y] > least:
                share = np.exp((descent.margins[x, y] - top) / smoothing)
                share *= descent.counts[kind] / total
                for offset in range(-reach, reach + 1):
                    half = widths[offset + reach]
                    descent.usage[x + offset, y - half] += share
                    descent.usage[x + offset, y + half + 1] -= share


@compiled
def _accelerate(descent):
    """Add the gradient to the velocity; return the squared length of the velocity."""
    height, width = descent.prices.shape
    squared = 0.0
    for x in range(height):
        used = 0.0
        for y in range(width):
            used += descent.usage[x, y]
            gradient = 1.0 - used
            is_free = descent.prices[x, y] <= 0.0
            if is_free and gradient > 0.0:
                gradient = 0.0
            speed = gradient + _MOMENTUM * descent.velocity[x, y]
            if is_free and speed > 0.0:
                speed = 0.0
            descent.velocity[x, y] = speed
            squared += speed * speed
    return squared


@compiled
def _lower(descent, step):
    """Move the prices against the velocity, and keep them at 0 or above."""
    height, width = descent.prices.shape
    for x in range(height):
        for y in range(width):
            price = descent.prices[x, y] - step * descent.velocity[x, y]
            descent.prices[x, y] = max(price, 0.0)
