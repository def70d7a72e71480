"""The network for circle placement: a value for every cell of a map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.config import NetworkConfig, resolved
from pdqn.networks.interface import QNetwork
from pdqn.networks.products import dense
from pdqn.networks.qmap_inputs import (
    PARTS,
    PLANES,
    REWARD_SCALE,
    Make,
    MapInputs,
    derive,
    interpolation_matrix,
    new_array,
)
from pdqn.networks.sizes import field_shape, qmap_block
from pdqn.specs import EnvironmentSpec

# Approximate share of the heaviest cells that a greedy policy collects: learning starts there.
_USUAL_SHARE = 0.8


class QMap(QNetwork):
    """A value for every cell of a map: fully convolutional, for circle placement.

    The value of a placement is its immediate reward plus the value that it leaves for the later
    circles. The reward follows from the observation. The network learns the rest as a share of a
    known weight: that of the heaviest cells, as many as the later discs have. Errors therefore
    shrink with the weight that is left to collect, and the last circle's value is exact.

    The input planes are the map, the immediate reward of every centre, and the valid centres.
    Blocks of 4 x 4 cells (8 x 8 from 128 x 128 on) pass through dilated residual convolutions that
    see most of the map. Their output modulates a second look at the blocks. Each block has one
    advantage, interpolated between the middles of blocks: the remaining value changes little from
    one cell to the next. The last layers start at zero, so an untrained network plays exact greedy,
    except for the rounding of the map.
    """

    interpolation: Tensor

    def __init__(self, spec: EnvironmentSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.size = field_shape(spec, "map")[0]
        scalars = 1 + 2 * field_shape(spec, "radii")[0] + 2 + len(PARTS)
        channels = resolved(config.channels)
        self.block = block = qmap_block(self.size)
        self.condition = nn.Sequential(nn.Linear(scalars, 64), nn.ReLU())
        self.embed = nn.Conv2d(PLANES, channels, block, stride=block)
        self.shift = nn.Linear(64, channels)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in (1, 2, 4, 2, 1)
        )
        self.spread = nn.Conv2d(channels, channels, 1)
        self.fine = nn.Conv2d(PLANES, channels, block, stride=block)
        self.fine_scale = nn.Linear(64, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.advantage = nn.Conv2d(channels, 1, 1)
        self.direct = nn.Linear(64, PLANES)
        self.value = nn.Sequential(nn.Linear(channels + 64, 64), nn.ReLU(), nn.Linear(64, 1))
        matrix = interpolation_matrix(self.size, block)
        self.register_buffer("interpolation", matrix, persistent=False)
        self._dueling = config.dueling
        last = self.value[-1]
        for layer in (self.advantage, self.direct, last):
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        # Convolutions of few cells or few channels take half the time with channels last.
        for part in (self.layers, self.spread, self.mix, self.advantage):
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def prepare(self, observation: Mapping[str, Tensor], make: Make = new_array) -> MapInputs:
        """Derive inputs from observations; see ``qmap_inputs.derive``."""
        interpolation = self._interpolation(observation["map"].shape[1])
        return derive(observation, self.block, interpolation, make)

    def forward(self, *prepared: Tensor) -> Tensor:
        """Compute action values, [batch, N * N]."""
        inputs = MapInputs(*prepared)
        learned = self.learned(inputs)
        cells = self.cells(learned).flatten(1)
        planes = (inputs.maps, inputs.rewards, inputs.valid)
        for plane, weight in zip(planes, learned.direct.unbind(dim=1), strict=True):
            cells = torch.addcmul(cells, plane, weight[:, None])
        # The environment's immediate reward needs no learning.
        reward = inputs.rewards / REWARD_SCALE
        return reward + inputs.heaviest[:, None] * (learned.common[:, None] + cells)

    def chosen(self, actions: Tensor, *prepared: Tensor) -> Tensor:
        """Compute the values of one action each, [batch], without those of all others.

        Args:
            actions: int64[batch].
            prepared: the result of ``prepare``.
        """
        return self.chosen_each(actions[:, None], *prepared)[:, 0]

    def chosen_each(self, actions: Tensor, *prepared: Tensor) -> Tensor:
        """Compute the values of k actions each, [batch, k], without those of all others.

        Args:
            actions: int64[batch, k].
            prepared: the result of ``prepare``.
        """
        inputs = MapInputs(*prepared)
        learned = self.learned(inputs)
        size = math.isqrt(inputs.maps.shape[1])
        interpolation = self._interpolation(size)
        rows, columns = interpolation[actions // size], interpolation[actions % size]
        blocks = learned.advantage.unflatten(1, (interpolation.shape[1], -1))
        advantage = ((rows @ blocks) * columns).sum(2)
        planes = (inputs.maps, inputs.rewards, inputs.valid)
        here = [plane.gather(1, actions) for plane in planes]
        for values, weight in zip(here, learned.direct.unbind(dim=1), strict=True):
            advantage = torch.addcmul(advantage, values, weight[:, None])
        share = learned.common[:, None] + advantage
        return here[1] / REWARD_SCALE + inputs.heaviest[:, None] * share

    def cells(self, learned: Learned) -> Tensor:
        """Interpolate the advantages of blocks, float32[batch, N, N]."""
        count = math.isqrt(learned.advantage.shape[1])
        blocks = learned.advantage.view(-1, count, count)
        interpolation = self._interpolation(count * self.block)
        return interpolation @ blocks @ interpolation.T

    def learned(self, inputs: MapInputs) -> Learned:
        """Compute everything that has parameters, on blocks."""
        condition = self.condition(inputs.scalars)
        hidden = self._hidden(inputs.blocks, condition)
        advantage = self._advantage(inputs.blocks, hidden, condition)
        # In a lower precision, adding other terms would round away what placements differ by.
        direct = self.direct(condition).float()
        common = torch.full_like(inputs.heaviest, _USUAL_SHARE)
        if self._dueling:
            pooled = torch.cat([hidden.mean(dim=(2, 3)), condition], dim=1)
            mean = (inputs.spread * advantage).sum(1) + (inputs.means * direct).sum(1)
            common = common + self.value(pooled).float()[:, 0] - mean
        return Learned(advantage, direct, common)

    def _hidden(self, blocks: Tensor, condition: Tensor) -> Tensor:
        """Compute blocks that see most of the map: [batch, channels, n, n], channels last."""
        embedded = self._on_blocks(self.embed, blocks)
        hidden = functional.relu_(embedded + self.shift(condition)[:, :, None, None])
        for layer in self.layers:
            hidden = hidden + functional.relu_(layer(hidden))
        return hidden

    def _advantage(self, blocks: Tensor, hidden: Tensor, condition: Tensor) -> Tensor:
        """Compute what a placement leaves for later, as a share of the heaviest cells.

        The result is float32[batch, n * n], whatever the precision of the layers.
        """
        scale = 1.0 + self.fine_scale(condition)[:, :, None, None]
        fine = self._on_blocks(self.fine, blocks)
        fine = functional.relu_(torch.addcmul(self.spread(hidden), fine, scale))
        fine = fine + functional.relu_(self.mix(fine))
        return self.advantage(fine).flatten(1).float()

    def _interpolation(self, size: int) -> Tensor:
        """Return the matrix for maps of a size, which may differ from that of training."""
        if size == self.size:
            return self.interpolation
        return interpolation_matrix(size, self.block).to(self.interpolation.device)

    def _on_blocks(self, layer: nn.Conv2d, blocks: Tensor) -> Tensor:
        """Apply a convolution whose stride is its size: a dense layer for each block."""
        count = math.isqrt(blocks.shape[1])
        assert layer.bias is not None, "all of them are made with one"
        result = dense(blocks, layer.weight.flatten(1), layer.bias)
        # The channels are last in memory, as the convolutions after this one want them.
        return result.view(len(blocks), count, count, -1).permute(0, 3, 1, 2)


class Learned(NamedTuple):
    """Results of the parameters for B inputs.

    Attributes:
        advantage: float32[batch, n * n], of each block.
        direct: float32[batch, 3], weights of the planes in a cell's advantage.
        common: float32[batch], the part of the share that all cells have.
    """

    advantage: Tensor
    direct: Tensor
    common: Tensor
