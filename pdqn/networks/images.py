"""Readings of the fields of an observation as images, without torch.

An image is a field [H, W], [H, W, C] or [C, H, W]. Its height and width are both at least 8. Where
two of three axes are equal, they are the height and the width; else the channels are the shorter
outer axis. The frames of a stack become channels. Pictures are divided by the largest magnitude
that their space allows.

Models of earlier versions keep their reading (``network.images = dtype``). The channels are always
the shorter outer axis there, and ``uint8`` images are divided by 255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdqn.specs import ACTION_MASK, EnvironmentSpec, FieldSpec

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIDE_MIN = 8
NATURE_SIDE_MIN = 36  # smallest side for its three convolutions, without padding


@dataclass(frozen=True)
class Image:
    """A reading of a field as an image.

    Attributes:
        field: the field's spec.
        channels: channels of one frame.
        height: in pixels.
        width: in pixels.
        channels_last: whether channels are the last axis; also True for [H, W].
        scale: number by which the values are divided.
    """

    field: FieldSpec
    channels: int
    height: int
    width: int
    channels_last: bool
    scale: float

    @property
    def inputs(self) -> int:
        """Channels of the first convolution: those of all frames of a stack."""
        return self.channels * self.field.stack

    @property
    def side(self) -> int:
        """The shorter side, in pixels."""
        return min(self.height, self.width)

    def prepare(self, values: Tensor) -> Tensor:
        """Convert a field's values [batch, *stacked_shape] to float32[batch, inputs, H, W]."""
        frames = values if self.field.stack > 1 else values[:, None]
        if len(self.field.shape) == 2:
            frames = frames[..., None]
        if self.channels_last:
            frames = frames.permute(0, 1, 4, 2, 3)
        return frames.flatten(1, 2).float() * (1.0 / self.scale)


def as_image(field: FieldSpec, reading: str = "space") -> Image | None:
    """Read a field as an image; None if it is not an image.

    Args:
        field: the field.
        reading: ``network.images``.
    """
    shape = field.shape
    if field.name == ACTION_MASK or field.categories or len(shape) not in (2, 3):
        return None
    square = reading == "space" and len(shape) == 3 and len({*shape}) == 2
    if square and shape[0] != shape[2]:
        channels_last = shape[0] == shape[1]
    else:
        square, channels_last = False, len(shape) == 2 or shape[2] <= min(shape[:2])
    image = with_axes(field, channels_last, reading)
    small = image.side < IMAGE_SIDE_MIN or (image.channels > image.side and not square)
    return None if small or not image.channels else image


def with_axes(field: FieldSpec, channels_last: bool, reading: str) -> Image:
    """Read a field [H, W], or one of three axes whose channels are the last or the first."""
    axes = field.shape if len(field.shape) == 3 else (*field.shape, 1)
    height, width, channels = axes if channels_last else (*axes[1:], axes[0])
    scale = field.scale if reading == "space" else None
    if scale is None:
        scale = 255.0 if field.dtype == "uint8" else 1.0
    return Image(field, channels, height, width, channels_last, scale)


def images(spec: EnvironmentSpec, reading: str) -> tuple[Image, ...]:
    """List the fields that are read as images, sorted by name."""
    found = (as_image(field, reading) for field in spec.fields)
    return tuple(image for image in found if image is not None)


def place_images(spec: EnvironmentSpec, reading: str) -> tuple[Image, ...]:
    """Return the images, sorted by name, if all have one pixel for every action; else ()."""
    images = (as_image(field, reading) for field in spec.fields)
    found = [_read(image, spec.num_actions, reading) for image in images if image]
    sides = {(image.height, image.width) for image in found}
    if len(sides) == 1 and math.prod(sides.pop()) == spec.num_actions:
        return tuple(found)
    return ()


def _read(image: Image, places: int, reading: str) -> Image:
    """Choose the reading of an image's axes that has ``places`` pixels, if there is one.

    A board may have more planes than cells on a side, so that its planes look like a side.
    """
    if image.height * image.width == places or len(image.field.shape) == 2:
        return image
    other = with_axes(image.field, not image.channels_last, reading)
    fits = other.height * other.width == places and other.side >= IMAGE_SIDE_MIN
    return other if fits else image


def flat_size(field: FieldSpec) -> int:
    """Return the number of values of a field in a vector, categories one-hot."""
    if field.categories:
        return field.stack * sum(field.categories)
    return math.prod(field.stacked_shape)
