"""The network for circle placement: a value for every cell of a map."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn import discs
from pdqn.config import NetworkConfig, resolved
from pdqn.errors import UsageError
from pdqn.networks.interface import QNetwork
from pdqn.specs import ACTION_MASK, EnvironmentSpec

QMAP_FIELDS = frozenset({"map", "radius", "radii", "placed", "progress", ACTION_MASK})
# Map sizes are multiples of the larger block. Large maps have large discs, so coarse blocks
# suffice.
_SMALL_BLOCK, _LARGE_BLOCK, _LARGE_MAP = 4, 8, 128
# Immediate rewards of a placement are a few percent; this scales them to the size of the map.
_REWARD_SCALE = 10.0
# Approximate share of the heaviest cells that a greedy policy collects: learning starts there.
_USUAL_SHARE = 0.8
# The network gets the density of the heaviest cells for these parts of the later discs' area.
_PARTS = (1.0, 0.5, 0.25)


def check_qmap(spec: EnvironmentSpec, config: NetworkConfig) -> None:
    """Reject what the Q-map network does not support.

    Raises:
        UsageError: the frames are stacked, the map has a wrong size, a distribution is configured,
            or an option of dense layers is set.
    """
    if spec.frame_stack > 1:
        raise UsageError(
            f"run.frame_stack = {spec.frame_stack}: the Q-map network takes single frames; "
            "accepted is 1, or network.kind = mlp"
        )
    size = _field_shape(spec, "map")[0]
    if size % _LARGE_BLOCK:
        raise UsageError(f"map_size = {size}: the Q-map network needs a multiple of {_LARGE_BLOCK}")
    if config.distribution != "none":
        raise UsageError(
            f"network.distribution = {config.distribution}: the Q-map network has a value for each "
            f"of {spec.num_actions} cells, and would need {config.atoms} times as many; use none"
        )
    for key in ("noisy", "layer_norm"):
        if getattr(config, key):
            raise UsageError(
                f"network.{key} = true: the Q-map network is convolutional, and this is for dense "
                "layers; use false"
            )


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

    def __init__(self, spec: EnvironmentSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.size = _field_shape(spec, "map")[0]
        scalars = 1 + 2 * _field_shape(spec, "radii")[0] + 2 + len(_PARTS)
        planes, channels = 3, resolved(config.channels)
        self.block = block = _LARGE_BLOCK if self.size >= _LARGE_MAP else _SMALL_BLOCK
        self.condition = nn.Sequential(nn.Linear(scalars, 64), nn.ReLU())
        self.embed = nn.Conv2d(planes, channels, block, stride=block)
        self.shift = nn.Linear(64, channels)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in (1, 2, 4, 2, 1)
        )
        self.spread = nn.Conv2d(channels, channels, 1)
        self.fine = nn.Conv2d(planes, channels, block, stride=block)
        self.fine_scale = nn.Linear(64, channels)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.advantage = nn.Conv2d(channels, 1, 1)
        self.direct = nn.Linear(64, planes)
        self.value = nn.Sequential(nn.Linear(channels + 64, 64), nn.ReLU(), nn.Linear(64, 1))
        self._dueling = config.dueling
        last = self.value[-1]
        for layer in (self.advantage, self.direct, last):
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        # Convolutions of few cells or few channels take half the time with channels last. For the
        # full-resolution planes, the conversion would cost more than it saves.
        for part in (self.layers, self.spread, self.mix, self.advantage):
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Derive planes [batch, 3, N, N], scalars [batch, 6 + 2 slots] and weights [batch].

        All are float32. A weight is that of the heaviest cells, as a share of the original map.
        There are as many of these cells as the discs after this one have.
        """
        maps = observation["map"].float()
        mask = observation[ACTION_MASK].reshape(maps.shape).float()
        radius, progress = observation["radius"].float(), observation["progress"].float()
        # The map is relative to its maximum. The weight left and the share collected give the
        # original sum, and so the exact reward of every centre.
        original = maps.sum(dim=(1, 2)) / (1.0 - progress[:, 1]).clamp_min(1e-3)
        shares = maps / original.clamp_min(1e-6)[:, None, None]
        rewards = disc_sums(shares, radius[:, 0])
        planes = torch.stack([maps, _REWARD_SCALE * rewards, mask], dim=1)
        squares = observation["radii"].float().square() * (1.0 - observation["placed"].float())
        later = math.pi * (squares.sum(dim=1) - radius[:, 0].square()).clamp_min(0.0)
        heaviest, densities = _heaviest(shares, later)
        scale = 8.0 / self.size
        scalars = [
            radius * scale,
            observation["radii"].float() * scale,
            observation["placed"].float(),
            progress,
            densities,
        ]
        return planes, torch.cat(scalars, dim=1), heaviest

    def forward(self, *prepared: Tensor) -> Tensor:
        """Compute action values, [batch, N * N]."""
        planes, scalars, heaviest = prepared
        condition = self.condition(scalars)
        hidden = self._hidden(planes, condition)
        advantage = self._advantage(planes, hidden, condition)
        # The environment's immediate reward needs no learning.
        reward = planes[:, 1].flatten(1) / _REWARD_SCALE
        if not self._dueling:
            return reward + heaviest[:, None] * (_USUAL_SHARE + advantage)
        pooled = torch.cat([hidden.mean(dim=(2, 3)), condition], dim=1)
        valid = planes[:, 2].flatten(1)
        mean = (advantage * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
        share = _USUAL_SHARE + self.value(pooled).float() + advantage - mean
        return reward + heaviest[:, None] * share

    def _hidden(self, planes: Tensor, condition: Tensor) -> Tensor:
        """Compute blocks that see most of the map: [batch, channels, N / block, N / block]."""
        hidden = functional.relu(self.embed(planes) + self.shift(condition)[:, :, None, None])
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            hidden = hidden + functional.relu(layer(hidden))
        return hidden

    def _advantage(self, planes: Tensor, hidden: Tensor, condition: Tensor) -> Tensor:
        """Compute the value that a placement leaves for later, as a share of the heaviest cells.

        The result is float32[batch, N * N], whatever the precision of the layers. In a lower
        precision, adding other terms would round away the differences between placements.
        """
        scale = 1.0 + self.fine_scale(condition)[:, :, None, None]
        fine = functional.relu(self.fine(planes) * scale + self.spread(hidden))
        fine = fine.contiguous(memory_format=torch.channels_last)
        fine = fine + functional.relu(self.mix(fine))
        direct = torch.bmm(self.direct(condition)[:, None], planes.flatten(2))[:, 0]
        blocks = self.advantage(fine).contiguous()
        cells = functional.interpolate(blocks, scale_factor=self.block, mode="bilinear")
        return cells.flatten(1).float() + direct


def _field_shape(spec: EnvironmentSpec, name: str) -> tuple[int, ...]:
    return next(field.shape for field in spec.fields if field.name == name)


def _heaviest(shares: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the weight of the heaviest cells, as many as the later discs have, and their density.

    Args:
        shares: float32[batch, N, N], shares of the map's weight.
        later: float32[batch], the area of the later discs, in cells.

    Returns:
        float32[batch], the share that these heaviest cells hold, 0 without a later disc. And
        float32[batch, 3], the densities of all these cells, of their heaviest half and of their
        heaviest quarter. A density is relative to the mean of the original map, less 2 to bring it
        near 0.
    """
    cells = shares[0].numel()
    flat = shares.flatten(1)
    if flat.device.type == "cpu":  # numpy sorts several times as fast as torch on the CPU
        ordered = torch.from_numpy(np.sort(flat.numpy()))
    else:
        ordered = flat.sort(dim=1).values
    sums = ordered.flip(1).cumsum(dim=1)
    counts = (later[:, None] * later.new_tensor(_PARTS)).clamp(1, cells).long()
    heaviest = sums.gather(1, counts - 1)
    return torch.where(later > 0, heaviest[:, 0], 0.0), heaviest / counts * cells - 2.0


def disc_sums(maps: Tensor, radii: Tensor) -> Tensor:
    """Sum a map over a disc around every cell, float32[batch, N, N], on the maps' device.

    On the CPU, it uses running sums, which take a third of the time and memory of the transform.
    """
    if maps.device.type != "cpu":
        return transformed_disc_sums(maps, radii)
    return torch.from_numpy(discs.disc_sums(maps.numpy(), radii.numpy().astype(np.int64)))


def transformed_disc_sums(maps: Tensor, radii: Tensor) -> Tensor:
    """Sum a map over a disc around every cell, by fast Fourier transform.

    Args:
        maps: float32[batch, N, N].
        radii: whole numbers [batch]; a radius below 1 gives zeros.

    Returns:
        float32[batch, N, N]: entry (x, y) is the sum over cells (i, j) of the map with (i - x)^2 +
        (j - y)^2 <= r^2.
    """
    size = maps.shape[-1]
    unique, which = torch.unique(radii.long(), return_inverse=True)
    padded = -(-(size + max(0, int(unique[-1]))) // 16) * 16
    offset = torch.arange(padded, device=maps.device)
    squared = torch.minimum(offset, padded - offset).square()
    distance = squared[:, None] + squared[None, :]
    masks = (distance <= unique.square()[:, None, None]) & (unique > 0)[:, None, None]
    spectrum = torch.fft.rfft2(masks.to(maps.dtype))[which]
    product = torch.fft.rfft2(maps, s=(padded, padded)).mul_(spectrum)
    return torch.fft.irfft2(product, s=(padded, padded))[:, :size, :size]
