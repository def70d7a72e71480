"""Inputs of the Q-map network: what follows from a map, its discs and its mask without learning.

On the CPU compiled loops derive them, which take a quarter of the time of torch; on a GPU torch
does. Nothing here has parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pdqn import discs
from pdqn.jit import compiled
from pdqn.specs import ACTION_MASK

# Immediate rewards of a placement are a few percent; this scales them to the size of the map.
REWARD_SCALE = 10.0
# The network gets the density of the heaviest cells for these parts of the later discs' area.
PARTS = (1.0, 0.5, 0.25)
PLANES = 3
_NEGATIVE_ZERO = 0x8000  # as float16; all smaller patterns are in the order of their numbers


class MapInputs(NamedTuple):
    """Inputs derived from B observations of N x N cells, in n x n blocks of k x k; float32.

    A plane is the map, the scaled immediate reward of every centre, or the valid centres.

    Attributes:
        blocks: [B, n * n, 3 * k * k], the cells of each block: plane by plane, row by row.
        scalars: [B, 6 + 2 * slots].
        heaviest: [B], weight of the heaviest cells, as a share of the original map. There are as
            many of these cells as the discs after this one have.
        maps: [B, N * N], the map.
        rewards: [B, N * N], the scaled immediate rewards.
        valid: [B, N * N], 1 for valid centres.
        spread: [B, n * n], weights with which values of blocks, interpolated, have their mean over
            valid cells.
        means: [B, 3], mean over valid cells of each plane.
    """

    blocks: Tensor
    scalars: Tensor
    heaviest: Tensor
    maps: Tensor
    rewards: Tensor
    valid: Tensor
    spread: Tensor
    means: Tensor


# Gives an array of float32 without defined contents, by its name and shape.
Make: TypeAlias = Callable[[str, tuple[int, ...]], NDArray[np.float32]]


def new_array(_name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make an array; the memory is new each time."""
    return np.empty(shape, np.float32)


def derive(
    observation: Mapping[str, Tensor], block: int, interpolation: Tensor, make: Make = new_array
) -> MapInputs:
    """Derive the inputs from observations.

    Args:
        observation: fields of circle placement, [B, ...] each.
        block: side of a block, in cells.
        interpolation: float32[N, n], see ``interpolation_matrix``.
        make: function that gives the memory of large results on the CPU.
    """
    radius, progress = observation["radius"].float(), observation["progress"].float()
    on_cpu = observation["map"].device.type == "cpu"
    planes = _compiled_planes(observation, block, make) if on_cpu else _planes(observation, block)
    heaviest, densities = _heaviest(observation, radius[:, 0], planes.scales / REWARD_SCALE)
    count = planes.sums[:, 2:].clamp_min(1.0)
    size = len(interpolation)
    sizes = 8.0 / size
    placed = observation["placed"].float()
    scalars = [radius * sizes, observation["radii"].float() * sizes, placed, progress, densities]
    return MapInputs(
        blocks=planes.blocks,
        scalars=torch.cat(scalars, dim=1),
        heaviest=heaviest,
        maps=planes.maps.flatten(1),
        rewards=planes.rewards.flatten(1),
        valid=planes.valid.flatten(1),
        spread=_spread(planes.valid, interpolation) / count,
        means=planes.sums / count,
    )


def interpolation_matrix(size: int, block: int) -> Tensor:
    """Return float32[N, n]: the weights of blocks in the cells of a row, bilinearly interpolated.

    With it, ``matrix @ blocks @ matrix.T`` are the values of cells. The middles of blocks have the
    blocks' own values; cells beyond the outermost middles have theirs.
    """
    count = size // block
    middles = (np.arange(size) + 0.5) / block - 0.5
    left = np.clip(np.floor(middles), 0, max(0, count - 2)).astype(np.int64)
    share = np.clip(middles - left, 0.0, 1.0) if count > 1 else np.zeros(size)
    matrix = np.zeros((size, count), np.float32)
    matrix[np.arange(size), left] = 1.0 - share
    if count > 1:
        matrix[np.arange(size), left + 1] = share
    return torch.from_numpy(matrix)


