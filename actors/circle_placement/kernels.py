"""Compiled kernels of the circle placement problem: maps, circles, valid centres, placements.

They are single-threaded and without global state, hence safe after a fork and next to other
threads. Numba compiles each at its first call and caches it (``pdqn.jit``). It renews a file's
cache when that file changes. A changed kernel that is called from another file needs more: delete
that file's cache, which is usually in ``__pycache__`` next to it.

A cell is (x, y), row and column of the map; an action is its index, x * N + y.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdqn.discs import half_widths
from pdqn.jit import compiled

MAX_CIRCLES = 20
# Results of an episode's step, and the rules that an action can break.
GOING_ON, ALL_PLACED, NO_VALID_CENTRE = 0, 1, 2
VALID, OFF_MAP, OUT_OF_BOUNDS, OVERLAPS, BLOCKED = 0, 1, 2, 3, 4
# Independent streams of random numbers of one seed.
MAP_STREAM, RADII_STREAM, POLICY_STREAM, SEARCH_STREAM = 1, 2, 3, 4
TRIAL_STREAM = 1000  # and one for each circle after it

# Number of circles by lot: 3..15, of which 7..12 are 1.5 times as likely as the others.
_CIRCLE_COUNT_LOTS = np.repeat(np.arange(3, 16), [2] * 4 + [3] * 6 + [2] * 3)  # int64[32]
_TELEPORT_PROBABILITY = 0.001
_TELEPORT_BELOW = np.uint64(round(_TELEPORT_PROBABILITY * 2**26))
_U24 = np.float32(2.0**-24)  # one step of a uniform float32 of 24 bits

# numba turns a sum of uint64 and int64 into a float64, so all constants here are uint64.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Episodes(NamedTuple):
    """Running episodes of B environments on maps of N x N cells, which kernels change in place."""

    weights: NDArray[np.float32]  # [B, N, N]: weight that can still be collected
    maps: NDArray[np.uint16]  # [B, N, N]: float16 weights / original maximum, viewed as bits
    totals: NDArray[np.float64]  # [B]: the original weight of the map
    coverages: NDArray[np.float64]  # [B]: share of that weight collected so far
    radii: NDArray[np.int64]  # [B, MAX_CIRCLES]: in cells, zero-padded
    counts: NDArray[np.int64]  # [B]: circles in the episode
    placed: NDArray[np.int64]  # [B]: circles placed so far
    centres: NDArray[np.int64]  # [B, MAX_CIRCLES, 2]: centres of the circles placed so far


# --- random numbers -------------------------------------------------------------------------


@compiled
def mixed(x):
    """Apply the output function of splitmix64: every bit of x affects every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@compiled
def seeded(seed, stream):
    """Return the generator's state, two uint64, for one stream of a seed."""
    x = mixed(mixed(np.uint64(seed) + GOLDEN) + np.uint64(stream))
    return mixed(x + GOLDEN), mixed(x + GOLDEN + GOLDEN)


@compiled
def _rotated(x, bits):
    """Rotate x to the left."""
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@compiled
def drawn(s0, s1):
    """Draw 64 random bits; return them and the next state (xoroshiro128++)."""
    bits = _rotated(s0 + s1, 17) + s0
    s1 ^= s0
    return bits, _rotated(s0, 49) ^ s1 ^ (s1 << np.uint64(21)), _rotated(s1, 28)


