"""Files that hold maps: NumPy's ``.npy``, PNG, CSV, and GeoTIFF with ``pdqn[geo]``.

Files are data: nothing in them is executed, and their sizes are checked before their contents are
read. A cell without a number (NaN, an empty field of a CSV, nodata of a GeoTIFF) is read as NaN.
"""

from __future__ import annotations

import socket
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pdqn.errors import UsageError, first_line

MAX_SIDE = 1024
MAX_CELLS = 1 << 25  # of all maps together, padding included
_MAX_FILES = 10_000
_MAX_FOLDER = 100_000  # entries of a folder that are looked at
_MAX_TEXT_BYTES = 1 << 26  # of a CSV or a PNG
_MAX_ITEM_BYTES = 8
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = ("1", "L", "I", "I;16", "I;16B")
ACCEPTED = "a .npy, .png, .csv or .tif file, or a folder of them"


class BadFileError(ValueError):
    """A file that is not a map, with the reason as its text."""


@dataclass(frozen=True)
class Georeference:
    """The place of a map in the world.

    Attributes:
        transform: a, b, c, d, e, f of a corner's coordinates (a * column + b * row + c,
            d * column + e * row + f).
        system: name of the coordinate system, such as EPSG:32633; empty if the file has none.
    """

    transform: tuple[float, float, float, float, float, float]
    system: str

    def coordinates(self, row: float, column: float) -> tuple[float, float]:
        """Return the coordinates of the middle of a cell: first eastward, then northward."""
        a, b, c, d, e, f = self.transform
        right, down = column + 0.5, row + 0.5
        return a * right + b * down + c, d * right + e * down + f


@dataclass(frozen=True)
class RawMap:
    """A map as a file has it.

    Attributes:
        name: name of the file, and the number of the map if the file holds several.
        cells: float64[height, width]; NaN for a cell without a number.
        place: its place in the world, if the file tells it.
    """

    name: str
    cells: NDArray[np.float64]
    place: Georeference | None = None


