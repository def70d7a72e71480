"""Actors and evaluators follow the learner, directly or through their host's relay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors import follower
from actors.follower import ParameterFollower
from pdqn.messages import Pulse
from pdqn.parameters import ParameterPublisher, Parameters
from pdqn.transport import Context, Network

OLD, NEW = (f"tcp://127.0.0.1:1|{letter * 40}" for letter in "on")


class Line:
    """A link that says what a test wants."""

    def __init__(self) -> None:
        self.pulse = Pulse()

    def poll(self) -> None:
        pass


class Host:
    """A host with a relay, here a publisher that a test feeds, and a follower."""

    def __init__(self, folder: Path) -> None:
        self.served = Context()
        self.relay = ParameterPublisher(self.served, f"ipc://{folder}/relay")
        self.context = Context(Network(relay=self.relay.endpoint))
        self.line: Any = Line()
        self.network = torch.nn.Linear(2, 1)
        self.follower = ParameterFollower(self.context, self.line, "run", self.network)

    def publish(self, generation: int, version: int) -> None:
        tensors = {name: torch.full_like(t, version) for name, t in self.tensors.items()}
        self.relay.publish(Parameters("run", generation, version, tensors))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return self.network.state_dict()

    def has(self, version: int) -> bool:
        self.relay.serve()
        self.follower.refresh()
        return self.follower.parameter_version == version

    def close(self) -> None:
        self.follower.close()
        self.relay.close()
        self.context.destroy(linger=0)
        self.served.destroy(linger=0)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def test_parameters_come_from_the_relay_though_the_learner_is_elsewhere(host: Host, eventually):
    host.line.pulse = Pulse(endpoints={"parameters": OLD})
    host.publish(0, 7)
    eventually(lambda: host.has(7))
    assert all((tensor == 7).all() for tensor in host.tensors.values())


def test_what_a_revoked_learner_sent_does_not_shut_out_the_next_ones(
    host: Host, eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(follower, "_REVOKED_SECONDS", 0.2)
    host.line.pulse = Pulse(endpoints={"parameters": OLD})
    host.publish(10**9, 10**9)
    eventually(lambda: host.has(10**9))
    host.relay.forget()
    revoked = frozenset([OLD.partition("|")[2]])
    host.line.pulse = Pulse(endpoints={"parameters": NEW}, revoked=revoked)
    host.follower.refresh()
    host.publish(1, 3)
    eventually(lambda: host.has(3))
