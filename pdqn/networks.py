"""Q-networks: observation in, one value for every action out.

Every network has two parts. ``prepare`` derives inputs from observations and has no parameters,
so the online and the target network share its result; ``forward`` maps its result to
float32[batch, num_actions]. Masks are applied by who chooses or bootstraps, not here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn import discs
from pdqn.config import NetworkConfig
from pdqn.errors import UsageError
from pdqn.specs import ACTION_MASK, EnvironmentSpec

_PATCH = 8
_QMAP_FIELDS = {"map", "radius", "radii", "placed", "progress", ACTION_MASK}
# Immediate rewards of a placement are a few percent; this brings them to the size of the map.
_REWARD_SCALE = 10.0


class QNetwork(Protocol):
    """What actors and learner need of a network."""

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Inputs of ``forward`` from a batch of unpacked observations; no parameters involved."""
        ...

    def __call__(self, *prepared: Tensor) -> Tensor:
        """Action values, float[batch, num_actions]."""
        ...


def network_kind(spec: EnvironmentSpec, config: NetworkConfig) -> str:
    """The kind of network for an environment: the configured one, or the one that fits.

    Raises:
        UsageError: the configured kind cannot take the environment's observations.
    """
    names = {field.name for field in spec.fields}
    if config.kind == "auto":
        return "qmap" if names >= _QMAP_FIELDS else "mlp"
    if config.kind == "qmap" and not names >= _QMAP_FIELDS:
        raise UsageError(
            f"network.kind = qmap needs the observation fields {', '.join(sorted(_QMAP_FIELDS))}; "
            f"{spec.id} has {', '.join(sorted(names))}"
        )
    return config.kind


def build_network(spec: EnvironmentSpec, config: NetworkConfig) -> MLP | QMap:
    """A freshly initialised network for an environment.

    Raises:
        UsageError: no network fits the environment's observations.
    """
    if network_kind(spec, config) == "mlp":
        inputs = sum(math.prod(f.stacked_shape) for f in spec.fields if f.name != ACTION_MASK)
        return MLP(inputs, spec.num_actions, config.hidden, config.layers, dueling=config.dueling)
    if spec.frame_stack > 1:
        raise UsageError(
            f"run.frame_stack = {spec.frame_stack}: the Q-map network takes single frames; "
            "accepted is 1, or network.kind = mlp"
        )
    by_name = {field.name: field for field in spec.fields}
    size = by_name["map"].shape[0]
    if size % _PATCH:
        raise UsageError(f"map_size = {size}: the Q-map network needs a multiple of {_PATCH}")
    slots = by_name["radii"].shape[0]
    return QMap(size, slots, channels=config.channels, dueling=config.dueling)


class MLP(nn.Module):
    """Dense layers over the concatenated observation, for vectors.

    Dueling (Wang et al. 2016, eq. 9): Q = V + A - mean(A).
    """

    def __init__(
        self, inputs: int, num_actions: int, hidden: int, layers: int, *, dueling: bool
    ) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        self.trunk = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.advantage = nn.Linear(hidden, num_actions)
        self.value = nn.Linear(hidden, 1) if dueling else None

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """float32[batch, inputs]: all fields but the mask, flattened, in the order of names.

        Of a stacked field, the frames follow each other, oldest first.
        """
        names = sorted(name for name in observation if name != ACTION_MASK)
        # A field of shape () has no second dimension to flatten from.
        return (torch.cat([observation[n][..., None].flatten(1).float() for n in names], dim=1),)

    def forward(self, inputs: Tensor) -> Tensor:
        """Action values, [batch, num_actions]."""
        for layer in self.trunk:
            inputs = functional.relu(layer(inputs))
        advantage = self.advantage(inputs)
        if self.value is None:
            return advantage
        return self.value(inputs) + advantage - advantage.mean(dim=1, keepdim=True)


class QMap(nn.Module):
    """A value for every cell of a map: fully convolutional, for circle placement.

    The planes (map, immediate reward of every centre, valid centres) are embedded as 8 x 8
    patches, pass dilated residual convolutions that see most of the map, and are shuffled back to
    full resolution. A patch's channels cannot hold every cell's exact reward, so the planes also
    reach the output directly, weighted by what the episode's scalars say (radii, progress).
    """

    def __init__(self, size: int, slots: int, *, channels: int, dueling: bool) -> None:
        super().__init__()
        self.size = size
        scalars = 1 + 2 * slots + 2
        planes = 3
        self.embed = nn.Conv2d(planes, channels, _PATCH, stride=_PATCH)
        self.condition = nn.Sequential(nn.Linear(scalars, 64), nn.ReLU())
        self.shift = nn.Linear(64, channels)
        self.direct = nn.Linear(64, planes)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d) for d in (1, 2, 4, 1)
        )
        self.advantage = nn.Conv2d(channels, _PATCH * _PATCH, 1)
        self.value = nn.Sequential(nn.Linear(channels + 64, 64), nn.ReLU(), nn.Linear(64, 1))
        self.dueling = dueling
        nn.init.zeros_(self.advantage.bias)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            self.advantage.weight.mul_(0.1)
        # Dilated convolutions take half the time with channels last; the full-resolution planes
        # would only pay for the conversion.
        self.layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

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

    def forward(self, planes: Tensor, scalars: Tensor) -> Tensor:
        """Action values, [batch, N * N]."""
        condition = self.condition(scalars)
        hidden = functional.relu(self.embed(planes) + self.shift(condition)[:, :, None, None])
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            hidden = hidden + functional.relu(layer(hidden))
        direct = torch.bmm(self.direct(condition)[:, None], planes.flatten(2))[:, 0]
        advantage = functional.pixel_shuffle(self.advantage(hidden), _PATCH).flatten(1) + direct
        if not self.dueling:
            return advantage
        pooled = torch.cat([hidden.mean(dim=(2, 3)), condition], dim=1)
        valid = planes[:, 2].flatten(1)
        mean = (advantage * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
        return self.value(pooled) + advantage - mean


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
