"""Encoders from the fields of an observation to features: convolutions for images, plain numbers.

``pdqn.networks.images`` says which fields are images. All other fields are flattened to one vector,
with categories one-hot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.config import NetworkConfig
from pdqn.networks.images import Image, flat_size
from pdqn.networks.sizes import IMPALA_POOLED_SIDE
from pdqn.networks.spectral import SpectralConv2d
from pdqn.specs import FieldSpec


class FlatFields:
    """Fields as one vector: numbers divided by their scale, categories (Discrete) one-hot."""

    def __init__(self, fields: Sequence[FieldSpec], config: NetworkConfig) -> None:
        self._fields = sorted(fields, key=lambda field: field.name)
        self._scaled = config.images == "space"

    @property
    def size(self) -> int:
        """Number of values in the vector."""
        return sum(flat_size(field) for field in self._fields)

    def prepare(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Build float32[batch, size], in the order of names; in a stack, the oldest frame first."""
        parts = [self._part(field, observation[field.name]) for field in self._fields]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _part(self, field: FieldSpec, values: Tensor) -> Tensor:
        flat = _flat(field, values)
        scale = field.scale if self._scaled else None
        return flat if scale is None or scale == 1 else flat * (1.0 / scale)


def _flat(field: FieldSpec, values: Tensor) -> Tensor:
    # A field of shape () has no second dimension to flatten from.
    flat = values[:, None] if values.dim() == 1 else values.flatten(1)
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

    def __init__(self, image: Image, channels: int, *, normalised: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(image.inputs, channels, 3)
        self.norm = _norm(channels, normalised)
        self.features = channels * (image.height - 2) * (image.width - 2)

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        return functional.relu(_normalised(self.norm, self.first(images))).flatten(1)


class NatureCNN(nn.Module):
    """Three convolutions (Mnih et al. 2015): 8 x 8 by 4, 4 x 4 by 2, 3 x 3 by 1."""

    def __init__(self, image: Image, channels: int, *, normalised: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(image.inputs, channels, 8, stride=4),
                nn.Conv2d(channels, 2 * channels, 4, stride=2),
                nn.Conv2d(2 * channels, 2 * channels, 3),
            ]
        )
        widths = (channels, 2 * channels, 2 * channels)
        self.norms = nn.ModuleList(_norm(width, normalised) for width in widths)
        sides = [((side - 8) // 4 + 1 - 4) // 2 + 1 - 2 for side in (image.height, image.width)]
        self.features = 2 * channels * math.prod(sides)

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            images = functional.relu(_normalised(norm, layer(images)))
        return images.flatten(1)


def _norm(channels: int, normalised: bool) -> nn.Module:
    return nn.LayerNorm(channels) if normalised else nn.Identity()


def _normalised(norm: nn.Module, images: Tensor) -> Tensor:
    """Normalise the channels of every pixel, as Gallici et al. (2024) do."""
    if isinstance(norm, nn.Identity):
        return images
    return norm(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ImpalaResNet(nn.Module):
    """The deep network of IMPALA (Espeholt et al. 2018, fig. 3): three residual stages.

    With ``spectral``, it is the variant of Beyond the Rainbow (Clark et al. 2024). The weights of
    residual convolutions have the spectral norm 1, and an adaptive max-pooling leaves 6 x 6
    features of each channel, or fewer of small images.
    """

    def __init__(self, image: Image, channels: int, *, spectral: bool = False) -> None:
        super().__init__()
        widths = [image.inputs, channels, 2 * channels, 2 * channels]
        self.stages = nn.ModuleList(_Stage(a, b, spectral) for a, b in itertools.pairwise(widths))
        sides = [-(-side // 8) for side in (image.height, image.width)]  # halved three times
        self._pooled = [min(side, IMPALA_POOLED_SIDE) for side in sides] if spectral else None
        self.features = widths[-1] * math.prod(self._pooled or sides)

    def forward(self, images: Tensor) -> Tensor:
        """Compute [batch, features] from [batch, inputs, H, W]."""
        for stage in self.stages:
            images = stage(images)
        if self._pooled is not None:
            images = _pooled(images, self._pooled)
        return functional.relu(images).flatten(1)


def _pooled(images: Tensor, sides: list[int]) -> Tensor:
    """Divide images into rows and columns, as even as possible, and take the largest of each part.

    ONNX has no operator for that: an exported or compiled network takes the largest window by
    window.
    """
    if not torch.compiler.is_compiling():
        return functional.adaptive_max_pool2d(images, sides)
    for dim, parts in zip((2, 3), sides, strict=True):
        side = images.shape[dim]
        bounds = [(k * side // parts, -(-(k + 1) * side // parts)) for k in range(parts)]
        windows = [images.narrow(dim, first, end - first).amax(dim) for first, end in bounds]
        images = torch.stack(windows, dim)
    return images


class _Stage(nn.Module):
    """A convolution, a pooling that halves each side, and two residual blocks."""

    def __init__(self, inputs: int, outputs: int, spectral: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(_residual(outputs, spectral) for _ in range(2)) for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.max_pool2d(self.first(images), 3, stride=2, padding=1)
        for block in self.blocks:
            inner = hidden
            for layer in block.children():
                inner = layer(functional.relu(inner))
            hidden = hidden + inner
        return hidden


def _residual(channels: int, spectral: bool) -> nn.Conv2d:
    if spectral:
        return SpectralConv2d(channels, channels)
    return nn.Conv2d(channels, channels, 3, padding=1)
