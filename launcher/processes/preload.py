"""A module that the forkserver imports before it forks actors: it does once what each would do.

Importing torch, loading compiled kernels, and a network's first pass cost a process two seconds and
a hundred megabytes. In this way, all actors share that cost. Nothing here may start a thread:
threads do not survive a fork. Other roles, of which a host has only a few, do this for themselves.
"""

from __future__ import annotations

import gc

import torch

import actors.process
from actors.environments.describe import describe_environment
from actors.environments.registration import CIRCLE_PLACEMENT_ID
from actors.environments.vector import VectorEnvironment
from pdqn.config import NetworkConfig
from pdqn.networks import build_network
from pdqn.policy import greedy

__all__ = ["actors"]


def warm_up() -> None:
    """Step and act on the smallest scale; then keep all objects out of garbage collection."""
    torch.set_num_threads(1)
    env_args = {"map_size": 16, "radii": (2, 1), "rollouts": 2}
    spec = describe_environment(CIRCLE_PLACEMENT_ID, env_args)
    env = VectorEnvironment(spec, env_args, 2)
    observation = env.reset([0, 1])
    network = build_network(spec, NetworkConfig())
    for _ in range(3):
        observation = env.step(greedy(network, observation)).observation
    env.close()
    gc.collect()
    gc.freeze()


warm_up()
