"""Baselines of circle placement: random, exact greedy, and an upper bound.

All three are functions of the problem and the seed alone: every policy can be compared with them on
the same maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement import kernels
from actors.circle_placement.kernels import POLICY_STREAM, below, drawn, seeded
from actors.circle_placement.problem import Instance, Problem
from pdqn.discs import disc_sums_of_row, half_widths, padded_prefix_sums
from pdqn.jit import compiled


def baselines(problem: Problem, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Compute the coverage of the three baselines, as a share of each map's weight.

    Args:
        problem: the settings.
        seeds: seeds of the maps, as given to an environment's ``reset``.

    Returns:
        float64[len(seeds)] for each of: ``random``, uniform over the valid centres;
        ``exact_greedy``, always the valid centre with the largest disc sum; ``upper_bound``. Among
        equal sums, exact greedy takes the lowest action. The bound is the weight of the heaviest
        cells, as many as all discs have together.
    """
    coverages = {name: np.empty(len(seeds)) for name in ("random", "exact_greedy", "upper_bound")}
    for k, seed in enumerate(map(int, seeds)):
        instance = problem.instance(seed)
        weights, radii, num_circles = instance
        fits = problem.fits_of(seed)
        total = weights.sum(dtype=np.float64)
        coverages["upper_bound"][k] = _heaviest_cells(instance) / total
        for name, greedy in (("random", False), ("exact_greedy", True)):
            collected = _play(weights.copy(), radii, num_circles, problem.gap, fits, greedy, seed)
            coverages[name][k] = collected / total
    return coverages


def random_valid_actions(
    masks: NDArray[np.int8], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Choose a uniformly random valid action for each mask, int8[B, num_actions]: int64[B]."""
    actions = np.empty(len(masks), np.int64)
    _choose_at_random(masks, generator.integers(2**64, size=len(masks), dtype=np.uint64), actions)
    return actions


def _heaviest_cells(instance: Instance) -> float:
    """Return the weight of the heaviest cells, as many as all discs have together."""
    radii = instance.radii[: instance.num_circles]
    num_cells = sum(int((2 * half_widths(radius) + 1).sum()) for radius in radii)
    cells = instance.weights.ravel()
    if num_cells >= cells.size:
        return float(cells.sum(dtype=np.float64))
    return float(np.partition(cells, -num_cells)[-num_cells:].sum(dtype=np.float64))


@compiled
def _play(weights, radii, count, gap, fits, greedy, seed):
    """Play an episode and return the collected weight; collected cells of weights become 0.

    Args:
        weights: float32[N, N].
        radii: int64[MAX_CIRCLES], in cells.
        count: number of circles.
        gap: least number of cells between the rims of two circles; -1 if they may overlap.
        fits: int16[N, N] or [0, 0], the largest radius that fits around each cell.
        greedy: whether to choose the heaviest valid centre instead of a random one.
        seed: seed of the random choices.
    """
    size = len(weights)
    mask = np.empty(size * size, np.int8)
    centres = np.empty((len(radii), 2), np.int64)
    s0, s1 = seeded(seed, POLICY_STREAM)
    collected = 0.0
    for circle in range(count):
        any_valid = kernels.find_valid_centres(centres, radii, circle, gap, size, mask)
        if any_valid and len(fits) > 0:
            any_valid = kernels.keep_fitting(fits, radii[circle], mask)
        if not any_valid:
            break
        bits, s0, s1 = drawn(s0, s1)
        action = heaviest(weights, mask, radii[circle]) if greedy else _random_valid(mask, bits)
        x, y = divmod(action, size)
        centres[circle, 0] = x
        centres[circle, 1] = y
        collected += kernels.collect(weights, x, y, radii[circle])
    return collected


@compiled
def heaviest(weights, mask, radius):
    """Return the valid action with the largest disc sum, the lowest among equals."""
    size = len(weights)
    widths = half_widths(radius)
    prefixes = padded_prefix_sums(weights, radius)
    sums = np.empty(size, np.float64)
    best_action, best_sum = -1, -1.0
    for x in range(radius, size - radius):
        disc_sums_of_row(prefixes, radius, widths, x, sums)
        for y in range(radius, size - radius):
            if sums[y] > best_sum and mask[x * size + y]:
                best_action, best_sum = x * size + y, sums[y]
    return best_action


@compiled
def _random_valid(mask, bits):
    """Return a uniformly random valid action, decided by 64 random bits."""
    to_skip = below(bits, mask.sum())
    for action in range(len(mask)):
        if mask[action]:
            if to_skip == 0:
                return action
            to_skip -= 1
    return -1  # unreachable: callers have a valid action


@compiled
def _choose_at_random(masks, bits, actions):
    """Fill actions, int64[B], from masks, int8[B, num_actions], and bits, uint64[B]."""
    for b in range(len(masks)):
        actions[b] = _random_valid(masks[b], bits[b])