def _spread(valid: Tensor, interpolation: Tensor) -> Tensor:
    """Sum the weights with which blocks are interpolated over valid cells, float32[B, n * n]."""
    # In this order, each product is one of matrices and not one for each map.
    rows = (valid @ interpolation).transpose(1, 2) @ interpolation
    return rows.transpose(1, 2).flatten(1)


class _Planes(NamedTuple):
    """The planes of ``MapInputs``, and what is computed with them.

    Attributes:
        maps: float32[B, N, N].
        rewards: float32[B, N, N].
        valid: float32[B, N, N].
        blocks: float32[B, n * n, 3 * k * k].
        sums: float32[B, 3], sums of the planes over valid cells.
        scales: float32[B], factors that make rewards of sums over a map.
    """

    maps: Tensor
    rewards: Tensor
    valid: Tensor
    blocks: Tensor
    sums: Tensor
    scales: Tensor


def _planes(observation: Mapping[str, Tensor], block: int) -> _Planes:
    """Derive the planes with torch, on any device."""
    maps, progress = observation["map"].float(), observation["progress"].float()
    valid = observation[ACTION_MASK].reshape(maps.shape).float()
    # The map is relative to its maximum. The weight left and the share collected give the
    # original sum, and so the exact reward of every centre.
    original = maps.sum(dim=(1, 2)) / (1.0 - progress[:, 1]).clamp_min(1e-3)
    scales = REWARD_SCALE / original.clamp_min(1e-6)
    radii = observation["radius"].float()[:, 0]
    rewards = transformed_disc_sums(maps, radii) * scales[:, None, None]
    stacked = torch.stack([maps, rewards, valid], dim=1)
    sums = (stacked * valid[:, None]).sum(dim=(2, 3))
    blocks = functional.pixel_unshuffle(stacked, block).flatten(2).transpose(1, 2)
    return _Planes(maps, rewards, valid, blocks, sums, scales)


def _compiled_planes(observation: Mapping[str, Tensor], block: int, make: Make) -> _Planes:
    """Derive the planes in compiled loops."""
    given = observation["map"].numpy()
    shape = given.shape
    count = shape[1] // block
    maps, rewards, valid = (make(name, shape) for name in ("maps", "rewards", "valid"))
    np.copyto(maps, given)  # numba does not support float16
    blocks = make("blocks", (shape[0], count * count, PLANES * block * block))
    sums, scales = np.empty((len(maps), PLANES), np.float32), np.empty(len(maps), np.float32)
    _fill_planes(
        maps,
        observation[ACTION_MASK].numpy().view(np.uint8).reshape(shape),
        observation["radius"].numpy()[:, 0].astype(np.int64),
        observation["progress"].numpy()[:, 1].astype(np.float32),
        block,
        rewards,
        valid,
        blocks,
        sums,
        scales,
    )
    return _Planes(*map(torch.from_numpy, (maps, rewards, valid, blocks, sums, scales)))


@compiled(reassociates=True)
def _fill_planes(maps, mask, radii, collected, block, rewards, valid, blocks, sums, scales):
    """Fill all from ``rewards`` on, as ``_planes`` computes it.

    Args:
        maps: float32[B, N, N].
        mask: uint8[B, N, N].
        radii: int64[B].
        collected: float32[B], shares of the original maps.
        block: side of a block, in cells.
        rewards: of ``_Planes``, as are all others.
        valid: overwritten.
        blocks: overwritten.
        sums: overwritten.
        scales: overwritten.
    """
    # Maps are float16 and relative to their maximum: single precision has all of it.
    row_sums = np.empty(maps.shape[1], np.float32)
    for b in range(len(maps)):
        total = np.float32(0.0)
        for y in range(maps.shape[1]):
            for x in range(maps.shape[1]):
                total += maps[b, y, x]
        left = max(np.float32(1.0) - collected[b], np.float32(1e-3))
        scales[b] = np.float32(REWARD_SCALE) / max(total / left, np.float32(1e-6))
        discs.disc_sums_of_map(maps[b], radii[b], row_sums, rewards[b])
        for y in range(maps.shape[1]):
            for x in range(maps.shape[1]):
                rewards[b, y, x] *= scales[b]
        _fill_blocks(maps[b], mask[b], rewards[b], block, valid[b], blocks[b], sums[b])


