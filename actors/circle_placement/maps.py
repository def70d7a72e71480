"""A person's own maps: read, checked, padded to one square, and split into two sets.

Maps lie at row 0 and column 0 of a square of N x N cells, so that coordinates are those of the
file. The cells beside and below a map are padding: they weigh 0, and no circle may reach them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.map_files import MAX_CELLS, MAX_SIDE, Georeference, RawMap, read_maps
from pdqn.errors import UsageError
from pdqn.jit import compiled
from pdqn.seeds import HELD_OUT_SEED

KeepOut = Literal["centre", "disc"]
Circle = tuple[int, int, int]  # row, column, radius

NETWORK_MULTIPLE = 8  # the Q-map network works on blocks of 4 x 4 or 8 x 8 cells
FORBIDDEN = -1  # where no cell may be covered, or no centre be
_SMALLEST_SQUARE = 16
_HELD_OUT_SHARE = 5  # one map in five
_LARGEST_WEIGHT, _SMALLEST_WEIGHT = 1e30, 1e-30  # of the heaviest cell; float32 has room for sums


@dataclass(frozen=True, eq=False)
class MapSet:
    """Maps of K places on squares of N x N cells. Sets are equal if their contents are.

    Attributes:
        source: path that they were read from.
        names: name of each map.
        shapes: height and width of each map, without padding.
        weights: float32[K, N, N], 0 where padded, forbidden or covered by a circle placed already.
        fits: int16[K, N, N], the largest radius of a circle that may have its centre there. Edges,
            forbidden zones and circles placed already decide. ``FORBIDDEN`` in padding and in
            forbidden cells.
        placed: circles that are there already, on every map.
        training: indices of the maps to train on.
        held_out: indices of the maps to evaluate on; the same if there is a single map.
        places: place of each map in the world, if its file tells it.
        digest: hash of all that decides episodes.
    """

    source: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    weights: NDArray[np.float32]
    fits: NDArray[np.int16]
    placed: tuple[Circle, ...]
    training: tuple[int, ...]
    held_out: tuple[int, ...]
    places: tuple[Georeference | None, ...]
    digest: str

    def __eq__(self, other: object) -> bool:
        """Return whether another set leads to the same episodes."""
        return isinstance(other, MapSet) and self.digest == other.digest

    def __hash__(self) -> int:
        """Return the hash of the contents."""
        return hash(self.digest)

    @property
    def size(self) -> int:
        """N, the side of the squares."""
        return self.weights.shape[1]

    @property
    def extent(self) -> tuple[int, int]:
        """Largest height and largest width of the maps, without padding."""
        return max(h for h, _ in self.shapes), max(w for _, w in self.shapes)

    @property
    def shortest_side(self) -> int:
        """Shortest side of all maps, to which named radii are in proportion."""
        return min(map(min, self.shapes))

    def index_of(self, seed: int) -> int:
        """Return the index of a seed's map: of one to train on below 1,000,000, else held out."""
        if seed < HELD_OUT_SEED:
            return self.training[seed % len(self.training)]
        return self.held_out[(seed - HELD_OUT_SEED) % len(self.held_out)]

    def check_radius(self, key: str, value: Any, radius: int) -> None:
        """Refuse a radius that has no place on some map.

        Raises:
            UsageError: it names the setting ``key``, its ``value``, the map and what would fit.
        """
        for name, shape, fits in zip(self.names, self.shapes, self.fits, strict=True):
            if (largest := int(fits.max())) < radius:
                raise UsageError(
                    f"{key}={value!r:.80}: a circle of radius {radius} has no place on the map "
                    f"{name} of {shape[0]} x {shape[1]} cells; at most {max(0, largest)} does"
                )

    def describe(self) -> str:
        """Describe the maps and how they are split, in one line."""
        height, width = self.extent
        sizes = f"{height} x {width}" if len(set(self.shapes)) == 1 else f"up to {height} x {width}"
        squares = f"on squares of {self.size} x {self.size}{self._zones()}"
        if len(self.names) == 1:
            return (
                f"1 map of {sizes} cells from {self.source}, {squares}: training and evaluation "
                "are on this same map"
            )
        return (
            f"{len(self.names)} maps of {sizes} cells from {self.source}, {squares}: "
            f"{len(self.training)} to train on, {len(self.held_out)} held out for evaluation"
        )

    def _zones(self) -> str:
        """Describe the share of cells that are forbidden; empty without any."""
        cells = sum(height * width for height, width in self.shapes)
        free = int((self.fits != FORBIDDEN).sum())
        return "" if free == cells else f", {1 - free / cells:.1%} of their cells forbidden"