@compiled
def below(bits, limit):
    """Return an int64 uniform over 0..limit - 1, from the upper 32 of 64 random bits."""
    return np.int64(((bits >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@compiled
def _uniform(bits):
    """Return a float32 uniform over [0, 1), from the lower 24 bits."""
    return np.float32(bits & np.uint64(0xFFFFFF)) * _U24


# --- instances of the problem ---------------------------------------------------------------


@compiled
def generate_map(seed, walk_steps, weights):
    """Fill weights, float32[N, N], with map number ``seed``: noise under a teleporting random walk.

    One draw serves a whole step of the walk. The lowest 24 bits are the weight that the walker
    adds, 4 more its moves, and the upper 26 decide whether it teleports.
    """
    size = np.uint64(len(weights))
    cells = weights.reshape(weights.size)
    s0, s1 = seeded(seed, MAP_STREAM)
    for cell in range(weights.size):
        bits, s0, s1 = drawn(s0, s1)
        cells[cell] = _uniform(bits)
    bits, s0, s1 = drawn(s0, s1)
    x, y = _random_cell(bits, size)
    for _ in range(walk_steps):
        bits, s0, s1 = drawn(s0, s1)
        cells[x * size + y] += _uniform(bits)
        if (bits >> np.uint64(38)) < _TELEPORT_BELOW:
            bits, s0, s1 = drawn(s0, s1)
            x, y = _random_cell(bits, size)
        else:
            x = _moved(x, size, bits >> np.uint64(24), bits >> np.uint64(25))
            y = _moved(y, size, bits >> np.uint64(26), bits >> np.uint64(27))


@compiled
def _random_cell(bits, size):
    """Return a uniformly random cell (x, y), both uint64."""
    cell = np.uint64(below(bits, size * size))
    return cell // size, cell % size


@compiled
def _moved(x, size, forth, back):
    """Return x, a uint64, moved by the lowest bit of forth less that of back, within the map.

    Clamping a move of at most one cell means not making it. Unsigned, -1 is a huge number, so one
    comparison covers both edges; a signed clamp makes the whole walk 1.7 times as slow.
    """
    target = x + ((forth & np.uint64(1)) - (back & np.uint64(1)))
    return target if target < size else x


@compiled
def draw_radii(seed, scaled, radii):
    """Draw the circles of a seed, in no order; return their number.

    Args:
        seed: seed of the map; the circles have their own stream.
        scaled: int64[21], for each radius on a map of 128 the radius in cells of this map.
        radii: int64[MAX_CIRCLES], overwritten as far as there are circles.
    """
    s0, s1 = seeded(seed, RADII_STREAM)
    bits, s0, s1 = drawn(s0, s1)
    count = _CIRCLE_COUNT_LOTS[below(bits, len(_CIRCLE_COUNT_LOTS))]
    for circle in range(count):
        kind, s0, s1 = drawn(s0, s1)
        bits, s0, s1 = drawn(s0, s1)
        lot = below(kind, 10)
        if lot < 2:
            radii[circle] = scaled[15 + below(bits, 6)]
        elif lot < 6:
            radii[circle] = scaled[8 + below(bits, 7)]
        else:
            radii[circle] = scaled[2 + below(bits, 6)]
    return count


@compiled
def draw_radii_within(seed, lowest, highest, fewest, most, radii):
    """Draw circles with radii from lowest to highest, in no order; return their number.

    Numbers from fewest to most are equally likely, and so are all radii.

    Args:
        seed: seed of the map; the circles have their own stream.
        lowest: in cells.
        highest: in cells.
        fewest: at least 1.
        most: at most MAX_CIRCLES.
        radii: int64[MAX_CIRCLES], overwritten as far as there are circles.
    """
    s0, s1 = seeded(seed, RADII_STREAM)
    bits, s0, s1 = drawn(s0, s1)
    count = fewest + below(bits, most - fewest + 1)
    for circle in range(count):
        bits, s0, s1 = drawn(s0, s1)
        radii[circle] = lowest + below(bits, highest - lowest + 1)
    return count


# --- placements -----------------------------------------------------------------------------


@compiled
def find_valid_centres(centres, radii, placed, gap, size, mask):
    """Mark the valid centres of circle number ``placed``; return whether there are any.

    Args:
        centres: int64[MAX_CIRCLES, 2], centres of the circles placed so far.
        radii: int64[MAX_CIRCLES], in cells.
        placed: number of circles placed so far, and index of the next circle.
        gap: least number of cells between the rims of two circles; -1 if they may overlap.
        size: N.
        mask: int8[N * N], overwritten.
    """
    grid = mask.reshape(size, size)
    radius = radii[placed]
    mask[:] = 0
    for x in range(radius, size - radius):
        grid[x, radius : size - radius] = 1
    if gap >= 0:
        for circle in range(placed):
            _forbid_around(grid, centres[circle], radii[circle] + radius + gap)
    for x in range(radius, size - radius):
        for y in range(radius, size - radius):
            if grid[x, y]:
                return True
    return False


@compiled
def keep_fitting(fits, radius, mask):
    """Zero the centres in mask, int8[N * N], around which a circle does not fit.

    Args:
        fits: int16[N, N], the largest radius that fits around each cell.
        radius: of the circle, in cells.
        mask: valid centres by all other rules; changed in place.

    Returns:
        Whether any centre is left.
    """
    size, any_valid = len(fits), False
    for x in range(size):
        for y in range(size):
            if fits[x, y] < radius:
                mask[x * size + y] = 0
            elif mask[x * size + y]:
                any_valid = True
    return any_valid


@compiled
def _forbid_around(grid, centre, distance):
    """Zero the cells of grid, int8[N, N], that are closer than distance to centre."""
    size = len(grid)
    for x in range(max(0, centre[0] - distance + 1), min(size, centre[0] + distance)):
        # The widest row offset whose square is less than ``room``; distance >= 2 keeps room >= 1.
        room = distance * distance - (x - centre[0]) ** 2
        reach = int(np.sqrt(room - 1))
        grid[x, max(0, centre[1] - reach) : min(size, centre[1] + reach + 1)] = 0


@compiled
def broken_rule(centres, radii, placed, gap, size, action):
    """Return the rule that an action breaks, or VALID, and the circle that it overlaps, or -1."""
    if not 0 <= action < size * size:
        return OFF_MAP, -1
    x, y = divmod(action, size)
    radius = radii[placed]
    if min(x, y) < radius or max(x, y) >= size - radius:
        return OUT_OF_BOUNDS, -1
    if gap >= 0:
        for circle in range(placed):
            distance = radii[circle] + radius + gap
            if (x - centres[circle, 0]) ** 2 + (y - centres[circle, 1]) ** 2 < distance * distance:
                return OVERLAPS, circle
    return VALID, -1


@compiled
def collect(weights, x, y, radius):
    """Zero the disc around (x, y) in weights, float32[N, N]; return its former sum in float64."""
    widths = half_widths(radius)
    collected = 0.0
    for row in range(2 * radius + 1):
        i = x - radius + row
        for j in range(y - widths[row], y + widths[row] + 1):
            collected += weights[i, j]
            weights[i, j] = 0.0
    return collected


@compiled
def _clear_disc(bits, x, y, radius):
    """Zero the disc around (x, y) in bits, uint16[N, N]; without any bit, a float16 is also 0."""
    widths = half_widths(radius)
    for row in range(2 * radius + 1):
        bits[x - radius + row, y - widths[row] : y + widths[row] + 1] = 0


@compiled
def first_invalid(episodes, gap, actions):
    """Return the first episode with an invalid action, the broken rule, and the overlapped circle.

    Without such an episode or circle, they are -1, VALID and -1.
    """
    size = episodes.weights.shape[1]
    for b in range(len(actions)):
        rule, circle = broken_rule(
            episodes.centres[b], episodes.radii[b], episodes.placed[b], gap, size, actions[b]
        )
        if rule != VALID:
            return b, rule, circle
    return -1, VALID, -1


@compiled
def place_circles(episodes, gap, actions, rewards, masks, ends):
    """Place the next circle of every episode, or change nothing if any action is invalid.

    Returns:
        The result of ``first_invalid``.

    Args:
        episodes: ``Episodes``, changed in place.
        gap: least number of cells between the rims of two circles; -1 if they may overlap.
        actions: int64[B].
        rewards: float64[B], overwritten: the share of the original weight that was collected.
        masks: int8[B, N * N], overwritten: the valid centres of the following circle.
        ends: int8[B], overwritten: GOING_ON, ALL_PLACED or NO_VALID_CENTRE.
    """
    invalid = first_invalid(episodes, gap, actions)
    if invalid[1] != VALID:
        return invalid
    size = episodes.weights.shape[1]
    for b in range(len(actions)):
        x, y = divmod(actions[b], size)
        circle = episodes.placed[b]
        radius = episodes.radii[b, circle]
        rewards[b] = collect(episodes.weights[b], x, y, radius) / episodes.totals[b]
        _clear_disc(episodes.maps[b], x, y, radius)
        episodes.coverages[b] += rewards[b]
        episodes.centres[b, circle, 0] = x
        episodes.centres[b, circle, 1] = y
        episodes.placed[b] = circle + 1
        ends[b] = find_next_centres(episodes, gap, b, masks[b])
    return invalid


@compiled
def find_next_centres(episodes, gap, b, mask):
    """Fill mask, int8[N * N], for episode b in its present state; return its end or GOING_ON."""
    if episodes.placed[b] == episodes.counts[b]:
        mask[:] = 0
        return ALL_PLACED
    size = episodes.weights.shape[1]
    any_valid = find_valid_centres(
        episodes.centres[b], episodes.radii[b], episodes.placed[b], gap, size, mask
    )
    return GOING_ON if any_valid else NO_VALID_CENTRE


# --- a person's own maps ----------------------------------------------------------------------


@compiled
def first_blocked(episodes, fits, actions):
    """Return the first episode whose circle does not fit around its action's cell; -1 without any.

    Args:
        episodes: ``Episodes``.
        fits: int16[B, N, N], the largest radius that fits around each cell.
        actions: int64[B]; those off the map do not count.
    """
    size = fits.shape[1]
    for b in range(len(actions)):
        if 0 <= actions[b] < size * size:
            x, y = divmod(actions[b], size)
            if fits[b, x, y] < episodes.radii[b, episodes.placed[b]]:
                return b
    return -1


@compiled
def keep_fitting_of_all(episodes, fits, masks, ends):
    """Zero the centres around which the next circles do not fit, and end episodes without any.

    Args:
        episodes: ``Episodes``, after a step.
        fits: int16[B, N, N], the largest radius that fits around each cell.
        masks: int8[B, N * N], changed in place.
        ends: int8[B], changed in place.
    """
    for b in range(len(ends)):
        if ends[b] == GOING_ON:
            radius = episodes.radii[b, episodes.placed[b]]
            if not keep_fitting(fits[b], radius, masks[b]):
                ends[b] = NO_VALID_CENTRE
