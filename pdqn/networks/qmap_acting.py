"""Values of a Q-map for processes that act on a CPU, in memory that is used again.

For each observation a Q-map has planes of thousands of cells. An actor returns freed memory to the
system, and would have to ask for it again with every step.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdqn.jit import compiled
from pdqn.networks.array_network import Buffers
from pdqn.networks.qmap import QMap
from pdqn.networks.qmap_inputs import REWARD_SCALE


class _Memory(threading.local):
    """Memory of the thread that acts."""

    def __init__(self) -> None:
        self._buffers = Buffers()

    def get(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array without defined contents, valid until the next call for this name."""
        return self._buffers.get(name, *shape).array


_memory = _Memory()


def map_values(network: QMap, observation: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Compute Q of a batch of observations, float32[batch, N * N]; -inf where masked.

    Args:
        network: on the CPU.
        observation: fields of circle placement.
    """
    with torch.inference_mode():
        inputs = network.prepare(observation, _memory.get)
        learned = network.learned(inputs)
        cells = network.cells(learned).flatten(1)
    values = np.empty(cells.shape, np.float32)
    parts = (inputs.maps, inputs.rewards, inputs.valid, cells)
    common = torch.cat([learned.direct, learned.common[:, None], inputs.heaviest[:, None]], dim=1)
    maps, rewards, valid, advantages = (part.numpy() for part in parts)
    _fill_values(maps, rewards, valid, advantages, common.numpy(), values)
    return values


@compiled(reassociates=True)
def _fill_values(maps, rewards, valid, cells, common, values):
    """Fill values, float32[B, N * N], as ``QMap.forward`` computes them; -inf where not valid.

    Args:
        maps: float32[B, N * N].
        rewards: float32[B, N * N], scaled.
        valid: float32[B, N * N].
        cells: float32[B, N * N], advantages interpolated between blocks.
        common: float32[B, 5]: weights of the three planes, the part that all cells have, and the
            weight of the heaviest cells.
        values: overwritten.
    """
    for b in range(len(values)):
        of_map, of_reward, of_valid, share, heaviest = common[b]
        for i in range(values.shape[1]):
            advantage = cells[b, i] + of_map * maps[b, i] + of_reward * rewards[b, i] + of_valid
            value = rewards[b, i] / np.float32(REWARD_SCALE) + heaviest * (share + advantage)
            values[b, i] = value if valid[b, i] > 0 else np.float32(-np.inf)
