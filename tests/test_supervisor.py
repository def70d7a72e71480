"""Starting, losing and restarting real processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import zmq

from launcher.coordinator.coordinator import Coordinator
from launcher.hosts.supervisor import Ended, RestartPolicy, Supervisor
from launcher.metrics.metrics import RunMetrics
from launcher.processes.forkserver import ForkServer
from pdqn.layers import build
from pdqn.messages import Welcome
from pdqn.specs import EnvironmentSpec, FieldSpec

Eventually = Callable[..., Any]

SPEC = EnvironmentSpec("CartPole-v1", (FieldSpec("observation", (4,), "float32"),), 2)
NOBODY = "ipc:///nobody/is/here"


# ---- when to start again ----


def test_each_failure_in_a_row_doubles_the_wait():
    policy = RestartPolicy(allowed=4)
    assert [policy.after_end(1.0) for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, None]


def test_the_wait_is_bounded():
    policy = RestartPolicy(allowed=100)
    waits = [policy.after_end(1.0) for _ in range(100)]
    assert waits[5:8] == [16.0, 30.0, 30.0]
    assert waits[-1] == 30.0


def test_without_restarts_the_first_end_is_the_last():
    assert RestartPolicy(allowed=0).after_end(1.0) is None


def test_a_role_that_worked_for_twenty_seconds_starts_with_a_clean_record():
    policy = RestartPolicy(allowed=2)
    assert policy.after_end(1.0) == 0.5
    assert policy.after_end(19.9) == 1.0
    assert policy.after_end(20.0) == 0.5
    assert policy.after_end(1.0) == 1.0
    assert policy.after_end(1.0) is None


def test_a_role_that_was_given_up_stays_given_up():
    policy = RestartPolicy(allowed=1)
    assert [policy.after_end(0.1) for _ in range(4)] == [0.5, None, None, None]


# ---- processes ----


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def make(
        address: str = NOBODY,
        *,
        restarts: int = 5,
        logs: bool = True,
        forkserver: ForkServer | None = None,
    ) -> Supervisor:
        folder = tmp_path / "logs" if logs else None
        made.append(Supervisor(address, folder, restarts, own_indices=logs, forkserver=forkserver))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.kill_all()


def processes(title: str) -> list[psutil.Process]:
    """List this process's descendants with a title."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if " ".join(p.cmdline()).strip() == title]


def named(eventually: Eventually, title: str) -> psutil.Process:
    return eventually(lambda: processes(title))[0]


def first_end(eventually: Eventually, supervisor: Supervisor) -> Ended:
    return eventually(supervisor.check)[0]


def test_every_process_is_named_after_its_role(make: Callable[..., Supervisor], eventually: Any):
    supervisor = make()
    supervisor.start("actor", 0)
    supervisor.start("actor", 17)
    supervisor.start("replay", 0)
    for title in ("pdqn actor 0", "pdqn actor 17", "pdqn replay 0"):
        assert named(eventually, title).is_running()
    assert supervisor.alive() == 3
    assert supervisor.alive("actor") == 2
    assert supervisor.slots()["actor", 17] == "starting"
    assert supervisor.busy()


def test_a_process_that_is_killed_is_started_again_and_given_up_in_the_end(
    make: Callable[..., Supervisor], eventually: Eventually
):
    supervisor = make(restarts=1)
    supervisor.start("replay", 3)
    first = named(eventually, "pdqn replay 3")
    first.send_signal(signal.SIGKILL)
    ended = first_end(eventually, supervisor)
    assert ended == Ended("replay", 3, first.pid, "killed by SIGKILL", 0.5)
    assert supervisor.slots()["replay", 3] == "restarting"
    assert supervisor.alive() == 0
    assert supervisor.busy()
    eventually(lambda: supervisor.check() or supervisor.alive())
    assert supervisor.restarted == {"replay": 1}
    second = named(eventually, "pdqn replay 3")
    assert second.pid != first.pid
    supervisor.kill("replay", 3)
    ended = first_end(eventually, supervisor)
    assert (ended.pid, ended.restart_seconds) == (second.pid, None)
    assert supervisor.slots()["replay", 3] == "dead"
    assert not supervisor.busy()
    assert supervisor.check() == []


def test_a_process_that_fails_tells_its_exit_code(
    make: Callable[..., Supervisor], eventually: Eventually
):
    supervisor = make(restarts=0)
    supervisor.start("no such role", 0)
    assert first_end(eventually, supervisor).cause == "exit code 1"


