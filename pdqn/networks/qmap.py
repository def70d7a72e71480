"""The network for circle placement: a value for every cell of a map."""

from __future__ import annotations

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
_PATCH = 8
# Blocks of cells that the fine path sees as one. With 2 x 2 a learner step takes twice as long.
_FINE, _FINE_CHANNELS = 4, 16
# Immediate rewards of a placement are a few percent; this brings them to the size of the map.
_REWARD_SCALE = 10.0


def check_qmap(spec: EnvironmentSpec, config: NetworkConfig) -> None:
    """Refuse what the Q-map network cannot do.

    Raises:
        UsageError: stacked frames, a map of a wrong size, a distribution, options of dense layers.
    """
    if spec.frame_stack > 1:
        raise UsageError(
            f"run.frame_stack = {spec.frame_stack}: the Q-map network takes single frames; "
            "accepted is 1, or network.kind = mlp"
        )
    size = _field_shape(spec, "map")[0]
    if size % _PATCH:
        raise UsageError(f"map_size = {size}: the Q-map network needs a multiple of {_PATCH}")
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

    The value of a placement is its immediate reward, which follows from the observation, plus what
    it leaves for the circles after it, which is learned. Two paths learn it: 8 x 8 patches of the
    planes (map, immediate reward of every centre, valid centres) pass dilated residual
    convolutions that see most of the map; finer convolutions see single cells, which a patch's
    channels cannot hold. Their last layers start at zero: an untrained network plays
    exact greedy, but for the rounding of the map.
    """

    def __init__(self, spec: EnvironmentSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.size = _field_shape(spec, "map")[0]
        scalars = 1 + 2 * _field_shape(spec, "radii")[0] + 2
        planes, channels, fine = 3, resolved(config.channels), _FINE_CHANNELS
        self.condition = nn.Sequential(nn.Linear(scalars, 64), nn.ReLU())
        self.embed = nn.Conv2d(planes, channels, _PATCH, stride=_PATCH)
        self.shift = nn.Linear(64, channels)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in (1, 2, 4, 1)
        )
        self.spread = nn.Conv2d(channels, fine * (_PATCH // _FINE) ** 2, 1)
        self.fine = nn.Conv2d(planes, fine, _FINE, stride=_FINE)
        self.fine_scale = nn.Linear(64, fine)
        self.mix = nn.Conv2d(fine, fine, 3, padding=1)
        self.advantage = nn.Conv2d(fine, _FINE**2, 1)
        self.direct = nn.Linear(64, planes)
        self.value = nn.Sequential(nn.Linear(channels + 64, 64), nn.ReLU(), nn.Linear(64, 1))
        self._dueling = config.dueling
        for layer in (self.advantage, self.direct):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        # Convolutions of few cells or few channels take half the time with channels last; the
        # full-resolution planes would only pay for the conversion.
        for part in (self.layers, self.mix, self.advantage):
            part.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Planes float32[batch, 3, N, N] and scalars float32[batch, 3 + 2 slots]."""
        maps = observation["map"].float()
        mask = observation[ACTION_MASK].reshape(maps.shape).float()
        radius, progress = observation["radius"].float(), observation["progress"].float()
        # The map is relative to its maximum; what is left of it and what was collected tell the
        # original sum, and so the exact reward of every centre.
        original = maps.sum(dim=(1, 2)) / (1.0 - progress[:, 1]).clamp_min(1e-3)
        sums = disc_sums(maps, radius[:, 0])
        rewards = sums / original.clamp_min(1e-6)[:, None, None]
        planes = torch.stack([maps, _REWARD_SCALE * rewards, mask], dim=1)
        scale = 8.0 / self.size
        scalars = [
            radius * scale,
            observation["radii"].float() * scale,
            observation["placed"].float(),
            progress,
        ]
        return planes, torch.cat(scalars, dim=1)

    def forward(self, *prepared: Tensor) -> Tensor:
        """Action values, [batch, N * N]."""
        planes, scalars = prepared
        condition = self.condition(scalars)
        hidden = self._hidden(planes, condition)
        advantage = self._advantage(planes, hidden, condition)
        # What the environment will pay at once needs no learning.
        reward = planes[:, 1].flatten(1) / _REWARD_SCALE
        if not self._dueling:
            return reward + advantage
        pooled = torch.cat([hidden.mean(dim=(2, 3)), condition], dim=1)
        valid = planes[:, 2].flatten(1)
        mean = (advantage * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
        return reward + self.value(pooled) + advantage - mean

    def _hidden(self, planes: Tensor, condition: Tensor) -> Tensor:
        """The patches, having seen most of the map: [batch, channels, N / 8, N / 8]."""
        hidden = functional.relu(self.embed(planes) + self.shift(condition)[:, :, None, None])
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            hidden = hidden + functional.relu(layer(hidden))
        return hidden

    def _advantage(self, planes: Tensor, hidden: Tensor, condition: Tensor) -> Tensor:
        """What a placement leaves for later, [batch, N * N]."""
        scale = 1.0 + self.fine_scale(condition)[:, :, None, None]
        context = functional.pixel_shuffle(self.spread(hidden), _PATCH // _FINE)
        fine = functional.relu(self.fine(planes) * scale + context)
        fine = fine.contiguous(memory_format=torch.channels_last)
        fine = fine + functional.relu(self.mix(fine))
        direct = torch.bmm(self.direct(condition)[:, None], planes.flatten(2))[:, 0]
        return functional.pixel_shuffle(self.advantage(fine), _FINE).flatten(1) + direct


def _field_shape(spec: EnvironmentSpec, name: str) -> tuple[int, ...]:
    return next(field.shape for field in spec.fields if field.name == name)


def disc_sums(maps: Tensor, radii: Tensor) -> Tensor:
    """Sum of a map over a disc around every cell, float32[batch, N, N], on the maps' device.

    On the CPU by running sums, which take a third of the time and memory of the transform.
    """
    if maps.device.type != "cpu":
        return transformed_disc_sums(maps, radii)
    return torch.from_numpy(discs.disc_sums(maps.numpy(), radii.numpy().astype(np.int64)))


def transformed_disc_sums(maps: Tensor, radii: Tensor) -> Tensor:
    """Sum of a map over a disc around every cell, by fast Fourier transform.

    Args:
        maps: float32[batch, N, N].
        radii: whole numbers [batch]; a radius below 1 gives zeros.

    Returns:
        float32[batch, N, N]: entry (x, y) is the sum over cells (i, j) of the map with
        (i - x)^2 + (j - y)^2 <= r^2.
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
