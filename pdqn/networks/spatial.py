"""The network for actions that are places: a value for every pixel of an image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.config import NetworkConfig, resolved
from pdqn.networks.encoders import FlatFields
from pdqn.networks.heads import (
    categorical_support,
    dense,
    dueling,
    expected,
    in_single_precision,
    outputs_per_action,
)
from pdqn.networks.images import place_images
from pdqn.networks.interface import QNetwork
from pdqn.networks.sizes import spatial_block
from pdqn.specs import UNSEEN, EnvironmentSpec

_DILATIONS = (1, 2, 4, 8)


class SpatialNetwork(QNetwork):
    """A value for every pixel: fully convolutional, for environments whose actions are places.

    Action a is the pixel in row a // W, column a % W. The surroundings of a place determine its
    value, with the same weights everywhere. Lessons from one corner therefore hold in all (Zeng et
    al. 2018, "Learning synergies between pushing and grasping").

    Dilated residual convolutions see far around each place. The mean and the maximum of their
    output summarise the whole image, and inputs that are not images shift every channel. Large
    images pass through in blocks; a convolution at full resolution then distinguishes the pixels of
    a block. The value of dueling (Wang et al. 2016, eq. 9) comes from the summary. The
    configuration may make the dense layers noisy or normalised, but never the convolutions.
    """

    last_layer = ("advantage", "value")

    def __init__(self, spec: EnvironmentSpec, config: NetworkConfig) -> None:
        """Build the network for an environment; channels, hidden and layers are resolved."""
        super().__init__()
        self._images = place_images(spec, config)
        self._sides = self._images[0].height, self._images[0].width
        self._block = spatial_block(min(self._sides))
        seen = {image.field.name for image in self._images} | UNSEEN
        rest = [field for field in spec.fields if field.name not in seen]
        self._flat = FlatFields(rest, config)
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
        """Derive float32[batch, planes, H, W] of images, and float32[batch, values] of the rest."""
        images = [image.prepare(observation[image.field.name]) for image in self._images]
        rest = [self._flat.prepare(observation)] if self._flat.size else []
        return (torch.cat(images, dim=1), *rest)

    def forward(self, *prepared: Tensor) -> Tensor:
        """Compute expected returns, float[batch, H * W]."""
        return expected(self.distribution(*prepared), self.support)

    def distribution(self, *prepared: Tensor) -> Tensor:
        """Compute logits or quantiles, float[batch, H * W, atoms]; one atom for a mean."""
        planes, rest = prepared[0], list(prepared[1:])
        blocks = self._blocks(planes, rest)
        pooled = [blocks.mean(dim=(2, 3)), blocks.amax(dim=(2, 3))]
        whole = functional.relu(self.norm(self.whole(torch.cat([*pooled, *rest], dim=1))))
        pixels = self._pixels(blocks) + self.fine(planes) + self.spread(whole)[:, :, None, None]
        places = functional.relu(pixels).flatten(2).transpose(1, 2)
        return dueling(in_single_precision(self.advantage, places), self.value, whole)

    def _blocks(self, planes: Tensor, rest: list[Tensor]) -> Tensor:
        """Compute blocks that have seen their surroundings, [batch, channels, rows, columns]."""
        below, right = (-side % self._block for side in self._sides)
        hidden = self.embed(functional.pad(planes, (0, right, 0, below)))
        if self.shift is not None:
            hidden = hidden + self.shift(rest[0])[:, :, None, None]
        hidden = functional.relu(hidden)
        for layer in self.layers:
            hidden = hidden + functional.relu(layer(hidden))
        return hidden

    def _pixels(self, blocks: Tensor) -> Tensor:
        """Bring the blocks to the resolution of the image, [batch, channels, H, W]."""
        if self._block == 1:
            return blocks
        pixels = functional.interpolate(blocks, scale_factor=self._block, mode="bilinear")
        return pixels[:, :, : self._sides[0], : self._sides[1]]