def test_a_role_that_is_refused_says_so_in_a_line_and_is_not_started_again(
    make: Callable[..., Supervisor], eventually: Eventually, tmp_path: Path
):
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    coordinator = Coordinator(
        context,
        "tcp://127.0.0.1:*",
        welcome=Welcome(
            "run",
            0,
            0,
            build(("test", {"actor": {"count": 1}})),
            SPEC,
            "tcp://127.0.0.1:*",
            str(tmp_path),
        ),
        metrics=RunMetrics(None),
    )
    coordinator.command(["learner"], "stop")
    supervisor = make(coordinator.endpoint, restarts=5)
    supervisor.start("learner", 0)
    ended = eventually(lambda: coordinator.poll(0.01) or supervisor.check())[0]
    context.destroy(linger=0)
    assert ended.cause == "refused"
    assert ended.restart_seconds is None
    log = (tmp_path / "logs" / "learner-0.log").read_text(encoding="utf-8")
    assert "refused this learner: the run is stopping" in log
    assert "Traceback" not in log


LEARNER = {
    "run": {"env": "CartPole-v1"},
    "actor": {
        "count": 1, "discount": 0.99, "envs_per_actor": 1, "batch_transitions": 10,
        "segment_length": 10, "window_bytes": 100_000,
    },
    "replay": {
        "capacity": 1000, "min_size": 10, "samples_per_insert": 1.0,
        "samples_per_insert_tolerance": 1e12, "store": "dense",
    },
    "learner": {"device": "cpu", "precision": "float32", "learning_rate": 1e-3, "threads": 1},
    "network": {"kind": "mlp", "hidden": 8, "layers": 1},
    "system": {"telemetry_seconds": 0.2},
}  # fmt: skip


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    context = zmq.Context()
    bind, config = "tcp://127.0.0.1:*", build(("test", LEARNER))
    welcome = Welcome("run", 0, 0, config, SPEC, bind, str(tmp_path))
    yield Coordinator(context, bind, welcome=welcome, metrics=RunMetrics(None))
    context.destroy(linger=0)


@pytest.mark.parametrize("is_freed", [True, False], ids=["freed", "never freed"])
def test_a_second_learner_is_refused_at_once_and_a_successor_tries_again_while_it_may(
    make: Callable[..., Supervisor],
    eventually: Eventually,
    coordinator: Coordinator,
    is_freed: bool,
):
    membership = coordinator.membership

    def ended_of(supervisor: Supervisor) -> Ended:
        return eventually(lambda: coordinator.poll(0.01) or supervisor.check(), 30)[0]

    # Ready before them, it forks them at once, and imports torch only once.
    server = ForkServer("learner.process")
    supervisor = make(coordinator.endpoint, restarts=2, forkserver=server)
    second = make(coordinator.endpoint, forkserver=server)
    supervisor.resize("actor", 1)
    eventually(lambda: supervisor.check() or server.is_ready)
    supervisor.resize("actor", 0)
    eventually(lambda: supervisor.check() or not supervisor.alive())
    supervisor.start("learner", 0)
    eventually(lambda: coordinator.poll(0.01) or membership.count("learner"), 30)
    second.start("learner", 1)
    ended = ended_of(second)
    assert (ended.cause, ended.restart_seconds) == ("refused", None)
    # Nobody tells the coordinator that the first one has been killed.
    supervisor.kill("learner", 0)
    assert ended_of(supervisor).cause == "killed by SIGKILL"
    ended = ended_of(supervisor)
    assert (ended.cause, ended.restart_seconds) == ("refused", 1.0)
    if is_freed:
        membership.lost("learner", 0)
        before = membership.incarnations["learner", 0]
        eventually(
            lambda: coordinator.poll(0.01) or supervisor.check() or membership.count("learner"), 30
        )
        assert membership.incarnations["learner", 0] == before + 1
    else:
        ended = ended_of(supervisor)
        assert (ended.cause, ended.restart_seconds) == ("refused", None)
    supervisor.kill_all()


def test_the_record_of_a_role_is_clean_twenty_seconds_after_it_was_ready_and_did_not_hang(
    make: Callable[..., Supervisor],
    eventually: Eventually,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
):
    supervisor, passed = make(coordinator.endpoint), [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0], sleep=time.sleep)
    for module in ("launcher.hosts.supervisor", "launcher.processes.children"):
        monkeypatch.setattr(f"{module}.time", clock)
    served = coordinator.membership.places.served

    def end_after(seconds: float, hung_seconds: float = 0.0) -> float | None:
        passed[0] += seconds
        supervisor.kill("replay", 0, hung_seconds=hung_seconds)
        ended = eventually(lambda: coordinator.poll(0.01) or supervisor.check())[0]
        coordinator.lost("replay", 0, ended.pid)
        passed[0] += 100.0  # it is due
        return ended.restart_seconds

    def start() -> None:
        supervisor.check()
        eventually(lambda: coordinator.poll(0.01) or served())
        assert supervisor.check() == [], "it hears that the replay is ready"

    supervisor.start("replay", 0)
    assert end_after(100.0) == 0.5, "before it was ready"
    supervisor.check()
    assert end_after(100.0) == 1.0, "again; a slow start is not work"
    start()
    assert end_after(10.0) == 2.0, "too soon"
    start()
    assert end_after(45.0, hung_seconds=30.0) == 4.0, "too soon, but for the time that it hung"
    start()
    assert end_after(20.0) == 0.5


