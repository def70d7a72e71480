"""A host joins a run, if it fits."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from actors.environments.describe import describe_environment
from actors.environments.making import package_versions
from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.files import FileDesk, FileStore
from launcher.coordinator.membership import Membership
from launcher.hosts.agent import Part, _Agent, check_environment
from launcher.interrupts import Interrupts
from launcher.metrics.metrics import RunMetrics
from launcher.plan.machine import Machine
from launcher.plan.memory import ACTOR_BYTES
from launcher.plan.plan import actors_for_host
from launcher.sockets import SocketsFolder
from pdqn.errors import RunError, UsageError
from pdqn.layers import build
from pdqn.messages import Message, Pulse, Welcome
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.telemetry import Telemetry

if TYPE_CHECKING:
    from conftest import StartCommand

LEARNER = {
    "run": {"env": "CartPole-v1"},
    "actor": {"count": 1, "discount": 0.99},
    "replay": {
        "capacity": 1000, "min_size": 10, "samples_per_insert": 1.0,
        "samples_per_insert_tolerance": 1e12, "store": "dense",
    },
    "learner": {"device": "cpu", "precision": "float32", "learning_rate": 1e-3, "threads": 1},
    "network": {"kind": "mlp", "hidden": 8, "layers": 1},
    "system": {"telemetry_seconds": 0.2},
}  # fmt: skip
ACTOR = {"envs_per_actor": 8, "segment_length": 16, "batch_transitions": 64}
CONFIG = build(("test", {"run": {"env": "CartPole-v1"}, "actor": ACTOR}))
SPEC = describe_environment("CartPole-v1", {})


def welcome(**changes: object) -> Welcome:
    plain = Welcome("run", 0, 0, CONFIG, SPEC, "", "", package_versions("CartPole-v1"))
    return dataclasses.replace(plain, **changes)


def test_the_same_environment_is_welcome():
    check_environment(welcome())


def test_another_version_of_the_package_is_refused_with_a_sentence_that_says_which():
    there = package_versions("CartPole-v1") | {"gymnasium": "0.1"}
    sentence = (
        f"this host has {package_versions('CartPole-v1')['gymnasium']} gymnasium, the run 0.1"
    )
    with pytest.raises(UsageError, match=re.escape(sentence)):
        check_environment(welcome(versions=there))


def test_a_package_that_is_missing_is_named():
    with pytest.raises(UsageError, match=r"this host has no nowhere, the run 2.0: install that"):
        check_environment(welcome(versions={"nowhere": "2.0"}))


def test_other_observations_are_refused_with_a_sentence_that_says_which():
    other = EnvironmentSpec("CartPole-v1", (FieldSpec("observation", (5,), "float32"),), 2)
    with pytest.raises(UsageError, match=r"another environment on this host: its fields is .*4"):
        check_environment(welcome(spec=other))


def test_an_environment_that_is_not_here_is_refused():
    config = build(("test", {"run": {"env": "Nowhere-v0"}}))
    with pytest.raises(UsageError, match="Nowhere"):
        check_environment(welcome(config=config, versions={}))


def test_the_package_of_an_environment_is_the_one_that_makes_it():
    assert list(package_versions("CartPole-v1")) == ["gymnasium"]
    assert {"gymnasium", "pdqn"} == set(package_versions("pdqn/CirclePlacement-v0"))
    assert "numpy" in package_versions("numpy.random:factory")


@pytest.mark.parametrize(
    ("cores", "memory_bytes", "actors"),
    [(32, 10**12, 32), (1, 10**12, 1), (64, 10 * ACTOR_BYTES, 7), (4, 1, 1)],
)
def test_a_host_gets_an_actor_a_core_as_far_as_its_memory_goes(
    cores: int, memory_bytes: int, actors: int
):
    here = dataclasses.replace(machine(), cores=cores, ram_available_bytes=memory_bytes)
    assert actors_for_host(here, CONFIG, SPEC) == actors


def machine() -> Machine:
    return Machine(
        hostname="here", system="Linux", cores=1, physical_cores=1, logical_cores=1,
        ram_total_bytes=1, ram_available_bytes=1, gpus=(), open_files_soft=1024,
        open_files_hard=1024, shm_free_bytes=0, versions={}, optional={},
    )  # fmt: skip


class Supervised:
    """A supervisor that only records what it was asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., bool]:
        return lambda *_, **__: self.asked.append(name) or name == "busy"


