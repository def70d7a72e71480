"""The Hadamax encoder: max-pooled products of two branches (Kooi et al. 2025)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.networks.images import Image
from pdqn.networks.sizes import (
    HADAMAX_BLOCKS,
    HADAMAX_SMALL_BLOCKS,
    HadamaxBlock,
    hadamax_sides,
)


class Hadamax(nn.Module):
    """Blocks of two convolutions whose GELU outputs are multiplied, then max-pooled.

    No convolution has a stride: pooling alone makes images smaller. Later blocks have twice the
    channels. The branches are always normalised, since products of small outputs vanish.
    """

    def __init__(self, image: Image, channels: int, *, small: bool) -> None:
        """Build the encoder.

        Args:
            image: the images that it encodes.
            channels: of the first block.
            small: one block, for boards, in place of the paper's three.
        """
        super().__init__()
        shapes = HADAMAX_SMALL_BLOCKS if small else HADAMAX_BLOCKS
        widths = [image.inputs, channels, *[2 * channels] * (len(shapes) - 1)]
        self.blocks = nn.ModuleList(
            HadamaxLayer(inputs, outputs, shape)
            for (inputs, outputs), shape in zip(itertools.pairwise(widths), shapes, strict=True)
        )
        self.small = small
        self.features = widths[-1] * math.prod(hadamax_sides(image, shapes))

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        # The order in memory that branches are normalised and multiplied in.
        images = images.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            images = block(images)
        return images.flatten(1)


class HadamaxLayer(nn.Module):
    """Two branches, their product, and a pooling."""

    def __init__(self, inputs: int, outputs: int, shape: HadamaxBlock) -> None:
        super().__init__()
        self.first = _Branch(inputs, outputs, shape)
        self.second = _Branch(inputs, outputs, shape)
        self.pool, self._stride = shape.pool, shape.stride

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, outputs, *sides] from [batch, inputs, H, W]; see ``hadamax_sides``."""
        product = (self.first(images) * self.second(images)).permute(0, 3, 1, 2)
        # Without a stride, a pooling keeps the image's size.
        border = self.pool // 2 if self._stride == 1 else 0
        return functional.max_pool2d(product, self.pool, self._stride, border, ceil_mode=True)


class _Branch(nn.Module):
    """A convolution, normalised over the channels of each pixel, and GELU."""

    def __init__(self, inputs: int, outputs: int, shape: HadamaxBlock) -> None:
        super().__init__()
        self.layer = nn.Conv2d(inputs, outputs, shape.side)
        nn.init.xavier_normal_(self.layer.weight)  # as in the paper
        self.norm = nn.LayerNorm(outputs)
        before, after = (shape.side - 1) // 2, shape.side // 2
        self._padding = (before, after) * 2 if shape.padded else None

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, H, W, outputs] from [batch, inputs, H, W]."""
        if self._padding is not None:
            images = functional.pad(images, self._padding)
        return functional.gelu(self.norm(self.layer(images).permute(0, 2, 3, 1)))
