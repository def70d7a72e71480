"""Encoders from the fields of an observation to features: convolutions for images, plain numbers.

An image is a field [H, W], [H, W, C] or [C, H, W]. Its height and width are both at least 8. Where
two of three axes are equal, they are the height and the width; else the channels are the shorter
outer axis. The frames of a stack become channels. Pictures are divided by the largest magnitude
that their space allows. All other fields are flattened to one vector, with categories one-hot.

Models of earlier versions keep their reading (``network.images = dtype``). The channels are always
the shorter outer axis there, and ``uint8`` images are divided by 255.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.specs import ACTION_MASK, FieldSpec

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


class FlatFields:
    """Fields as one vector: numbers divided by their scale, categories (Discrete) one-hot."""

    def __init__(self, fields: Sequence[FieldSpec], reading: str = "space") -> None:
        self._fields = sorted(fields, key=lambda field: field.name)
        self._scaled = reading == "space"

    @property
    def size(self) -> int:
        """Number of values in the vector."""
        return sum(_flat_size(field) for field in self._fields)

    def prepare(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Build float32[batch, size], in the order of names; in a stack, the oldest frame first."""
        parts = [self._part(field, observation[field.name]) for field in self._fields]
        return torch.cat(parts, dim=1)

    def _part(self, field: FieldSpec, values: Tensor) -> Tensor:
        flat = _flat(field, values)
        scale = field.scale if self._scaled else None
        return flat if scale is None or scale == 1 else flat * (1.0 / scale)


def _flat_size(field: FieldSpec) -> int:
    if field.categories:
        return field.stack * sum(field.categories)
    return math.prod(field.stacked_shape)


def _flat(field: FieldSpec, values: Tensor) -> Tensor:
    # A field of shape () has no second dimension to flatten from.
    flat = values[..., None].flatten(1)
    if not field.categories:
        return flat.float()
    ends = list(itertools.accumulate(field.categories))
    sizes = zip(ends, field.categories, field.start, strict=True)
    starts = [end - size - first for end, size, first in sizes]
    total = ends[-1]
    frames = range(field.stack)
    shift = torch.tensor([total * k + s for k in frames for s in starts], device=flat.device)
    one_hot = torch.zeros(flat.shape[0], field.stack * total, device=flat.device)
    return one_hot.scatter_(1, flat.long() + shift, 1.0)


class Convolutions(nn.Module):
    """One 3 x 3 convolution, for small grids such as MinAtar's (Young and Tian 2019)."""

    def __init__(self, image: Image, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(image.inputs, channels, 3)
        self.features = channels * (image.height - 2) * (image.width - 2)

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        return functional.relu(self.first(images)).flatten(1)


class NatureCNN(nn.Module):
    """Three convolutions (Mnih et al. 2015): 8 x 8 by 4, 4 x 4 by 2, 3 x 3 by 1."""

    def __init__(self, image: Image, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(image.inputs, channels, 8, stride=4),
                nn.Conv2d(channels, 2 * channels, 4, stride=2),
                nn.Conv2d(2 * channels, 2 * channels, 3),
            ]
        )
        sides = [((side - 8) // 4 + 1 - 4) // 2 + 1 - 2 for side in (image.height, image.width)]
        self.features = 2 * channels * math.prod(sides)

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        for layer in self.layers:
            images = functional.relu(layer(images))
        return images.flatten(1)


class ImpalaResNet(nn.Module):
    """The deep network of IMPALA (Espeholt et al. 2018, fig. 3): three residual stages."""

    def __init__(self, image: Image, channels: int) -> None:
        super().__init__()
        widths = [image.inputs, channels, 2 * channels, 2 * channels]
        self.stages = nn.ModuleList(_Stage(a, b) for a, b in itertools.pairwise(widths))
        sides = [-(-side // 8) for side in (image.height, image.width)]  # halved three times
        self.features = widths[-1] * math.prod(sides)

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        for stage in self.stages:
            images = stage(images)
        return functional.relu(images).flatten(1)


class _Stage(nn.Module):
    """A convolution, a pooling that halves each side, and two residual blocks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(outputs, outputs, 3, padding=1) for _ in range(2))
            for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.max_pool2d(self.first(images), 3, stride=2, padding=1)
        for block in self.blocks:
            inner = hidden
            for layer in block.children():
                inner = layer(functional.relu(inner))
            hidden = hidden + inner
        return hidden