class Line:
    """A link to a run that has no place left for this host."""

    def __init__(self) -> None:
        self.pulse, self.telemetry, self.silent_seconds = Pulse(), Telemetry(), 0.0
        self.left: list[str] = []
        self.over = False

    def poll(self, timeout_seconds: float = 0.0) -> None:
        if self.over:
            raise RunError("it is over")

    def leave(self, reason: str) -> None:
        self.left.append(reason)


def test_a_host_that_cannot_go_on_lets_its_roles_leave_and_says_why(tmp_path: Path):
    supervised, line = Supervised(), Line()
    folder = SocketsFolder(tmp_path)
    here: Any = (line, welcome(), supervised, None, Part("actor", 2), str, folder)
    agent = _Agent(*here)
    line.over = True
    with pytest.raises(RunError, match="it is over"):
        agent.run(Interrupts())
    assert line.left == ["it is over"]
    asked = supervised.asked
    assert asked.index("ask_to_leave") < asked.index("join") < asked.index("kill_all")


def test_actors_that_are_forked_get_the_limit_of_open_files_that_they_need(tmp_path: Path):
    supervised = Supervised()
    here: Any = (
        Line(),
        welcome(),
        supervised,
        None,
        Part("actor", 2),
        str,
        SocketsFolder(tmp_path),
    )
    _Agent(*here)._resize()
    assert supervised.asked.index("share_limits") < supervised.asked.index("resize")


def test_the_place_of_a_learner_that_ended_is_free_although_its_hosts_reports_are_lost(
    pdqn_command: StartCommand,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    """Lose what a host says after its learner is killed, as when a connection breaks."""
    to_lose, lost = 0, []
    receive = Membership.receive

    def lossy(members: Membership, identity: bytes, message: Message, *others: Any) -> Any:
        member = members.places.find(identity)
        if member is not None and member.key.role == "host" and len(lost) < to_lose:
            lost.append(message)
            return []
        return receive(members, identity, message, *others)

    monkeypatch.setattr(Membership, "receive", lossy)
    context, bind = zmq.Context(), "tcp://127.0.0.1:*"
    config, over_tcp = build(("test", LEARNER)), "tcp://{host}:*"
    there = Welcome("run", 0, 0, config, SPEC, over_tcp, str(tmp_path / "run"))
    coordinator = Coordinator(
        context,
        bind,
        welcome=there,
        metrics=RunMetrics(None),
        files=FileDesk(FileStore(tmp_path, 1)),
    )
    members = coordinator.membership

    def learner(incarnation: int) -> Any:
        coordinator.poll(0.01)
        found = members.places.at("learner", 0)
        return found if found and found.key.incarnation == incarnation else None

    try:
        command = pdqn_command(
            "learner",
            "--join",
            coordinator.endpoint,
            "--insecure",
            directory=tmp_path / "elsewhere",
        )
        with command:
            first = eventually(lambda: learner(0), 60)
            to_lose = 3
            os.kill(first.pid, signal.SIGKILL)
            eventually(lambda: learner(1), 60)
            assert len(lost) == 3
            assert "starts again" in command.stderr
            command.interrupt()
            eventually(lambda: coordinator.poll(0.01) or command.process.poll() is not None, 30)
            assert command.wait() == 0, command.stderr
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("module", ["launcher.hosts.agent", "replay.process"])
def test_joining_and_replay_do_without_torch_and_environments(module: str):
    check = f"import sys, {module}; print({{'torch', 'gymnasium'}} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == "set()"
