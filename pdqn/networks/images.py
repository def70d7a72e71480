"""Readings of the fields of an observation as images, without torch.

An image is a field [H, W], [H, W, C] or [C, H, W]. Its height and width are both at least 8. Where
two of three axes are equal, they are the height and the width; else the channels are the shorter
outer axis. ``network.channels_axis`` sets the axis of channels instead. A field of four axes is a
stack of such images, frames first, if there are fewer frames than pixels on a side. The frames of
all stacks become channels. Pictures are divided by the largest magnitude that their space allows.

Models of earlier versions keep their reading. With ``network.images = dtype`` the channels are
always the shorter outer axis, and ``uint8`` images are divided by 255. Without
``network.fold_frames``, fields of four axes are plain numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdqn.config import NetworkConfig
from pdqn.specs import UNSEEN, EnvironmentSpec, FieldSpec

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIDE_MIN = 8
NATURE_SIDE_MIN = 36  # smallest side for its three convolutions, without padding

_AUTO = NetworkConfig()


@dataclass(frozen=True)
class Image:
    """A reading of a field as an image.

    Attributes:
        field: the field's spec.
        frames: number of frames that one observation holds.
        channels: channels of one frame.
        height: in pixels.
        width: in pixels.
        channels_last: whether channels are the last axis; also True for [H, W].
        scale: number by which the values are divided.
    """

    field: FieldSpec
    frames: int
    channels: int
    height: int
    width: int
    channels_last: bool
    scale: float

    @property
    def inputs(self) -> int:
        """Channels of the first convolution: those of all frames of all stacks."""
        return self.channels * self.frames * self.field.stack

    @property
    def side(self) -> int:
        """The shorter side, in pixels."""
        return min(self.height, self.width)

    @property
    def is_large(self) -> bool:
        """Return whether it has enough pixels for convolutions, and any channels."""
        return self.side >= IMAGE_SIDE_MIN and self.inputs > 0

    def prepare(self, values: Tensor) -> Tensor:
        """Convert a field's values [batch, *stacked_shape] to float32[batch, inputs, H, W].

        Pictures on a CPU have their channels last in memory, though not in shape: convolutions of
        large ones then take a third less time. The bytes are turned, before they become floats.
        """
        import torch

        frames = values if self.field.stack > 1 else values[:, None]
        if len(self.field.shape) == 2:
            frames = frames[..., None]
        if len(self.field.shape) == 4:
            frames = frames.flatten(1, 2)
        if self.channels_last:
            frames = frames.permute(0, 1, 4, 2, 3)
        picture = frames.flatten(1, 2)
        if picture.device.type == "cpu" and self.side >= NATURE_SIDE_MIN:
            picture = picture.contiguous(memory_format=torch.channels_last)
        numbers, factor = picture.float(), 1.0 / self.scale
        # What is a copy already needs no other, which would be as large.
        return numbers * factor if numbers is picture else numbers.mul_(factor)


def as_image(field: FieldSpec, config: NetworkConfig = _AUTO) -> Image | None:
    """Read a field as an image; None if it is not an image.

    Args:
        field: the field.
        config: its ``images``, ``channels_axis`` and ``fold_frames`` say how.
    """
    if not _may_be_image(field, config):
        return None
    image = with_axes(field, _channels_last(field, config), config)
    is_told = config.channels_axis != "auto"
    # A person knows an image that has more channels or frames than pixels on a side.
    fits = is_told or image.channels <= image.side or _has_square(field, config)
    is_stack = is_told or image.frames == 1 or image.frames < image.side
    return image if image.is_large and fits and is_stack else None


def _may_be_image(field: FieldSpec, config: NetworkConfig) -> bool:
    axes_max = 4 if config.fold_frames else 3
    other = field.name in UNSEEN or field.categories
    return not other and 2 <= len(field.shape) <= axes_max


def with_axes(field: FieldSpec, channels_last: bool, config: NetworkConfig = _AUTO) -> Image:
    """Read a field of at least two axes, whose channels are the last or the first of a frame's."""
    frames = field.shape[0] if len(field.shape) == 4 else 1
    axes = _frame_axes(field)
    height, width, channels = axes if channels_last else (*axes[1:], axes[0])
    scale = field.scale if config.images == "space" else None
    if scale is None:
        scale = 255.0 if field.dtype == "uint8" else 1.0
    return Image(field, frames, channels, height, width, channels_last, scale)