def load_maps(
    path: str,
    *,
    forbidden: str = "",
    keep_out: KeepOut = "centre",
    placed: Sequence[Circle] = (),
    spacing: int | None = 0,
    size: int | None = None,
    split_seed: int = 0,
) -> MapSet:
    """Read maps and prepare them.

    Args:
        path: file or folder of the maps.
        forbidden: file or folder of as many maps, or of one for all; cells that are neither 0 nor
            NaN there are forbidden. So is a NaN of the maps.
        keep_out: whether the ``centre`` of a circle or its whole ``disc`` keeps out of forbidden
            cells.
        placed: circles that are there already: what they cover is gone.
        spacing: least number of cells between the rims of two circles; None if they may overlap.
        size: N; by default the least multiple of 8 that holds all maps.
        split_seed: decides which maps are held out.

    Raises:
        UsageError: with the setting, its value, and what is accepted.
    """
    raw = read_maps("maps", path)
    zones = _read_zones(forbidden, raw) if forbidden else [np.isnan(one.cells) for one in raw]
    square = _square(path, raw, size)
    shapes = tuple(_height_and_width(one.cells) for one in raw)
    weights = np.zeros((len(raw), square, square), np.float32)
    fits = np.full(weights.shape, FORBIDDEN, np.int16)
    for index, (one, zone, (height, width)) in enumerate(zip(raw, zones, shapes, strict=True)):
        cells = _checked_weights(path, one)
        cells[zone] = 0.0
        _place(one.name, cells, placed)
        if not cells.any():
            raise UsageError(f"maps={path!r:.200}: {one.name} has no weight that can be covered")
        weights[index, :height, :width] = cells
        part = fits[index, :height, :width]
        part[:] = _fitting_radii(zone, keep_out, placed, spacing)
        part[zone] = FORBIDDEN
    training, held_out = _split(len(raw), split_seed)
    digest = _digest(weights, fits, repr((shapes, training, held_out)))
    names, places = tuple(one.name for one in raw), tuple(one.place for one in raw)
    return MapSet(
        path, names, shapes, weights, fits, tuple(placed), training, held_out, places, digest
    )


def parse_keep_out(value: Any) -> KeepOut:
    """Parse what keeps out of forbidden cells."""
    if value not in ("centre", "disc"):
        raise UsageError(f"keep_out={value!r:.80}: expected centre or disc")
    return cast(KeepOut, value)


def parse_placed(value: Any) -> tuple[Circle, ...]:
    """Parse circles that are placed already: lists of three, or ``row,column,radius;...``."""
    wrong = UsageError(
        f"placed={value!r:.80}: expected row,column,radius of each circle, such as 10,20,5;30,40,3"
    )
    items = value
    if isinstance(value, str):
        items = [part.split(",") for part in value.split(";") if part.strip()]
    circles: list[Circle] = []
    if not isinstance(items, list | tuple | np.ndarray):
        raise wrong
    for item in items:
        if not isinstance(item, list | tuple | np.ndarray) or len(item) != 3:
            raise wrong
        texts = [str(number).strip() for number in item]
        if not all(text.isascii() and text.isdigit() and len(text) < 6 for text in texts):
            raise wrong
        row, column, radius = map(int, texts)
        if not 1 <= radius <= MAX_SIDE:
            raise wrong
        circles.append((row, column, radius))
    return tuple(circles)


def _height_and_width(cells: NDArray[Any]) -> tuple[int, int]:
    height, width = cells.shape
    return height, width


