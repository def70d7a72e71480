"""The circle placement problem: its settings, and the instance of a seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement import kernels
from actors.circle_placement.kernels import MAX_CIRCLES
from pdqn.errors import UsageError

# The standard problem; other map sizes scale lengths by N / 128 and the walk by its square.
STANDARD_MAP_SIZE = 128
STANDARD_WALK_STEPS = 100_000
STANDARD_RADII = (20, 17, 14, 12, 12, 8, 7, 6, 5, 4, 3, 2, 1)
LARGEST_RANDOM_RADIUS = 20

MIN_MAP_SIZE = 16

_RADII_ACCEPTED = (
    f'"fixed", "random" or 1 to {MAX_CIRCLES} whole numbers >= 1 in the order of placement, '
    "such as 5,4,3"
)


class Instance(NamedTuple):
    """One map and its circles."""

    weights: NDArray[np.float32]  # [N, N]
    radii: NDArray[np.int64]  # [MAX_CIRCLES]: in cells, zero-padded
    num_circles: int


@dataclass(frozen=True)
class Problem:
    """The checked settings of a circle placement problem.

    Attributes:
        map_size: N, for maps of N x N cells; at least 16.
        radii: radii of the circles in cells, in the order of placement; ``None`` if every map has
            random ones.
        overlap: whether circles may overlap.
    """

    map_size: int
    radii: tuple[int, ...] | None
    overlap: bool

    @classmethod
    def parse(cls, map_size: Any, radii: Any, overlap: Any) -> Problem:
        """Check settings from a program or, as strings, from a command line.

        Raises:
            UsageError: a ``ValueError`` that names the setting, its value and what is accepted.
        """
        size = parse_whole("map_size", map_size, MIN_MAP_SIZE)
        return cls(size, _parse_radii(radii, size), parse_switch("overlap", overlap))

    @property
    def walk_steps(self) -> int:
        """Number of steps of the random walk that makes a map."""
        return round(STANDARD_WALK_STEPS * (self.map_size / STANDARD_MAP_SIZE) ** 2)

    def instance(self, seed: int) -> Instance:
        """Generate the map and the circles of a seed."""
        weights = np.empty((self.map_size, self.map_size), np.float32)
        radii = np.zeros(MAX_CIRCLES, np.int64)
        count = self.generate(seed, weights, radii)
        return Instance(weights, radii, count)

    def generate(self, seed: int, weights: NDArray[np.float32], radii: NDArray[np.int64]) -> int:
        """Generate the instance of a seed in place; return the number of circles.

        Args:
            seed: 0 to 2**63 - 1. The map depends on it and ``map_size`` only.
            weights: float32[N, N], overwritten.
            radii: int64[MAX_CIRCLES], overwritten, zero-padded.
        """
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed}: expected 0 to 2**63 - 1")
        kernels.generate_map(seed, self.walk_steps, weights)
        radii[:] = 0
        if self.radii is not None:
            radii[: len(self.radii)] = self.radii
            return len(self.radii)
        count = kernels.draw_radii(seed, _scaled_random_radii(self.map_size), radii)
        radii[:count] = np.sort(radii[:count])[::-1]
        return count


def _scaled(radius: int, map_size: int) -> int:
    """Scale a radius of the standard map; halves round up, and the result is at least 1."""
    return max(1, (2 * radius * map_size + STANDARD_MAP_SIZE) // (2 * STANDARD_MAP_SIZE))


@cache
def _scaled_random_radii(map_size: int) -> NDArray[np.int64]:
    """Return int64[21]: the radius on a map of this size for each radius of the standard map."""
    return np.array([_scaled(r, map_size) for r in range(LARGEST_RANDOM_RADIUS + 1)], np.int64)


def parse_whole(key: str, value: Any, minimum: int) -> int:
    """Parse a whole number of at least ``minimum``."""
    number = _whole_or_none(value)
    if number is None or number < minimum:
        raise UsageError(f"{key}={value!r}: expected a whole number >= {minimum}")
    return number


def parse_switch(key: str, value: Any) -> bool:
    """Parse true or false."""
    word = str(value).strip().lower()
    if word not in ("true", "false", "1", "0"):
        raise UsageError(f"{key}={value!r}: expected true or false")
    return word in ("true", "1")


def _parse_radii(value: Any, map_size: int) -> tuple[int, ...] | None:
    """Parse the radii in cells; ``None`` for random ones."""
    if isinstance(value, str) and value.strip() == "random":
        return None
    if isinstance(value, str) and value.strip() == "fixed":
        return tuple(_scaled(radius, map_size) for radius in STANDARD_RADII)
    radii = [_whole_or_none(item) for item in _items(value)]
    if not 1 <= len(radii) <= MAX_CIRCLES or any(r is None or r < 1 for r in radii):
        raise UsageError(f"radii={value!r}: expected {_RADII_ACCEPTED}")
    checked = tuple(radius for radius in radii if radius is not None)
    largest_that_fits = (map_size - 1) // 2
    if max(checked) > largest_that_fits:
        raise UsageError(
            f"radii={value!r}: a circle of radius {max(checked)} does not fit on a map with "
            f"map_size={map_size}; at most {largest_that_fits} does"
        )
    return checked


def _items(value: Any) -> list[Any]:
    """List the items of a list, of a list written as a string, or of a single number."""
    if isinstance(value, str):
        return value.strip("[]() ").split(",")
    return list(value) if isinstance(value, Iterable) else [value]


def _whole_or_none(value: Any) -> int | None:
    """Convert a whole number, also one written as a string; None for other values."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        digits = value.strip()
        return int(digits) if digits.isascii() and digits.isdigit() else None
    return int(value) if isinstance(value, int | np.integer) else None
