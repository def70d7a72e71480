"""Roles whose environments take long to make, and what becomes of one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from test_flood import Listening, config_of, session_of
from test_supervisor import make, named  # noqa: F401 - a fixture
from test_waiting import actor_config

from actors import process
from actors.rollout import Identity
from launcher.hosts.supervisor import Ended, Supervisor
from launcher.metrics.counters import MemberKey
from launcher.metrics.roster import Roster
from launcher.run.ends import Ends
from pdqn.heartbeat import Heartbeat
from pdqn.messages import Welcome
from pdqn.process import DUMP
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.telemetry import Telemetry

Eventually = Callable[..., Any]
SPEC = EnvironmentSpec("slow", (FieldSpec("observation", (4,), "float32"),), 2)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr("pdqn.heartbeat._LATE_SECONDS", 0.0)
        patch.setattr("pdqn.heartbeat._PERIOD_SECONDS", 0.01)
        yield


class Link:
    """A coordinator's link that counts how often each thread keeps in touch."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        self.beats: list[tuple[str, str]] = []

    def poll(self, seconds: float = 0.0) -> None:
        self.beats.append((threading.current_thread().name, self.telemetry.activity))

    def report(self) -> None:
        self.poll()

    def wait(self, seconds: float) -> None:
        self.beats.append(("waits", ""))


