"""The circle placement problem: its settings, and the instance of a seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement import kernels
from actors.circle_placement.kernels import MAX_CIRCLES
from actors.circle_placement.maps import MapSet, load_maps, parse_keep_out, parse_placed
from pdqn.errors import UsageError

# The standard problem; other map sizes scale lengths by N / 128 and the walk by its square.
STANDARD_MAP_SIZE = 128
STANDARD_WALK_STEPS = 100_000
STANDARD_RADII = (20, 17, 14, 12, 12, 8, 7, 6, 5, 4, 3, 2, 1)
LARGEST_RANDOM_RADIUS = 20

MIN_MAP_SIZE = 16

NO_FITS = np.empty((0, 0), np.int16)  # where the edges of a square map alone decide

_RADII_ACCEPTED = (
    f'"fixed", "random" or 1 to {MAX_CIRCLES} whole numbers >= 1 in the order of placement, '
    "such as 5,4,3; or a range such as 10..20, with circles="
)


class Instance(NamedTuple):
    """One map and its circles."""

    weights: NDArray[np.float32]  # [N, N]
    radii: NDArray[np.int64]  # [MAX_CIRCLES]: in cells, zero-padded
    num_circles: int


@dataclass(frozen=True)
class RadiusRange:
    """Radii that every episode draws.

    Attributes:
        lowest: least radius in cells, at least 1.
        highest: largest radius in cells.
        fewest: least number of circles, at least 1.
        most: largest number of circles, at most ``MAX_CIRCLES``.
    """

    lowest: int
    highest: int
    fewest: int
    most: int


@dataclass(frozen=True)
class OwnMaps:
    """Settings of a person's own maps, as an environment's arguments give them.

    Attributes:
        maps: path of the maps; empty for generated ones.
        forbidden: path of the forbidden zones; empty without any.
        keep_out: ``centre`` or ``disc``, whichever keeps out of forbidden zones.
        placed: circles that are placed already.
        split_seed: decides which maps are held out, a whole number of at least 0.
    """

    maps: str = ""
    forbidden: str = ""
    keep_out: str = "centre"
    placed: Sequence[Sequence[int]] | str = ""
    split_seed: int | str = 0


@dataclass(frozen=True)
class Problem:
    """The checked settings of a circle placement problem.

    Attributes:
        map_size: N, for maps of N x N cells; at least 16.
        radii: radii of the circles in cells, in the order of placement, or the range from which
            every episode draws them. ``None`` if every map has random ones.
        overlap: whether circles may overlap. A cell under several of them counts once.
        spacing: least number of cells between the rims of two circles that may not overlap.
        maps: a person's own maps; None for generated ones.
    """

    map_size: int
    radii: tuple[int, ...] | RadiusRange | None
    overlap: bool
    spacing: int = 0
    maps: MapSet | None = None

    @classmethod
    def parse(
        cls,
        map_size: Any,
        radii: Any,
        overlap: Any,
        *,
        circles: Any = "",
        spacing: Any = 0,
        own: OwnMaps | None = None,
    ) -> Problem:
        """Check settings from a program or, as strings, from a command line.

        Args:
            map_size: N; ``auto`` for 128, or for the least that holds all of a person's own maps.
            radii: see ``CirclePlacementEnv``.
            overlap: whether circles may overlap.
            circles: number of circles of a range of radii, or a range of it.
            spacing: least number of cells between rims.
            own: settings of a person's own maps; None for generated maps.

        Raises:
            UsageError: a ``ValueError`` that names the setting, its value and what is accepted.
        """
        overlaps, gap = parse_switch("overlap", overlap), parse_whole("spacing", spacing, 0)
        if overlaps and gap:
            raise UsageError(f"spacing={spacing!r}: circles that may overlap have none; expected 0")
        size = None
        if not (isinstance(map_size, str) and map_size.strip() == "auto"):
            size = parse_whole("map_size", map_size, MIN_MAP_SIZE)
        maps = _load(own or OwnMaps(), size, None if overlaps else gap)
        if maps is None:
            size = STANDARD_MAP_SIZE if size is None else size
            return cls(size, _parse_radii(radii, circles, size, None), overlaps, gap)
        parsed = _parse_radii(radii, circles, maps.shortest_side, maps)
        return cls(maps.size, parsed, overlaps, gap, maps)

    @property
    def gap(self) -> int:
        """Least number of cells between the rims of two circles, -1 if they may overlap."""
        return -1 if self.overlap else self.spacing

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the largest map, without padding."""
        return (self.map_size, self.map_size) if self.maps is None else self.maps.extent

    def shape_of(self, seed: int) -> tuple[int, int]:
        """Return height and width of the map of a seed, without padding."""
        if self.maps is None:
            return self.map_size, self.map_size
        return self.maps.shapes[self.maps.index_of(seed)]

    def fits_of(self, seed: int) -> NDArray[np.int16]:
        """Return the largest radii that fit on the map of a seed, int16[N, N] or [0, 0]."""
        return NO_FITS if self.maps is None else self.maps.fits[self.maps.index_of(seed)]

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
            seed: 0 to 2**63 - 1. A generated map depends on it and ``map_size`` only. Below
                1,000,000 it chooses one of a person's maps to train on, else a held-out one.
            weights: float32[N, N], overwritten.
            radii: int64[MAX_CIRCLES], overwritten, zero-padded.
        """
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed}: expected 0 to 2**63 - 1")
        if self.maps is None:
            kernels.generate_map(seed, self.walk_steps, weights)
        else:
            weights[:] = self.maps.weights[self.maps.index_of(seed)]
        radii[:] = 0
        if isinstance(self.radii, tuple):
            radii[: len(self.radii)] = self.radii
            return len(self.radii)
        if isinstance(self.radii, RadiusRange):
            within = self.radii
            count = kernels.draw_radii_within(
                seed, within.lowest, within.highest, within.fewest, within.most, radii
            )
        else:
            count = kernels.draw_radii(seed, _scaled_random_radii(self._scale), radii)
        radii[:count] = np.sort(radii[:count])[::-1]
        return count

    @property
    def _scale(self) -> int:
        """Side to which named radii are in proportion."""
        return self.map_size if self.maps is None else self.maps.shortest_side


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


def _load(own: OwnMaps, size: int | None, spacing: int | None) -> MapSet | None:
    """Read a person's own maps; None if no path is given.

    Args:
        own: their settings.
        size: N; None for the least.
        spacing: least number of cells between rims; None if circles may overlap.
    """
    placed, keep_out = parse_placed(own.placed), parse_keep_out(own.keep_out)
    split_seed = parse_whole("split_seed", own.split_seed, 0)
    if own.maps:
        return load_maps(
            own.maps, forbidden=own.forbidden, keep_out=keep_out, placed=placed, spacing=spacing,
            size=size, split_seed=split_seed,
        )  # fmt: skip
    says = {
        "forbidden": own.forbidden, "keep_out": keep_out != "centre", "placed": placed,
        "split_seed": split_seed,
    }  # fmt: skip
    for key in (key for key, given in says.items() if given):
        value = getattr(own, key)
        raise UsageError(f"{key}={value!r:.200}: it is for your own maps; give maps=PATH too")
    return None


def _parse_radii(
    value: Any, circles: Any, side: int, maps: MapSet | None
) -> tuple[int, ...] | RadiusRange | None:
    """Parse the radii in cells; ``None`` for random ones.

    Args:
        value: the setting ``radii``.
        circles: the setting ``circles``.
        side: side of a map, to which named radii are in proportion.
        maps: a person's own maps; None for generated ones.
    """
    word = value.strip() if isinstance(value, str) else ""
    if ".." in word:
        parsed = _parse_range(value, word, circles)
        largest = parsed.highest
    elif circles not in ("", None):
        raise UsageError(f"circles={circles!r:.80}: it is for a range of radii such as 10..20")
    elif word == "random":
        parsed, largest = None, int(_scaled_random_radii(side).max())
    else:
        parsed = _listed_radii(value, word, side)
        largest = max(parsed)
    if maps is not None:
        maps.check_radius("radii", value, largest)
    elif word not in ("fixed", "random") and largest > (side - 1) // 2:
        raise UsageError(
            f"radii={value!r}: a circle of radius {largest} does not fit on a map with "
            f"map_size={side}; at most {(side - 1) // 2} does"
        )
    return parsed


def _listed_radii(value: Any, word: str, side: int) -> tuple[int, ...]:
    """Parse a list of radii, or its name."""
    if word == "fixed":
        return tuple(_scaled(radius, side) for radius in STANDARD_RADII)
    radii = [_whole_or_none(item) for item in _items(value)]
    if not 1 <= len(radii) <= MAX_CIRCLES or any(r is None or r < 1 for r in radii):
        raise UsageError(f"radii={value!r}: expected {_RADII_ACCEPTED}")
    return tuple(radius for radius in radii if radius is not None)


def _parse_range(value: Any, word: str, circles: Any) -> RadiusRange:
    """Parse a range of radii and the number of circles that it has."""
    lowest, highest = _ends(word)
    if lowest is None or highest is None or not 1 <= lowest <= highest:
        raise UsageError(f"radii={value!r:.80}: expected {_RADII_ACCEPTED}")
    fewest, most = _ends(str(circles).strip())
    if fewest is None or most is None or not 1 <= fewest <= most <= MAX_CIRCLES:
        raise UsageError(
            f"circles={circles!r:.80}: expected the number of circles for radii={word}, 1 to "
            f"{MAX_CIRCLES}, or a range of it such as 5..8"
        )
    return RadiusRange(lowest, highest, fewest, most)


def _ends(word: str) -> tuple[int | None, int | None]:
    """Return both ends of a range; of a single number, that number twice."""
    low, dots, high = word.partition("..")
    return _whole_or_none(low), _whole_or_none(high if dots else low)


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
