"""Imported by the forkserver only: does once, before forking, what every role would do first.

Loading compiled kernels and a network's first pass cost a process most of a second and a hundred
megabytes. Done here, the roles share both. Nothing here may start a thread: threads do not survive
a fork.
"""

from __future__ import annotations

import gc

import numpy as np
import torch

from actors.environments.factory import VectorEnvironment, describe_environment
from actors.environments.registration import CIRCLE_PLACEMENT_ID
from launcher import preload
from pdqn.config import NetworkConfig
from pdqn.networks import build_network
from pdqn.policy import greedy
from pdqn.wire import TRANSITION_COLUMNS, compress_block
from replay.buffer import PrioritizedBuffer, make_store
from replay.samples import importance_weights

__all__ = ["preload"]


def warm_up() -> None:
    """Step, act and construct on the smallest scale; then keep it all out of the collector."""
    torch.set_num_threads(1)
    env_args = {"map_size": 16, "radii": (2, 1)}
    spec = describe_environment(CIRCLE_PLACEMENT_ID, env_args)
    env = VectorEnvironment(spec, env_args, 2)
    observation = env.reset([0, 1])
    network = build_network(spec, NetworkConfig())
    for _ in range(3):
        observation = env.step(greedy(network, observation)).observation
    env.close()
    # The first optimizer imports a good part of torch.
    torch.optim.Adam(network.parameters(), fused=True)
    _warm_replay()
    gc.collect()
    gc.freeze()


def _warm_replay() -> None:
    spec = describe_environment("CartPole-v1", {})
    buffer = PrioritizedBuffer(
        spec,
        8,
        store=make_store("dense", spec, 8, None, 1),
        priority_exponent=0.6,
        rng=np.random.default_rng(0),
    )
    columns = {name: np.zeros(1, dtype) for name, dtype in TRANSITION_COLUMNS.items()}
    block = compress_block({"observation": np.zeros((1, 4), np.float32)}, spec)
    for _ in range(10):  # evicts, too
        buffer.insert(columns, [block], 0)
    sample = buffer.sample(4)
    buffer.update_priorities(sample.keys, importance_weights(sample.sampling_priority, 0.5))


warm_up()