def _square(path: str, raw: Sequence[RawMap], size: int | None) -> int:
    """Return the side of the square that holds every map."""
    longest = max(max(one.cells.shape) for one in raw)
    least = max(_SMALLEST_SQUARE, -(-longest // NETWORK_MULTIPLE) * NETWORK_MULTIPLE)
    if size is not None and not longest <= size <= MAX_SIDE:
        raise UsageError(
            f"map_size={size}: expected {longest} to {MAX_SIDE}, as a side of maps={path!r:.200} "
            f"has {longest} cells; left out, it is {least}"
        )
    square = least if size is None else size
    if len(raw) * square**2 > MAX_CELLS:
        raise UsageError(
            f"maps={path!r:.200}: {len(raw)} maps on squares of {square} x {square} are more than "
            f"{MAX_CELLS:,} cells; give fewer maps, or a lower resolution"
        )
    return square


def _read_zones(path: str, raw: Sequence[RawMap]) -> list[NDArray[np.bool_]]:
    """Read the forbidden cells of each map, bool[height, width], its NaN included."""
    masks = read_maps("forbidden", path)
    if len(masks) not in (1, len(raw)):
        raise UsageError(
            f"forbidden={path!r:.200}: {len(masks)} of them for {len(raw)} maps; expected one for "
            "all, or one for each"
        )
    zones = []
    for index, one in enumerate(raw):
        mask = masks[index if len(masks) > 1 else 0]
        if mask.cells.shape != one.cells.shape:
            raise UsageError(
                f"forbidden={path!r:.200}: {mask.name} has {_sides(mask)} cells, and the map "
                f"{one.name} {_sides(one)}; they must be the same"
            )
        zones.append(np.isnan(one.cells) | (np.nan_to_num(mask.cells) != 0))
    return zones


def _sides(one: RawMap) -> str:
    return " x ".join(map(str, one.cells.shape))


def _checked_weights(path: str, one: RawMap) -> NDArray[np.float64]:
    """Copy a map's weights with 0 for NaN, and refuse negative, infinite and huge ones."""
    cells = np.nan_to_num(one.cells, nan=0.0, posinf=np.inf, neginf=-np.inf)
    wrong = (cells < 0) | (cells > _LARGEST_WEIGHT)
    if wrong.any():
        row, column = map(int, np.argwhere(wrong)[0])
        raise UsageError(
            f"maps={path!r:.200}: {one.name} has {cells[row, column]:g} at row {row}, column "
            f"{column}; 0 to {_LARGEST_WEIGHT:g}, or NaN for a forbidden cell, is accepted"
        )
    if cells.max() < _SMALLEST_WEIGHT:
        raise UsageError(
            f"maps={path!r:.200}: {one.name} has no weight above {_SMALLEST_WEIGHT:g}; at least "
            "one cell needs it"
        )
    return cells


def _place(name: str, cells: NDArray[np.float64], placed: Sequence[Circle]) -> None:
    """Zero what the circles that are placed already cover."""
    height, width = cells.shape
    i, j = np.ogrid[:height, :width]
    for row, column, radius in placed:
        if row >= height or column >= width:
            raise UsageError(
                f"placed={row},{column},{radius}: this centre lies outside the map {name} of "
                f"{height} x {width} cells"
            )
        cells[(i - row) ** 2 + (j - column) ** 2 <= radius * radius] = 0.0


def _fitting_radii(
    zone: NDArray[np.bool_], keep_out: KeepOut, placed: Sequence[Circle], spacing: int | None
) -> NDArray[np.int64]:
    """Return the largest radius that fits at each cell, int64[height, width].

    Args:
        zone: bool[height, width], the forbidden cells.
        keep_out: see ``load_maps``.
        placed: see ``load_maps``.
        spacing: see ``load_maps``.
    """
    blocked = np.ones((zone.shape[0] + 2, zone.shape[1] + 2), np.bool_)
    blocked[1:-1, 1:-1] = zone if keep_out == "disc" else False
    # A disc keeps out of cells at this squared distance, so its radius is less than the root.
    fits = np.sqrt(_squared_distances(blocked)[1:-1, 1:-1] - 0.5).astype(np.int64)
    if spacing is None:
        return fits
    i, j = np.ogrid[: zone.shape[0], : zone.shape[1]]
    for row, column, radius in placed:
        # Square roots of perfect squares are exact, and all others far from a whole number.
        apart = np.sqrt((i - row) ** 2 + (j - column) ** 2).astype(np.int64)
        np.minimum(fits, np.maximum(apart - radius - spacing, 0), out=fits)
    return fits


@compiled
def _squared_distances(blocked):
    """Return the squared distance to the nearest blocked cell, int64[H, W]; at least 1."""
    height, width = blocked.shape
    rows = np.zeros((height, width), np.int64)  # distance along the column
    for j in range(width):
        for i in range(1, height):
            rows[i, j] = 0 if blocked[i, j] else rows[i - 1, j] + 1
        for i in range(height - 2, -1, -1):
            rows[i, j] = min(rows[i, j], rows[i + 1, j] + 1)
    squared = np.empty((height, width), np.int64)
    for i in range(height):
        for j in range(width):
            best = rows[i, j] ** 2
            offset = 1
            while offset * offset < best:
                if j >= offset:
                    best = min(best, rows[i, j - offset] ** 2 + offset * offset)
                if j + offset < width:
                    best = min(best, rows[i, j + offset] ** 2 + offset * offset)
                offset += 1
            squared[i, j] = max(1, best)
    return squared


def _split(count: int, split_seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the maps into those to train on and those held out; a single one is in both."""
    if count == 1:
        return (0,), (0,)
    order = np.random.default_rng(split_seed).permutation(count).tolist()
    held_out = max(1, count // _HELD_OUT_SHARE)
    return tuple(sorted(order[held_out:])), tuple(sorted(order[:held_out]))


def _digest(weights: NDArray[Any], fits: NDArray[Any], rest: str) -> str:
    """Hash what decides episodes."""
    content = hashlib.blake2b(rest.encode(), digest_size=16)
    for array in (weights, fits):
        content.update(array.data)
    return content.hexdigest()