def test_an_actor_keeps_in_touch_while_it_makes_its_environments(
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    link: Any = Link()
    welcome = Welcome("r", 0, 0, actor_config(10**6), SPEC, "", "")

    class Slow:
        def __init__(self, *arguments: Any) -> None:
            # One that failed is rebuilt after a pause, in contact with the coordinator.
            *_, pause = arguments
            pause(1.0)
            eventually(lambda: sum(name == "heartbeat" for name, _ in link.beats) > 3)

    monkeypatch.setattr(process, "Rollout", Slow)
    network: Any = None
    process._make_rollout(link, welcome, network, Identity(0, 0))
    beats = [doing for name, doing in link.beats if name == "heartbeat"]
    assert set(beats) == {"makes its environments"}
    assert ("waits", "") in link.beats
    assert link.telemetry.activity == ""


def test_one_that_hangs_is_silent_in_the_end(eventually: Eventually):
    beats: list[int] = []
    heartbeat = Heartbeat(lambda: beats.append(1), longest_seconds=0.2)
    with heartbeat:
        eventually(lambda: beats)
        threading.Event().wait(0.3)
        before = len(beats)
        threading.Event().wait(0.1)
        assert len(beats) == before


def test_a_role_that_hangs_writes_its_stacks_into_its_log_before_it_is_ended(
    make: Callable[..., Supervisor],  # noqa: F811
    eventually: Eventually,
    tmp_path: Path,
):
    supervisor, log = make(), tmp_path / "logs" / "replay-0.log"
    supervisor.start("replay", 0)
    role = named(eventually, "pdqn replay 0")
    eventually(lambda: catches_dump(role))

    def stacks() -> str:
        before = len(log.read_text("utf-8"))
        role.send_signal(DUMP)
        # The main thread's outermost frame is the last.
        eventually(lambda: "in <module>" in log.read_text("utf-8")[before:])
        return log.read_text("utf-8")[before:]

    eventually(lambda: "in join" in stacks())
    before = len(log.read_text("utf-8"))

    def ended_of_one_that_is_condemned_again_and_again() -> list[Ended]:
        supervisor.kill("replay", 0, hung_seconds=30.0)
        return supervisor.check()

    (ended,) = eventually(ended_of_one_that_is_condemned_again_and_again)
    assert ended == Ended("replay", 0, role.pid, "killed by SIGKILL", 0.5)
    text = log.read_text("utf-8")[before:]
    assert "Current thread" in text
    assert "in join" in text, "it waited for a coordinator that does not exist"


def catches_dump(role: psutil.Process) -> bool:
    status = Path("/proc", str(role.pid), "status").read_text("ascii")
    return int(status.partition("SigCgt:")[2].split()[0], 16) >> 11 & 1 == 1


class Silence:
    """A run whose actors have been silent for some seconds, and are doing something or nothing."""

    def __init__(self, folder: Path, silent: dict[int, float], activity: str = "") -> None:
        self.silent, self.killed = silent, list[int]()
        members = [
            SimpleNamespace(key=MemberKey("actor", i, 0), pid=1, agent="", activity=activity)
            for i in silent
        ]
        membership = SimpleNamespace(
            silent=lambda limit: [m for m in members if silent[m.key.index] > limit],
            silent_seconds=lambda member: silent[member.key.index],
            silent_hosts=lambda limit: [],
        )
        coordinator: Any = SimpleNamespace(membership=membership, lost=lambda role, index: None)
        supervisor: Any = SimpleNamespace(
            slots=lambda: {("actor", 0): "alive"},
            kill=lambda role, index, hung_seconds: self.killed.append(index),
        )
        self.console = Listening()
        self.session = session_of(config_of({"env": "CartPole-v1"}), folder, self.console)
        self.ends = Ends(self.session, coordinator, supervisor)


def test_a_limit_that_a_role_was_ended_for_is_doubled_and_its_setting_is_named(tmp_path: Path):
    run = Silence(tmp_path, {0: 31.0, 1: 5.0})
    run.ends.look()
    assert run.killed == [0]
    (line,) = run.console.said
    assert "actor 0: not heard for 30 s (system.heartbeat_timeout_seconds), is ended" in line
    assert "actor-0.log); its successor has 60 s" in line
    run.silent[0] = 59.0
    run.ends.look()
    assert run.killed == [0], "the successor may be silent for longer"
    for seconds in (61.0, 121.0, 241.0, 481.0, 601.0):
        run.silent[0] = seconds
        run.ends.look()
    assert run.killed == [0] * 6
    assert "its successor has 600 s" in run.console.said[-1]
    run.session.run_dir.close()


def test_one_that_said_it_makes_its_environments_may_be_silent_for_as_long_as_that_may_take(
    tmp_path: Path,
):
    run = Silence(tmp_path, {0: 299.0}, "makes its environments")
    run.ends.look()
    assert run.killed == [], "native code may hold Python's lock, as ale-py's does for 128 games"
    run.silent[0] = 301.0
    run.ends.look()
    assert run.killed == [0]
    run.session.run_dir.close()


def test_a_run_that_all_actors_have_left_says_so_and_says_when_it_goes_on(tmp_path: Path):
    console = Listening()
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path, console)
    present = {"replay": 1, "learner": 1, "actor": 2}
    membership = SimpleNamespace(
        silent=lambda limit: [], silent_hosts=lambda limit: [], count=lambda role: present[role]
    )
    coordinator: Any = SimpleNamespace(membership=membership)
    ends = Ends(session, coordinator, Any)  # pyright: ignore[reportArgumentType]
    session.enter("running")
    ends.look()
    present["actor"] = 0
    ends.look()
    present["actor"] = 1
    ends.look()
    ends.look()
    assert console.said == [], "one that is started again at once"
    present["actor"] = 0
    for _ in range(3):
        ends.look()
    assert console.said == ["the run stands still: no actor is in it; it goes on when one joins"]
    present["actor"] = 2
    for _ in range(3):
        ends.look()
    assert console.said[1:] == ["the run goes on: all roles are there again"]
    session.enter("stopping")
    present.update(actor=0, learner=0)
    for _ in range(3):
        ends.look()
    assert len(console.said) == 2, "at its end all leave"
    session.run_dir.close()


def test_a_run_without_a_single_step_of_an_environment_has_failed(tmp_path: Path):
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path, Listening())
    assert session.conclude("time", Roster.of(())) == 1
    assert str(session.failure).startswith("nothing was learned: no environment took a step")


def test_one_whose_learner_took_no_step_says_what_it_waits_for(tmp_path: Path):
    config = config_of({"env": "CartPole-v1"})
    session = session_of(config, tmp_path, Listening())
    summary = session._summary("steps")
    assert summary["warning"] == (
        "nothing was learned: the learner takes its first step when replay has 64 transitions "
        "(replay.min_size)"
    )
    assert session._summary("interrupted")["warning"] is None
    session.run_dir.close()