@compiled(reassociates=True)
def _fill_blocks(grid, mask, rewards, block, valid, blocks, sums):
    """Fill one map's ``valid``, ``blocks`` and ``sums``."""
    size, area = len(grid), block * block
    count = size // block
    weight, reward, number = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for y in range(size):
        first, line = (y // block) * count, (y % block) * block
        for x in range(size):
            valid[y, x] = mask[y, x] != 0
            weight += valid[y, x] * grid[y, x]
            reward += valid[y, x] * rewards[y, x]
            number += valid[y, x]
        for place in range(count):
            cells = blocks[first + place]
            start = place * block
            for k in range(block):
                cells[line + k] = grid[y, start + k]
                cells[area + line + k] = rewards[y, start + k]
                cells[2 * area + line + k] = valid[y, start + k]
    sums[0], sums[1], sums[2] = weight, reward, number


# ---- the heaviest cells ----


def _heaviest(
    observation: Mapping[str, Tensor], radius: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the weight of the heaviest cells, as many as the later discs have, and their density.

    Args:
        observation: fields of circle placement.
        radius: float32[B], of the disc that is placed now.
        scale: float32[B], factor that makes shares of the original map.

    Returns:
        float32[B], the share that these heaviest cells hold, 0 without a later disc. And
        float32[B, 3], the densities of all these cells, of their heaviest half and of their
        heaviest quarter. A density is relative to the mean of the original map, less 2 to bring it
        near 0.
    """
    squares = observation["radii"].float().square() * (1.0 - observation["placed"].float())
    later = math.pi * (squares.sum(dim=1) - radius.square()).clamp_min(0.0)
    maps = observation["map"].flatten(1)
    cells = maps.shape[1]
    counts = (later[:, None] * later.new_tensor(PARTS)).clamp(1, cells).long()
    sums = _largest_sums(maps, counts) * scale[:, None]
    return torch.where(later > 0, sums[:, 0], 0.0), sums / counts * cells - 2.0


def _largest_sums(values: Tensor, counts: Tensor) -> Tensor:
    """Sum the largest values of each row, float32[B, k].

    Args:
        values: float16 or float32[B, cells].
        counts: int64[B, k], how many are summed; at least 1.
    """
    if values.device.type == "cpu" and (halves := _as_halves(values.numpy())) is not None:
        counted = np.empty(counts.shape, np.float32)
        if _sum_largest(halves, _numbers(), counts.numpy(), counted):
            return torch.from_numpy(counted)
    return values.float().sort(dim=1, descending=True).values.cumsum(dim=1).gather(1, counts - 1)


def _as_halves(values: NDArray[Any]) -> NDArray[np.uint16] | None:
    """Return the bit patterns of values as float16; None if these are not exact."""
    halves = values
    if values.dtype != np.float16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves, values):
            return None
    return np.ascontiguousarray(halves).view(np.uint16)


@functools.cache
def _numbers() -> NDArray[np.float32]:
    """Return the number of every bit pattern of float16, float32[65536]."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


@compiled
def _sum_largest(halves, numbers, counts, sums):
    """Fill sums as documented in ``_largest_sums``; return False if a value is negative.

    Numbers that are not negative are in the order of their bit patterns, so counting the patterns
    sorts them.

    Args:
        halves: uint16[B, cells], bit patterns of float16.
        numbers: float32[65536], see ``_numbers``.
        counts: int64[B, k].
        sums: float32[B, k], overwritten.
    """
    found = np.zeros(_NEGATIVE_ZERO + 1, np.int32)
    for b in range(len(halves)):
        largest = 0
        for i in range(halves.shape[1]):
            pattern = halves[b, i]
            if pattern > _NEGATIVE_ZERO:
                return False
            if pattern < _NEGATIVE_ZERO:  # the negative zero is one
                found[pattern] += 1
                largest = max(largest, pattern)
        for k in range(counts.shape[1]):
            left, total, pattern = counts[b, k], 0.0, largest
            while left > 0 and pattern > 0:
                taken = min(left, found[pattern])
                total += taken * numbers[pattern]
                left -= taken
                pattern -= 1
            sums[b, k] = total
        found[: largest + 1] = 0
    return True


# ---- immediate rewards ----


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
