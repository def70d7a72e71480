"""The network for actions that are places: a value for every pixel of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.config import NetworkConfig, resolved
from pdqn.networks.encoders import IMAGE_SIDE_MIN, FlatFields, Image, as_image
from pdqn.networks.heads import (
    categorical_support,
    dense,
    dueling,
    expected,
    in_single_precision,
    outputs_per_action,
)
from pdqn.networks.interface import QNetwork
from pdqn.specs import ACTION_MASK, EnvironmentSpec

# From this shorter side on, two or four pixels a side are a block of the dilated convolutions:
# what a few convolutions see stays about as large a part of the image, for a fraction of the time.
_BLOCK_SIDES = ((64, 4), (32, 2), (0, 1))
_DILATIONS = (1, 2, 4, 8)


def place_images(spec: EnvironmentSpec) -> tuple[Image, ...]:
    """The images, in the order of names, if all have a pixel for every action; else ()."""
    found = [_read(image, spec.num_actions) for image in map(as_image, spec.fields) if image]
    sides = {(image.height, image.width) for image in found}
    if len(sides) == 1 and math.prod(sides.pop()) == spec.num_actions:
        return tuple(found)
    return ()


def _read(image: Image, places: int) -> Image:
    """An image, its axes read so that it has so many pixels, if that can be.

    A board may have more planes than it is long, which would make its planes a side.
    """
    shape = image.field.shape
    if image.height * image.width == places or len(shape) == 2:
        return image
    channels_last = not image.channels_last
    channels, sides = (shape[2], shape[:2]) if channels_last else (shape[0], shape[1:])
    other = Image(image.field, channels, sides[0], sides[1], channels_last)
    return other if math.prod(sides) == places and other.side >= IMAGE_SIDE_MIN else image


class SpatialNetwork(QNetwork):
    """A value for every pixel: fully convolutional, for environments whose actions are places.

    Action a is the pixel in row a // W, column a % W. A place is valued by what surrounds it, with
    the same weights everywhere (Zeng et al. 2018, "Learning synergies between pushing and
    grasping"), so that what is learned in one corner holds in all. Dilated residual convolutions
    see far around, the mean and the maximum of what they find tell of the whole image, and what is
    no image shifts every channel. Large images pass them in blocks, and a convolution at full
    resolution tells the pixels of a block apart. The value of dueling (Wang et al. 2016, eq. 9)
    comes from the whole. The dense layers are noisy, and normalised, where the configuration says
    so, the convolutions never.
    """

    def __init__(self, spec: EnvironmentSpec, config: NetworkConfig) -> None:
        """Build for an environment; channels, hidden and layers are resolved."""
        super().__init__()
        self._images = place_images(spec)
        self._sides = self._images[0].height, self._images[0].width
        self._block = next(b for side, b in _BLOCK_SIDES if min(self._sides) >= side)
        seen = {image.field.name for image in self._images} | {ACTION_MASK}
        self._flat = FlatFields([field for field in spec.fields if field.name not in seen])
        atoms = outputs_per_action(config)
        planes = sum(image.inputs for image in self._images)
        channels, hidden = resolved(config.channels), resolved(config.hidden)
        self.fine = nn.Conv2d(planes, channels, 3, padding=1)
        self.embed = nn.Conv2d(planes, channels, self._block, stride=self._block)
        self.shift = nn.Linear(self._flat.size, channels) if self._flat.size else None
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d)
            for d in (_DILATIONS[k % len(_DILATIONS)] for k in range(resolved(config.layers)))
        )
        self.whole = dense(2 * channels + self._flat.size, hidden, config)
        self.norm = nn.LayerNorm(hidden) if config.layer_norm else nn.Identity()
        self.spread = dense(hidden, channels, config)
        self.advantage = dense(channels, atoms, config)
        self.value = dense(hidden, atoms, config) if config.dueling else None
        self.support = categorical_support(config)

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """float32[batch, channels, H, W] of all images, and float32[batch, values] of the rest."""
        images = [image.prepare(observation[image.field.name]) for image in self._images]
        rest = [self._flat.prepare(observation)] if self._flat.size else []
        return (torch.cat(images, dim=1), *rest)

    def forward(self, *prepared: Tensor) -> Tensor:
        """Expected returns, float[batch, H * W]."""
        return expected(self.distribution(*prepared), self.support)

    def distribution(self, *prepared: Tensor) -> Tensor:
        """Logits or quantiles, float[batch, H * W, atoms]; one atom where it is a mean."""
        planes, rest = prepared[0], list(prepared[1:])
        blocks = self._blocks(planes, rest)
        pooled = [blocks.mean(dim=(2, 3)), blocks.amax(dim=(2, 3))]
        whole = functional.relu(self.norm(self.whole(torch.cat([*pooled, *rest], dim=1))))
        pixels = self._pixels(blocks) + self.fine(planes) + self.spread(whole)[:, :, None, None]
        places = functional.relu(pixels).flatten(2).transpose(1, 2)
        return dueling(in_single_precision(self.advantage, places), self.value, whole)

    def _blocks(self, planes: Tensor, rest: list[Tensor]) -> Tensor:
        """Blocks that have seen what surrounds them, [batch, channels, rows, columns]."""
        below, right = (-side % self._block for side in self._sides)
        hidden = self.embed(functional.pad(planes, (0, right, 0, below)))
        if self.shift is not None:
            hidden = hidden + self.shift(rest[0])[:, :, None, None]
        hidden = functional.relu(hidden)
        for layer in self.layers:
            hidden = hidden + functional.relu(layer(hidden))
        return hidden

    def _pixels(self, blocks: Tensor) -> Tensor:
        """The blocks at the resolution of the image, [batch, channels, H, W]."""
        if self._block == 1:
            return blocks
        pixels = functional.interpolate(blocks, scale_factor=self._block, mode="bilinear")
        return pixels[:, :, : self._sides[0], : self._sides[1]]
