"""The actor process: it selects, steps and records, and may send or refresh its parameters."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import zmq

from actors.environments import randomness
from actors.follower import ParameterFollower
from actors.rollout import Identity, Rollout
from actors.shipper import Shipper
from pdqn.config import resolved
from pdqn.heartbeat import MAKES_ENVIRONMENTS, Heartbeat, longest_making_seconds
from pdqn.link import CoordinatorLink, role
from pdqn.messages import Welcome
from pdqn.networks import QNetwork, build_network
from pdqn.process import keep_little_free_memory
from pdqn.transport import Network

_REFRESH_SECONDS = 0.1
_NICENESS = 5


def run_actor(
    address: str,
    index: int | None = None,
    log_path: Path | None = None,
    network: Network | None = None,
) -> None:
    """Run one actor process, from joining to leaving."""
    torch.set_num_threads(1)
    # If processes outnumber cores, those that the others wait for take precedence.
    os.nice(_NICENESS)
    with role("actor", address, index, log_path, network) as (context, link, welcome):
        keep_little_free_memory(welcome.spec, resolved(welcome.config.actor.envs_per_actor))
        act(context, link, welcome)


def act(context: zmq.Context[zmq.Socket[bytes]], link: CoordinatorLink, welcome: Welcome) -> None:
    """Act until this role must stop, then ship the recorded steps."""
    network = build_network(welcome.spec, welcome.config.network)
    follower = ParameterFollower(context, link, welcome.run, network)
    identity = Identity(welcome.index, welcome.incarnation)
    randomness.seed(welcome.config.run.seed, "actor", welcome.index, welcome.incarnation)
    rollout = _make_rollout(link, welcome, network, identity)
    rollout.note_seeds(link.telemetry)
    shipper = Shipper(context, link, welcome)
    # The plan does not know how large the environments are.
    link.settle_memory()
    link.tell_ready()
    exhausted = False
    while not link.stopping:
        if follower.refresh():
            rollout.set_slot(link.pulse.actor_slot, link.pulse.actor_slots)
            rollout.set_learner_steps(follower.parameter_version or 0)
            rollout.report(link.telemetry)
        if link.exhausted and not exhausted:
            # Report at once: either the run has come to its end, or there is more to do.
            link.report()
        exhausted = link.exhausted
        if follower.parameter_version is None or link.pulse.command == "hold" or exhausted:
            link.telemetry.activity = "held"
            # Transitions gathered before a pause must not wait for its end.
            shipper.add([], follower.parameter_version or 0)
            link.poll(_REFRESH_SECONDS)
            continue
        shipper.add(rollout.step(link.telemetry), follower.parameter_version)
    shipper.add(rollout.flush(), follower.parameter_version or 0)
    shipper.finish()
    follower.close()
    rollout.close()


def _make_rollout(
    link: CoordinatorLink, welcome: Welcome, network: QNetwork, identity: Identity
) -> Rollout:
    """Make the environments, which may take minutes, and keep in touch meanwhile."""
    heartbeat = Heartbeat(link.poll, longest_making_seconds(welcome.config))
    link.telemetry.activity = MAKES_ENVIRONMENTS
    link.report()
    with heartbeat:
        pause = heartbeat.in_turn(link.wait)
        rollout = Rollout(welcome.config, welcome.spec, network, identity, pause)
    link.telemetry.activity = ""
    return rollout