def is_guess(image: Image, sized: NetworkConfig) -> bool:
    """Return whether the channels of an image may as well be its other outer axis.

    Args:
        image: as it is read.
        sized: of a resolved kind; for ``spatial``, the number of actions tells, unless both
            readings have as many places.
    """
    told = sized.channels_axis != "auto" or _has_square(image.field, sized)
    if told or len(image.field.shape) == 2:
        return False
    other = with_axes(image.field, not image.channels_last, sized)
    same_places = other.height * other.width == image.height * image.width
    return other.side >= IMAGE_SIDE_MIN and (sized.kind != "spatial" or same_places)


def _channels_last(field: FieldSpec, config: NetworkConfig) -> bool:
    """Choose the axis of channels: as set, else beside equal sides, else the shorter outer axis."""
    axes = _frame_axes(field)
    if len(field.shape) == 2:
        return True
    if config.channels_axis != "auto":
        return config.channels_axis == "last"
    if _has_square(field, config):
        return axes[0] == axes[1]
    return axes[2] <= min(axes[:2])


def _has_square(field: FieldSpec, config: NetworkConfig) -> bool:
    """Return whether exactly two neighbouring axes of a frame are equal: height and width."""
    first, middle, last = _frame_axes(field)
    has = config.images == "space" and len(field.shape) > 2
    return has and (first == middle) != (middle == last)


def _frame_axes(field: FieldSpec) -> tuple[int, int, int]:
    """Return the sizes of the axes of one frame; a plain [H, W] has one channel."""
    axes = field.shape[-3:] if len(field.shape) > 2 else (*field.shape, 1)
    return axes[0], axes[1], axes[2]


def images(spec: EnvironmentSpec, config: NetworkConfig) -> tuple[Image, ...]:
    """List the fields that are read as images, sorted by name."""
    found = (as_image(field, config) for field in spec.fields)
    return tuple(image for image in found if image is not None)


def place_images(spec: EnvironmentSpec, config: NetworkConfig) -> tuple[Image, ...]:
    """Return the images, sorted by name, if all have one pixel for every action; else ().

    A board may have more planes than cells on a side. Its planes then look like a side, or the
    board does not look like an image. The number of actions tells which axes are its places.
    """
    seen, places = images(spec, config), spec.num_actions
    read = [_with_places(image.field, places, config) or image for image in seen]
    if not seen:
        boards = (_with_places(field, places, config) for field in spec.fields)
        read = [board for board in boards if board is not None]
    sides = {(image.height, image.width) for image in read}
    if len(sides) == 1 and math.prod(sides.pop()) == places:
        return tuple(read)
    return ()


def _with_places(field: FieldSpec, places: int, config: NetworkConfig) -> Image | None:
    """Read a field's axes so that it has ``places`` pixels; None if no reading has, or one is set.

    Where both readings have, the field alone decides.
    """
    if not _may_be_image(field, config) or config.channels_axis != "auto":
        return None
    alone = _channels_last(field, config)
    read = (with_axes(field, last, config) for last in (alone, not alone))
    fits = (image for image in read if image.height * image.width == places and image.is_large)
    return next(fits, None)


def flat_size(field: FieldSpec) -> int:
    """Return the number of values of a field in a vector, categories one-hot."""
    if field.categories:
        return field.stack * sum(field.categories)
    return math.prod(field.stacked_shape)
