"""Disks that hang: nobody waits for them but the thread that writes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from actors.environments.describe import describe_environment
from launcher import rundir
from launcher.console.console import SilentConsole
from launcher.coordinator.files import FileDesk, FileStore
from launcher.interrupts import Interrupts
from launcher.metrics.roster import Roster
from launcher.records.records import Records
from launcher.records.writer import Stall, Writer
from launcher.run.session import Session
from launcher.rundir import EVENTS, METRICS, RunDirectory
from pdqn.errors import RunError
from pdqn.heartbeat import Heartbeat
from pdqn.layers import build
from pdqn.messages import Filed, FilePiece
from pdqn.model_head import FINAL_MODEL

if TYPE_CHECKING:
    from conftest import Observed, StartCommand

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]


class Disk:
    """A disk that hangs from ``hang`` to ``answer``."""

    def __init__(self) -> None:
        self._answers = threading.Event()
        self._answers.set()
        self.written: list[str] = []

    def hang(self) -> None:
        self._answers.clear()

    def answer(self) -> None:
        self._answers.set()

    def wait(self) -> None:
        assert self._answers.wait(60)

    def write(self, text: str) -> Callable[[], None]:
        def work() -> None:
            self.wait()
            self.written.append(text)

        return work


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.answer()


# ---- the thread that writes ----


def test_what_waits_for_a_disk_that_hangs_is_written_in_order_once_it_answers(disk: Disk):
    writer = Writer()
    disk.hang()
    for text in ("a", "b", "c"):
        assert writer.put(disk.write(text))
    assert not writer.wait(0.0)
    assert disk.written == []
    assert writer.left == 3
    disk.answer()
    assert writer.wait(60)
    assert disk.written == ["a", "b", "c"]
    assert writer.stalled_seconds == 0.0


def test_what_does_not_fit_into_memory_is_left_out_and_counted(disk: Disk, eventually: Eventually):
    writer = Writer(most_bytes=10_000)
    disk.hang()
    writer.put(disk.write("first"))
    eventually(lambda: writer.stalled_seconds > 0)
    taken = [writer.put(disk.write(str(number)), 3000) for number in range(4)]
    assert taken == [True, True, False, False]
    assert (writer.left_out, writer.left_out_bytes) == (2, 6000)
    assert writer.put(disk.write("state"), 1 << 20, key="state.json"), "it has a place of its own"
    disk.answer()
    assert writer.wait(60)
    assert disk.written == ["first", "0", "1", "state"]
    assert writer.put(disk.write("later"), 3000)
    assert writer.wait(60)


def test_of_what_replaces_a_file_only_the_newest_is_written(disk: Disk, eventually: Eventually):
    writer = Writer()
    disk.hang()
    writer.put(disk.write("first"), key="a")
    eventually(lambda: writer.stalled_seconds > 0)
    for text in ("old", "new"):
        writer.put(disk.write(text), key="b")
    writer.put(disk.write("again"), key="a")
    assert writer.has("a")
    assert writer.left == 3
    disk.answer()
    assert writer.wait(60)
    assert disk.written == ["first", "new", "again"]
    assert not writer.has("a")


def test_a_fault_of_the_program_is_raised_where_it_ends_the_run_and_the_rest_is_written(disk: Disk):
    def fault() -> None:
        raise KeyError("a fault")

    writer = Writer()
    writer.put(fault)
    writer.put(disk.write("the rest"))
    assert writer.wait(60)
    assert disk.written == ["the rest"]
    with pytest.raises(KeyError, match="a fault"):
        writer.check()
    writer.check()


def test_a_signal_can_write_in_the_middle_of_writing(disk: Disk):
    writer = Writer()
    with writer._changed:  # as where the main thread was interrupted
        assert writer.put(disk.write("at the end"))
        assert writer.wait(60)
    assert disk.written == ["at the end"]


def test_a_disk_that_hangs_is_told_at_longer_and_longer_intervals_and_its_return_once():
    stall = Stall("runs/a")
    told = [(seconds, stall.turn(float(seconds), 0)) for seconds in range(45)]
    assert [seconds for seconds, line in told if line] == [10, 20, 40]
    waits = "the run goes on; what it writes waits in memory"
    assert told[10][1] == f"runs/a has not answered for 10 s: {waits}"
    assert stall.turn(0.0, 0) == "runs/a answers again, after 44 s"
    assert stall.turn(0.0, 0) == ""
    assert stall.turn(9.0, 0) == "", "a slow disk is not news"
    assert stall.turn(12.0, 3).endswith("has not answered for 12 s: the run goes on; "
                                        "3 lines had no room")  # fmt: skip
    assert stall.turn(0.1, 4).endswith("after 12 s: 4 lines had no room and were left out")


# ---- the files of a run ----


@pytest.fixture
def hanging(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Provide the disk of the run's directory."""
    append, replace = rundir._append, rundir.replace_text

    def slow_append(*arguments: Any) -> None:
        disk.wait()
        append(*arguments)

    def slow_replace(*arguments: Any, **options: Any) -> None:
        disk.wait()
        replace(*arguments, **options)

    monkeypatch.setattr("launcher.rundir._append", slow_append)
    monkeypatch.setattr("launcher.rundir.replace_text", slow_replace)
    monkeypatch.setattr("launcher.run.state.replace_text", slow_replace)
    return disk