def read_maps(key: str, value: str) -> list[RawMap]:
    """Read all maps of a file, or of the files of a folder in the order of their names.

    Args:
        key: the setting that names the path, for errors.
        value: the path.

    Raises:
        UsageError: there are no maps, they are too large, or a file is damaged or of another type.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"{key}={value!r:.80}: expected the path of {ACCEPTED}")
    path = Path(value).expanduser().absolute()
    try:
        files = _listed(path) if path.is_dir() else [path]
    except BadFileError as error:
        raise UsageError(f"{key}={value!r:.200}: {error}") from error
    except OSError as error:
        raise UsageError(f"{key}={value!r:.200}: {error.strerror or error}") from error
    maps: list[RawMap] = []
    cells = 0
    for file in files:
        for found in _read_file(key, value, file):
            cells += found.cells.size
            if cells > MAX_CELLS:
                raise UsageError(
                    f"{key}={value!r:.200}: more than {MAX_CELLS:,} cells in all; give fewer maps, "
                    "or a lower resolution"
                )
            maps.append(found)
    return maps


def _listed(folder: Path) -> list[Path]:
    """List the files of a folder that may be maps, sorted by name."""
    found: list[Path] = []
    for seen, file in enumerate(folder.iterdir()):
        if seen >= _MAX_FOLDER:
            raise BadFileError(f"the folder has more than {_MAX_FOLDER:,} entries")
        if file.suffix.lower() in _READERS and not file.name.startswith("."):
            found.append(file)
    if not found:
        raise BadFileError(f"the folder {folder} has no {', '.join(_READERS)} file")
    if len(found) > _MAX_FILES:
        raise BadFileError(f"the folder has {len(found):,} maps; at most {_MAX_FILES:,} are read")
    return sorted(found)


def _read_file(key: str, value: str, path: Path) -> Iterator[RawMap]:
    """Read the maps of one file; whatever is wrong with it becomes one line."""
    try:
        read = _READERS.get(path.suffix.lower())
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise BadFileError("it is not a regular file")
        if read is None:
            raise BadFileError(f"expected {ACCEPTED}")
        yield from read(path, info.st_size)
    except FileNotFoundError as error:
        raise UsageError(
            f"{key}={value!r:.200}: {path} is missing on {socket.gethostname()}; each host of a "
            "run reads it, and needs it under this path"
        ) from error
    except UsageError:
        raise
    # Readers raise errors of many types for damaged files.
    except (OSError, ValueError, EOFError, ArithmeticError, LookupError, SyntaxError) as error:
        where = "" if str(path) == value else f" {path.name}:"
        said = error.strerror if isinstance(error, OSError) and error.strerror else None
        raise UsageError(f"{key}={value!r:.200}:{where} {said or first_line(error)}") from error


def _check_shape(shape: tuple[int, ...]) -> None:
    """Refuse a map that is empty or too large, before its cells are read."""
    if min(shape) < 1:
        raise BadFileError(f"the map of {_sides(shape)} cells is empty")
    if max(shape) > MAX_SIDE:
        raise BadFileError(
            f"the map has {_sides(shape)} cells; at most {MAX_SIDE:,} a side are accepted: give it "
            "a lower resolution"
        )


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _read_npy(path: Path, _size: int) -> Iterator[RawMap]:
    """Read one map [H, W], or several [K, H, W]."""
    shape, dtype = _npy_header(path)
    if dtype.kind not in "biuf" or dtype.itemsize > _MAX_ITEM_BYTES:
        raise BadFileError(f"the array holds {dtype}; numbers of at most 64 bits are accepted")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] < 1):
        raise BadFileError(
            f"the array has the shape {list(shape)}; expected [rows, columns] or "
            "[maps, rows, columns]"
        )
    _check_shape(shape[-2:])
    if np.prod(shape, dtype=object) > MAX_CELLS:
        raise BadFileError(f"the array has more than {MAX_CELLS:,} cells")
    array = np.load(path, allow_pickle=False)
    if len(shape) == 2:
        yield RawMap(path.name, array.astype(np.float64))
        return
    for number, cells in enumerate(array):
        yield RawMap(f"{path.name}[{number}]", cells.astype(np.float64))


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and dtype of an array, and nothing else."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise BadFileError(f"version {version} of .npy holds no plain numbers")
    return shape, dtype


def _read_png(path: Path, size: int) -> Iterator[RawMap]:
    """Read a grey picture; its brightness is the weight."""
    _check_bytes(size)
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or not start.startswith(_PNG_START):
        raise BadFileError("it is not a PNG")
    width, height = struct.unpack(">II", start[16:])
    _check_shape((height, width))
    with Image.open(path, formats=["PNG"]) as picture:
        if picture.size != (width, height):
            raise BadFileError("it is not a PNG")
        if picture.mode not in _PNG_MODES:
            raise BadFileError(
                f"the picture is {picture.mode}; grey of 1, 8 or 16 bits without transparency is "
                "accepted"
            )
        yield RawMap(path.name, np.asarray(picture).astype(np.float64))


def _read_csv(path: Path, size: int) -> Iterator[RawMap]:
    """Read rows of numbers, separated by semicolons, tabs, commas or spaces."""
    _check_bytes(size)
    rows: list[list[float]] = []
    separator: str | None = None
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if not rows:
                separator = next((mark for mark in ";\t," if mark in line), None)
            rows.append(_numbers(line, separator, number))
            if len(rows) > MAX_SIDE or len(rows[-1]) > MAX_SIDE:
                _check_shape((len(rows), len(rows[-1])))
            if len(rows[-1]) != len(rows[0]):
                raise BadFileError(
                    f"line {number} has {len(rows[-1])} numbers, the first one {len(rows[0])}"
                )
    if not rows:
        raise BadFileError("the file is empty")
    yield RawMap(path.name, np.array(rows, np.float64))


def _numbers(line: str, separator: str | None, number: int) -> list[float]:
    """Parse a line of a CSV; an empty field is NaN."""
    fields = line.rstrip("\r\n").split(separator)
    numbers = []
    for text in fields:
        try:
            numbers.append(float(text) if text.strip() else np.nan)
        except ValueError:
            raise BadFileError(f"line {number}: {text.strip()!r:.40} is not a number") from None
    return numbers


def _check_bytes(size: int) -> None:
    if size > _MAX_TEXT_BYTES:
        raise BadFileError(f"the file has {size:,} bytes; at most {_MAX_TEXT_BYTES:,} are accepted")


def _read_geotiff(path: Path, _size: int) -> Iterator[RawMap]:
    """Read the single band of a GeoTIFF, and its place in the world."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError as error:
        raise BadFileError("a .tif needs rasterio: python -m pip install 'pdqn[geo]'") from error
    with warnings.catch_warnings():
        # rasterio itself calls what its own dependency affine is about to give up.
        for kind in (NotGeoreferencedWarning, PendingDeprecationWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        try:
            # No other driver may read it, and no file beside it: some formats name other files.
            with (
                rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
                rasterio.open(path, driver="GTiff") as dataset,
            ):
                yield _raster(path.name, dataset)
        except RasterioError as error:
            raise BadFileError(f"it cannot be read as a GeoTIFF: {first_line(error)}") from error


def _raster(name: str, dataset: Any) -> RawMap:
    """Read an open GeoTIFF."""
    _check_shape((dataset.height, dataset.width))
    if dataset.count != 1:
        raise BadFileError(f"it has {dataset.count} bands; one is accepted")
    dtype = np.dtype(dataset.dtypes[0])
    if dtype.kind not in "biuf":
        raise BadFileError(f"it holds {dtype}; real numbers are accepted")
    cells = dataset.read(1, masked=True).astype(np.float64).filled(np.nan)
    system = "" if dataset.crs is None else dataset.crs.to_string()
    a, b, c, d, e, f = dataset.transform[:6]
    return RawMap(name, cells, Georeference((a, b, c, d, e, f), system))


_Reader = Callable[[Path, int], Iterator[RawMap]]
_READERS: dict[str, _Reader] = {
    ".npy": _read_npy,
    ".png": _read_png,
    ".csv": _read_csv,
    ".tif": _read_geotiff,
    ".tiff": _read_geotiff,
}