def test_a_number_of_processes_grows_and_shrinks_and_who_was_sent_away_stays_away(
    make: Callable[..., Supervisor], eventually: Eventually
):
    supervisor = make()
    supervisor.resize("replay", 2)
    first = {named(eventually, f"pdqn replay {index}").pid for index in (0, 1)}
    supervisor.resize("replay", 3)
    third = named(eventually, "pdqn replay 2")
    supervisor.resize("replay", 1)
    states = supervisor.slots()
    assert (states["replay", 0], states["replay", 2]) == ("starting", "stopped")
    eventually(lambda: supervisor.check() or set(supervisor.slots()) == {("replay", 0)})
    assert supervisor.alive() == 1
    assert not third.is_running()
    supervisor.resize("replay", 2)
    again = named(eventually, "pdqn replay 1")
    assert again.pid not in first
    assert supervisor.restarted == {}


def test_the_end_of_one_that_hung_when_it_was_to_leave_is_told_and_of_those_who_left_it_is_not(
    make: Callable[..., Supervisor], eventually: Eventually
):
    supervisor = make()
    supervisor.resize("replay", 3)
    hangs = named(eventually, "pdqn replay 1")
    named(eventually, "pdqn replay 2")
    hangs.suspend()
    supervisor.resize("replay", 1)
    ended: list[Ended] = []
    eventually(lambda: ended.extend(supervisor.check()) or len(supervisor.slots()) == 2)
    assert ended == []
    assert supervisor.kill_process(hangs.pid)
    eventually(lambda: ended.extend(supervisor.check()) or len(supervisor.slots()) == 1)
    assert ended == [Ended("replay", 1, hangs.pid, "killed by SIGKILL", None, False)]


def test_asked_to_leave_they_leave_and_are_not_started_again(
    make: Callable[..., Supervisor], eventually: Eventually
):
    supervisor = make(logs=False)
    supervisor.start("replay", 0)
    supervisor.start("replay", 1)
    eventually(lambda: len(processes("pdqn replay")) == 2)
    supervisor.ask_to_leave()
    assert supervisor.join(30.0, ["replay"])
    assert all(ended.restart_seconds is None for ended in supervisor.check())
    assert not supervisor.busy()
    assert set(supervisor.slots().values()) == {"stopped"}


def test_who_is_expected_to_end_is_stopped_and_does_not_start_while_its_process_lives(
    make: Callable[..., Supervisor], eventually: Eventually
):
    supervisor = make()
    supervisor.start("replay", 0)
    lives = named(eventually, "pdqn replay 0")
    supervisor.stop_restarting()
    assert lives.is_running()
    assert supervisor.slots() == {("replay", 0): "stopped"}


def test_while_a_run_stops_a_role_that_is_still_needed_is_started_again_and_no_other(
    make: Callable[..., Supervisor], eventually: Eventually
):
    supervisor = make()
    supervisor.start("replay", 0)
    first = named(eventually, "pdqn replay 0")
    supervisor.stop_restarting(but="replay")
    first.send_signal(signal.SIGKILL)
    ended = first_end(eventually, supervisor)
    assert ended.restart_seconds == 0.1
    assert supervisor.awaits("replay")
    second = eventually(lambda: supervisor.check() or processes("pdqn replay 0"))[0]
    assert second.pid != first.pid
    assert supervisor.awaits("replay"), "it has joined nobody, so it is not ready"
    supervisor.stop_restarting()
    second.send_signal(signal.SIGKILL)
    assert first_end(eventually, supervisor).restart_seconds is None
    assert not supervisor.awaits("replay")
    assert not supervisor.busy()


def test_kill_all_leaves_nothing(make: Callable[..., Supervisor], eventually: Eventually):
    supervisor = make()
    for index in range(3):
        supervisor.start("replay", index)
    named(eventually, "pdqn replay 0").send_signal(signal.SIGKILL)
    first_end(eventually, supervisor)  # about to be started again
    supervisor.kill_all()
    assert supervisor.alive() == 0
    assert not [p for i in range(3) for p in processes(f"pdqn replay {i}")]
    supervisor.check()
    assert not supervisor.busy()


def test_killing_what_was_never_started_does_no_harm(make: Callable[..., Supervisor]):
    supervisor = make()
    supervisor.kill("learner", 0)
    supervisor.kill_all()
    assert not supervisor.busy()
