"""Pictures of circle placement: the map as a heat map, the circles on it, the coverage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PICTURE_PIXELS = 512
_CAPTION_PIXELS, _CAPTION_WIDTH = 36, 360
_SMOOTHING = 2  # factor by which everything is drawn larger and then reduced
_LABEL_PIXELS = 15
_ROOM_FOR_LABEL = 12  # pixels of radius from which a circle's number fits inside

_BACKGROUND = (18, 18, 24)
_TEXT = (240, 240, 245)
_COVERED = (64, 196, 255, 84)  # with alpha: the weights below stay visible
_OUTLINE = (255, 255, 255, 235)
_FORBIDDEN = (90, 90, 100, 255)
_BEFORE = (120, 200, 140, 255)


def draw_episode(
    weights: NDArray[np.float32],
    centres: NDArray[np.int64],
    radii: NDArray[np.int64],
    coverage: float,
    forbidden: NDArray[np.bool_] | None = None,
    before: Sequence[tuple[int, int, int]] = (),
) -> NDArray[np.uint8]:
    """Draw a map, the circles placed on it in their order, and the coverage.

    Args:
        weights: float32[height, width], the original ones; x goes down and y to the right.
        centres: int64[placed, 2], in cells.
        radii: int64[count], in cells, of all circles.
        coverage: the share of the weight that is covered.
        forbidden: bool[height, width], the cells in which no centre may be, or bool[0, 0].
        before: row, column and radius of the circles that were placed before.

    Returns:
        uint8[height, width, 3], the map with its longer side of about 512 pixels, and a caption
        above it.
    """
    scale = _SMOOTHING * max(1, round(PICTURE_PIXELS / max(weights.shape)))
    canvas = _heat_map(weights, forbidden, scale)
    canvas.alpha_composite(_discs_before(canvas.size, before, scale))
    canvas.alpha_composite(_circles(canvas.size, centres, radii, scale))
    width, height = (side // _SMOOTHING for side in canvas.size)
    picture = Image.new("RGB", (max(width, _CAPTION_WIDTH), height + _CAPTION_PIXELS), _BACKGROUND)
    picture.paste(canvas.convert("RGB").reduce(_SMOOTHING), (0, _CAPTION_PIXELS))
    _write_caption(picture, f"coverage {coverage:.1%}", f"{len(centres)} of {len(radii)} circles")
    return np.array(picture)


def _heat_map(
    weights: NDArray[np.float32], forbidden: NDArray[np.bool_] | None, scale: int
) -> Image.Image:
    """Return the map as an image with ``scale`` pixels to a cell's side."""
    # Only pictures need it. Each process that plays would take a quarter of a second to import it.
    import matplotlib

    colours = matplotlib.colormaps["inferno"](weights / weights.max(), bytes=True)
    if forbidden is not None and forbidden.size:
        colours[forbidden] = _FORBIDDEN
    cells = Image.fromarray(np.ascontiguousarray(colours), "RGBA")
    return cells.resize((cells.width * scale, cells.height * scale), Image.Resampling.NEAREST)


def _discs_before(
    size: tuple[int, int], before: Iterable[tuple[int, int, int]], scale: int
) -> Image.Image:
    """Return a transparent layer with the circles that were placed before, without numbers."""
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    for x, y, radius in before:
        pen.ellipse(_box(x, y, radius, scale), outline=_BEFORE, width=2 * _SMOOTHING)
    return layer


def _box(x: float, y: float, radius: float, scale: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a disc, in pixels."""
    # A cell's middle is half a cell from its edge, and so is a disc's rim from its last cell.
    down, right, reach = ((v + 0.5) * scale for v in (x, y, radius))
    return right - reach, down - reach, right + reach, down + reach


def _circles(
    size: tuple[int, int], centres: NDArray[np.int64], radii: NDArray[np.int64], scale: int
) -> Image.Image:
    """Return a transparent layer with the placed circles and their numbers."""
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    font = ImageFont.load_default(_LABEL_PIXELS * _SMOOTHING)
    for number, ((x, y), radius) in enumerate(zip(centres, radii, strict=False), start=1):
        down, right, reach = ((v + 0.5) * scale for v in (x, y, radius))
        pen.ellipse(_box(x, y, radius, scale), fill=_COVERED, outline=_OUTLINE, width=_SMOOTHING)
        if reach < _ROOM_FOR_LABEL * _SMOOTHING:  # then beside it, on the side with more room
            away = reach + _LABEL_PIXELS * _SMOOTHING * 0.6
            right += away if right < size[0] / 2 else -away
        pen.text(
            (right, down), str(number), _TEXT, font,
            anchor="mm", stroke_width=_SMOOTHING, stroke_fill=_BACKGROUND,
        )  # fmt: skip
    return layer


def _write_caption(picture: Image.Image, left: str, right: str) -> None:
    """Write two texts into the strip above the map."""
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(18)
    middle = _CAPTION_PIXELS // 2
    pen.text((12, middle), left, _TEXT, font, anchor="lm")
    pen.text((picture.width - 12, middle), right, _TEXT, font, anchor="rm")