CONFIG = build(("test", {
    "run": {"env": "CartPole-v1"}, "actor": {"count": 1},
    "replay": {"capacity": 1000, "samples_per_insert": 1.0, "min_size": 100},
    "system": {"pictures": False},
}))  # fmt: skip


def test_lines_keep_the_time_and_the_order_in_which_they_came(
    hanging: Disk, tmp_path: Path, read_lines: ReadLines
):
    records = Records(RunDirectory(tmp_path), CONFIG)
    hanging.hang()
    for number in range(3):
        records.event("noted", number=number)
        records.line({"environment_steps": number})
    assert not records.flush(0.0)
    hanging.answer()
    records.close()
    assert records.flush(60)
    events = read_lines(tmp_path / EVENTS)
    assert [event["number"] for event in events] == [0, 1, 2]
    assert sorted(event["clock"] for event in events) == [event["clock"] for event in events]
    lines = read_lines(tmp_path / METRICS)
    assert [line["environment_steps"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("steps", [0, 7])
def test_a_run_that_ends_while_its_disk_hangs_says_so_and_fails(
    hanging: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
):
    monkeypatch.setattr("launcher.records.records._END_SECONDS", 0.3)
    spec = describe_environment("CartPole-v1", {})
    session = Session(CONFIG, spec, RunDirectory(tmp_path), SilentConsole(), Interrupts())
    session.metrics._learner_steps = steps
    hanging.hang()
    assert session.conclude("interrupted", Roster.of(())) == 1
    assert session.failure is not None
    assert f"{tmp_path} has not answered for " in session.failure
    assert " s: not all is written that was to be" in session.failure
    learned = "nothing tells whether what was learned is saved" in session.failure
    assert learned == (steps > 0)


def test_a_run_that_ends_while_its_disk_hangs_waits_for_it(
    hanging: Disk, tmp_path: Path, read_lines: ReadLines
):
    spec = describe_environment("CartPole-v1", {})
    session = Session(CONFIG, spec, RunDirectory(tmp_path), SilentConsole(), Interrupts())
    hanging.hang()
    session.records.event("noted")
    threading.Timer(0.5, hanging.answer).start()
    assert session.conclude("interrupted", Roster.of(())) == 0
    assert [event["event"] for event in read_lines(tmp_path / EVENTS)] == ["noted", "ended"]
    assert json.loads((tmp_path / "summary.json").read_text())["unwritten"] == []


def test_ctrl_c_ends_the_wait_for_a_disk_that_hangs(hanging: Disk, tmp_path: Path):
    spec, interrupts = describe_environment("CartPole-v1", {}), Interrupts()
    session = Session(CONFIG, spec, RunDirectory(tmp_path), SilentConsole(), interrupts)
    hanging.hang()

    def press() -> None:
        interrupts.count += 1

    threading.Timer(0.5, press).start()
    assert session.conclude("time", Roster.of(())) == 1
    hanging.answer()


def test_a_start_is_covered_once_the_state_that_reserves_it_is_on_the_disk(
    hanging: Disk, tmp_path: Path
):
    spec = describe_environment("CartPole-v1", {})
    session = Session(CONFIG, spec, RunDirectory(tmp_path), SilentConsole(), Interrupts())
    hanging.hang()
    session.state.reserve_around("actor", 3)
    session.save_state()
    assert not session.state.covers("actor", 3, 0)
    hanging.answer()
    assert session.records.flush(60)
    assert session.state.covers("actor", 3, 0)
    session.run_dir.close()


# ---- files of roles on other hosts ----


def test_the_files_of_other_hosts_wait_for_the_disk_beside_the_loop_up_to_a_bound(
    disk: Disk, tmp_path: Path
):
    writer = Writer()
    desk = FileDesk(FileStore(tmp_path, keep=1), writer.put)
    disk.hang()
    writer.put(disk.wait)
    for offset in range(100):
        desk.ask(b"learner", "learner", FilePiece(FINAL_MODEL, 0, offset, 100, b"x"))
    assert desk.is_busy
    assert desk.receives("learner")
    assert list(desk.answered()) == []
    disk.answer()
    assert writer.wait(60)
    answers = [answer for _, answer in desk.answered()]
    assert answers == [Filed(FINAL_MODEL, 0, offset, "") for offset in range(32)]
    assert not desk.is_busy


# ---- roles ----


def test_a_role_keeps_in_touch_while_a_disk_holds_it_up_and_only_then(
    disk: Disk, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pdqn.heartbeat._LATE_SECONDS", 0.0)
    monkeypatch.setattr("pdqn.heartbeat._PERIOD_SECONDS", 0.01)
    beats: list[str] = []
    heartbeat = Heartbeat(lambda: beats.append(threading.current_thread().name))
    with heartbeat:
        eventually(lambda: len(beats) > 3)
    assert set(beats) == {"heartbeat"}
    before = len(beats)
    with heartbeat:
        pass
    threading.Event().wait(0.1)
    assert len(beats) <= before + 1


def test_a_heartbeat_that_nobody_needs_any_more_has_no_thread(
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pdqn.heartbeat._LATE_SECONDS", 0.0)
    monkeypatch.setattr("pdqn.heartbeat._PERIOD_SECONDS", 0.01)
    monkeypatch.setattr("pdqn.heartbeat._IDLE_SECONDS", 0.05)
    beats: list[int] = []
    heartbeat = Heartbeat(lambda: beats.append(threading.get_ident()))
    for _ in range(2):
        del beats[:]
        with heartbeat:
            eventually(lambda: beats)
        eventually(lambda: beats[0] not in {thread.ident for thread in threading.enumerate()})


def test_a_machine_without_room_for_a_thread_costs_a_role_its_heartbeat_and_not_its_work(
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    heartbeat = Heartbeat(lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with heartbeat:
            assert heartbeat._thread is None
    with heartbeat:
        assert heartbeat._thread is not None, "there is room again"


def test_what_keeping_in_touch_raises_ends_the_role(
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pdqn.heartbeat._LATE_SECONDS", 0.0)
    monkeypatch.setattr("pdqn.heartbeat._PERIOD_SECONDS", 0.01)
    raised: list[str] = []

    def refused() -> None:
        raised.append("refused")
        raise RunError("no longer has a place for this role")

    heartbeat = Heartbeat(refused)
    with pytest.raises(RunError, match="no longer has a place"), heartbeat:
        eventually(lambda: raised)
    with heartbeat:
        pass


# ---- all of it ----

RUN = [
    "launch", "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run", "--actors", "1",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "system.metrics_seconds=0.2", "--set", "evaluation.enabled=false",
    "--set", "system.pictures=false",
]  # fmt: skip


def test_a_run_hears_its_roles_and_ctrl_c_while_its_directory_hangs_and_then_ends_well(
    pdqn_command: StartCommand, observe: Callable[..., Observed], tmp_path: Path
):
    with pdqn_command(*RUN, "--time", "120s", directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        # Whoever opens it to write waits until somebody reads.
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "fifo").rename(run.path / METRICS)
        command.interrupt()
        run.until(lambda: "stopping" in command.stdout)
        run.until(lambda: not [role for role in command.members() if "learner" in role.name()])
        assert command.process.poll() is None
        assert "not left in time" not in command.stdout
        reader = os.open(run.path / METRICS, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert command.wait(20) == 0, command.stderr
            assert json.loads(os.read(reader, 1 << 20).splitlines()[-1])["environment_steps"] > 0
        finally:
            os.close(reader)
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    assert summary["transitions"]["lost"] == 0
    assert summary["error"] is None
