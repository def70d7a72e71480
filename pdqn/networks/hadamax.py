"""The Hadamax encoder: max-pooled products of two branches (Kooi et al. 2025)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.networks.images import Image
from pdqn.networks.sizes import HADAMAX_BLOCKS, HADAMAX_SMALL_BLOCKS, hadamax_sides


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
            _Block(inputs, outputs, *shape)
            for (inputs, outputs), shape in zip(itertools.pairwise(widths), shapes, strict=True)
        )
        self.features = widths[-1] * math.prod(hadamax_sides(image, shapes))

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        # The order in memory that branches are normalised and multiplied in.
        images = images.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            images = block(images)
        return images.flatten(1)


class _Block(nn.Module):
    """Two normalised branches that keep the image's size, their product, and a pooling."""

    def __init__(self, inputs: int, outputs: int, side: int, pool: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.Conv2d(inputs, 2 * outputs, side)
        for branch in self.branches.weight.chunk(2):
            nn.init.xavier_normal_(branch)  # as in the paper
        self._shape = (2, outputs)
        self.gain = nn.Parameter(torch.ones(self._shape))
        self.shift = nn.Parameter(torch.zeros(self._shape))
        self._before, self._after = (side - 1) // 2, side // 2
        self._pool, self._stride = pool, stride

    def forward(self, images: Tensor) -> Tensor:
        padding = (self._before, self._after) * 2
        pixels = self.branches(functional.pad(images, padding)).permute(0, 2, 3, 1)
        pixels = functional.layer_norm(pixels.unflatten(3, self._shape), self._shape[1:])
        first, second = functional.gelu(pixels * self.gain + self.shift).unbind(dim=3)
        # Without a stride, a pooling keeps the image's size.
        border = self._pool // 2 if self._stride == 1 else 0
        return functional.max_pool2d(
            (first * second).permute(0, 3, 1, 2), self._pool, self._stride, border, ceil_mode=True
        )
