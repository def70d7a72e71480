"""Results that do not exist, and folders removed under a run: told, and survived if possible."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from launcher.folders import Folder, sweep
from launcher.records.scalars import ScalarWriter
from launcher.records.unwritten import Unwritten
from launcher.results.rescue import LastParameters, rescued
from launcher.results.saved import unsaved
from launcher.rundir import RunDirectory, is_open
from launcher.sockets import SocketsFolder
from learner.checkpoint import Saver
from learner.learner import Learner
from pdqn.errors import UsageError
from pdqn.files import RUN_ID
from pdqn.layers import CONFIG, build
from pdqn.model import read_model
from pdqn.parameters import ParameterPublisher, Parameters
from pdqn.socket_files import SocketFile
from pdqn.specs import EnvironmentSpec, FieldSpec

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Observe = Callable[["Command"], "Observed"]
ReadLines = Callable[[Path], list[dict[str, Any]]]
SPEC = EnvironmentSpec("e", (FieldSpec("observation", (3,), "float32"),), num_actions=2)
CONFIG_OF_TEST = build(
    (
        "test",
        {
            "run": {"env": "e"},
            "actor": {"count": 1, "discount": 1.0},
            "network": {"hidden": 4},
            "replay": {"samples_per_insert": 2.0},
            "learner": {
                "learning_rate": 1e-3, "device": "cpu", "precision": "float32", "threads": 1,
            },
        },
    )
)  # fmt: skip


# ---- what is saved of what was learned ----


@pytest.fixture
def learner() -> Learner:
    return Learner(CONFIG_OF_TEST, SPEC)


def save(learner: Learner, path: Path, steps: int) -> None:
    learner.learner_steps = steps
    Saver(path, CONFIG_OF_TEST, SPEC).save(learner)


def test_a_run_lacks_nothing_if_model_and_checkpoint_are_of_its_last_step(
    tmp_path: Path, learner: Learner
):
    save(learner, tmp_path, 7)
    assert unsaved(tmp_path, 7, "not saved: an earlier one") == ""


def test_a_run_without_files_says_that_nothing_can_be_used(tmp_path: Path):
    text = unsaved(tmp_path, 7, "not saved: x: No space left on device")
    assert "final_model.pth does not exist" in text
    assert "the newest checkpoint does not exist" in text
    assert "No space left on device" in text
    assert text.endswith("nothing of it can be used")


def test_files_of_an_earlier_step_are_named_with_what_they_are_good_for(
    tmp_path: Path, learner: Learner
):
    save(learner, tmp_path, 7)
    text = unsaved(tmp_path, 9, "")
    assert "final_model.pth is of step 7 and the newest checkpoint is of step 7" in text
    assert text.endswith("final_model.pth can be evaluated; --resume goes on from step 7")


def test_a_damaged_model_counts_as_none(tmp_path: Path, learner: Learner):
    save(learner, tmp_path, 7)
    (tmp_path / "final_model.pth").write_bytes(b"damaged")
    text = unsaved(tmp_path, 7, "")
    assert "final_model.pth does not exist" not in text
    assert "final_model.pth cannot be read" in text
    assert "not a model that this version reads" in text


def test_the_model_is_written_although_the_checkpoint_cannot_be(tmp_path: Path, learner: Learner):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(OSError, match="checkpoints"):
        save(learner, tmp_path, 7)
    assert "final_model.pth can be evaluated" in unsaved(tmp_path, 7, "")


def test_what_a_learner_published_last_is_the_model_if_it_ends_before_it_has_saved(
    tmp_path: Path, learner: Learner, eventually: Callable[..., Any]
):
    save(learner, tmp_path, 7)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = ParameterPublisher(context, "inproc://parameters")
    publisher.publish(Parameters("run", 0, 9, learner.online.state_dict()))

    def heard(run: str) -> LastParameters:
        last = LastParameters(context, run)
        last.follow("inproc://parameters")
        eventually(lambda: publisher.serve() or last.hear() or last._message)
        last.close()
        return last

    try:
        assert heard("another").save(tmp_path, CONFIG_OF_TEST, SPEC) is None
        assert read_model(tmp_path / "final_model.pth").parameter_version == 7
        assert heard("run").save(tmp_path, CONFIG_OF_TEST, SPEC) == 9
        assert read_model(tmp_path / "final_model.pth").parameter_version == 9
        assert heard("run").save(tmp_path, CONFIG_OF_TEST, SPEC) is None  # there is no newer one
        (tmp_path / "final_model.pth").unlink()
        (tmp_path / "final_model.pth" / "x").mkdir(parents=True)
        assert heard("run").save(tmp_path, CONFIG_OF_TEST, SPEC) is None
    finally:
        publisher.close()
        context.destroy(linger=0)
    text = rescued(tmp_path, 9, 10)
    assert "final_model.pth has the newest parameters that it published, of step 9 of 10" in text
    assert text.endswith("--resume goes on from step 7")


def test_a_run_whose_learner_published_nothing_rescues_nothing(tmp_path: Path):
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    last = LastParameters(context, "run")
    last.follow("")
    last.hear()
    assert last.save(tmp_path, CONFIG_OF_TEST, SPEC) is None
    context.destroy(linger=0)


# ---- files that cannot be written ----


def test_a_file_that_cannot_be_written_is_told_once_and_at_the_end_unless_it_is_written_later():
    said: list[str] = []
    unwritten = Unwritten(said.append)
    for _ in range(3):
        for name in ("metrics.jsonl", "state.json"):
            with unwritten.attempt(name):
                raise OSError(28, "No space left on device")
    with unwritten.attempt("state.json"):
        pass
    assert len(said) == 2
    assert unwritten.lines() == ["metrics.jsonl is not written: No space left on device"]


def test_figures_for_tensorboard_go_on_in_another_file_after_a_failure(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard"
    writer = ScalarWriter(folder)
    writer.write({"a": 1.0}, 1)
    folder.rename(tmp_path / "moved")
    folder.touch()
    with pytest.raises(OSError, match="tensorboard"):
        writer.write({"a": 2.0}, 2)
    folder.unlink()
    writer.write({"a": 3.0}, 3)
    writer.close()
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    assert [event.step for event in read.Scalars("a")] == [3]


def test_figures_for_tensorboard_are_tried_again_at_intervals_without_a_file_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 0.0
    writer = ScalarWriter(tmp_path, lambda: now)
    with monkeypatch.context() as patch:
        patch.setattr("launcher.records.scalars._append", no_room)
        for step in range(10):
            with pytest.raises(OSError, match="No space left"):
                writer.write({"a": 1.0}, step)
            now += 0.1
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        writer.write({"a": 1.0}, 10)
    assert writer.left_out == 11
    now += 60.0
    writer.write({"a": 1.0}, 11)
    assert len(list(tmp_path.iterdir())) == 1
    writer.close()


# ---- a directory that is removed, moved or replaced ----


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(CONFIG_OF_TEST, CONFIG_OF_TEST)
    directory.name_run("this")
    yield directory
    directory.close()


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_directory_on_a_full_disk_is_refused_in_one_line_and_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = RunDirectory(tmp_path / "runs" / "run")
    monkeypatch.setattr("launcher.rundir.replace_text", no_room)
    with pytest.raises(UsageError, match=r"/run cannot be written: No space left on device; make"):
        directory.write_config(CONFIG_OF_TEST, CONFIG_OF_TEST)
    assert not list((tmp_path / "runs").iterdir())


def test_a_directory_that_held_something_before_is_not_removed_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    directory = RunDirectory(tmp_path / "run")
    monkeypatch.setattr("launcher.rundir.replace_text", no_room)
    with pytest.raises(UsageError, match="cannot be written: No space left on device"):
        directory.write_config(CONFIG_OF_TEST, CONFIG_OF_TEST)
    assert (tmp_path / "run" / "notes").read_text() == "mine"


def test_a_directory_in_its_place_is_left_alone(run_dir: RunDirectory):
    assert run_dir.look() == ""
    assert run_dir.look() == ""


def test_a_removed_directory_is_made_again_with_its_settings_and_its_lock(
    run_dir: RunDirectory, read_lines: ReadLines
):
    called: list[str] = []
    run_dir.restore = lambda: called.append("restored")
    before = (run_dir.path / CONFIG).read_text(encoding="utf-8")
    shutil.rmtree(run_dir.path)
    assert "was removed" in run_dir.look()
    assert run_dir.look() == ""
    run_dir.metrics({"environment_steps": 3})
    assert called == ["restored"]
    assert (run_dir.path / CONFIG).read_text(encoding="utf-8") == before
    assert (run_dir.path / RUN_ID).read_text(encoding="utf-8") == "this"
    assert run_dir.logs.is_dir()
    assert is_open(run_dir.path)
    assert read_lines(run_dir.metrics_path) == [{"environment_steps": 3}]


def test_a_directory_that_a_save_has_begun_again_is_completed(run_dir: RunDirectory):
    shutil.rmtree(run_dir.path)
    (run_dir.path / "checkpoints" / "step-000000001").mkdir(parents=True)
    assert "was removed" in run_dir.look()
    assert (run_dir.path / CONFIG).is_file()


def test_a_moved_directory_stays_in_use_through_a_link(run_dir: RunDirectory, tmp_path: Path):
    run_dir.path.rename(tmp_path / "archive")
    assert f"was moved: the run goes on in {tmp_path / 'archive'}" in run_dir.look()
    assert run_dir.look() == ""
    run_dir.write_summary({"exit_reason": "time"})
    assert (tmp_path / "archive" / "summary.json").is_file()
    shutil.rmtree(tmp_path / "archive")
    assert "was removed" in run_dir.look()
    assert (run_dir.path / CONFIG).is_file()
    assert not run_dir.path.is_symlink()


@pytest.mark.parametrize("remains", [True, False])
def test_nothing_is_written_into_another_run_in_the_same_place(
    run_dir: RunDirectory, tmp_path: Path, remains: bool
):
    place = run_dir.path
    place.rename(tmp_path / "archive")
    if not remains:
        shutil.rmtree(tmp_path / "archive")
    place.mkdir()
    (place / RUN_ID).write_text("another", encoding="utf-8")
    assert "holds another run by now" in run_dir.look()
    assert run_dir.taken
    run_dir.write_summary({})
    run_dir.metrics({})
    assert [path.name for path in place.iterdir()] == [RUN_ID]
    assert run_dir.path == (tmp_path / "archive" if remains else tmp_path / "run-2")
    assert (run_dir.path / "summary.json").is_file()
    assert run_dir.look() == ""


def test_a_removed_file_of_lines_begins_again(run_dir: RunDirectory, read_lines: ReadLines):
    (run_dir.path / "events.jsonl").unlink()
    run_dir.metrics_path.unlink()
    assert "events.jsonl, metrics.jsonl" in run_dir.look()
    run_dir.event("running")
    assert is_open(run_dir.path)
    assert [event["event"] for event in read_lines(run_dir.path / "events.jsonl")] == ["running"]


@pytest.mark.parametrize("name", ["config.toml", "configured.toml", RUN_ID])
def test_a_removed_file_without_which_nothing_resumes_is_written_again(
    run_dir: RunDirectory, name: str
):
    before = (run_dir.path / name).read_text(encoding="utf-8")
    (run_dir.path / name).unlink()
    assert run_dir.look().startswith(f"{name} in {run_dir.path} removed")
    assert (run_dir.path / name).read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl"])
def test_one_file_of_lines_that_was_removed_begins_again_and_the_run_stays_locked(
    run_dir: RunDirectory, read_lines: ReadLines, name: str
):
    run_dir.event("before")
    run_dir.metrics({"environment_steps": 1})
    (run_dir.path / name).unlink()
    assert run_dir.look().startswith(f"{name} in {run_dir.path} removed")
    assert run_dir.look() == ""
    assert is_open(run_dir.path)
    run_dir.event("after")
    run_dir.metrics({"environment_steps": 2})
    events = [event["event"] for event in read_lines(run_dir.path / "events.jsonl")]
    steps = [line["environment_steps"] for line in read_lines(run_dir.metrics_path)]
    assert events == (["after"] if name == "events.jsonl" else ["before", "after"])
    assert steps == ([2] if name == "metrics.jsonl" else [1, 2])


def test_events_that_another_process_has_locked_are_not_taken_and_do_not_end_the_run(
    run_dir: RunDirectory,
):
    events = run_dir.path / "events.jsonl"
    events.unlink()
    with events.open("w", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process has it open"):
            run_dir.look()
    assert "events.jsonl" in run_dir.look()
    assert is_open(run_dir.path)


def test_what_an_rm_has_removed_before_it_met_a_new_file_is_written_again(run_dir: RunDirectory):
    for path in run_dir.path.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "--resume needs what is saved from now on" in run_dir.look()
    assert run_dir.look() == ""
    assert {"config.toml", "configured.toml", RUN_ID} <= {p.name for p in run_dir.path.iterdir()}
    assert run_dir.logs.is_dir()
    assert is_open(run_dir.path)


def test_a_directory_that_cannot_be_made_again_is_tried_again(run_dir: RunDirectory):
    shutil.rmtree(run_dir.path)
    run_dir.path.touch()
    for _ in range(2):
        with pytest.raises(OSError, match="run"):
            run_dir.look()
    run_dir.path.unlink()
    assert "was removed" in run_dir.look()


# ---- folders of sockets ----


def test_a_cleaner_that_respects_locks_leaves_an_open_folder_alone(tmp_path: Path):
    folder = Folder(tmp_path)
    with (tmp_path / "x").open("w"):
        cleaner = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):  # as systemd-tmpfiles does
            fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.close()
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(cleaner)


def test_a_folder_and_its_sockets_look_as_if_they_had_been_used(tmp_path: Path):
    (tmp_path / "coordinator").touch()
    for path in (tmp_path / "coordinator", tmp_path):
        os.utime(path, (1.0, 1.0))
    folder = Folder(tmp_path)
    folder.renew()
    folder.close()
    times = [path.stat().st_mtime for path in (tmp_path, tmp_path / "coordinator")]
    assert min(times) > 1.0


def test_a_removed_folder_of_sockets_is_told_and_made_again_for_this_user_alone(tmp_path: Path):
    sockets = SocketsFolder(_private(tmp_path / "sockets"))
    assert sockets.look() == ""
    shutil.rmtree(sockets.path)
    assert sockets.look().endswith("was removed: it is made again")
    assert sockets.look() == ""
    assert sockets.path.stat().st_mode & 0o777 == 0o700
    sockets.remove()
    assert not sockets.path.exists()


def test_a_folder_that_others_have_put_in_its_place_is_not_used(tmp_path: Path):
    sockets = SocketsFolder(_private(tmp_path / "sockets"))
    shutil.rmtree(sockets.path)
    sockets.path.mkdir()
    sockets.path.chmod(0o777)
    assert "a role that ends cannot come back" in sockets.look()
    assert not sockets.is_open
    assert sockets.look() == ""  # told once
    sockets.path.rmdir()
    assert "made again" in sockets.look()
    assert sockets.is_open
    sockets.remove()


def test_folders_of_processes_that_were_killed_are_removed_and_no_others(tmp_path: Path):
    left, lives, closed = (Folder(_private(tmp_path / f"pdqn-{n}")) for n in ("left", "on", "x"))
    left.mark()
    (left.path / "deep").mkdir()
    left.close()  # as the kernel does
    lives.mark()
    closed.close()  # it has no mark: perhaps somebody keeps results there
    for name in ("pdqn-open", "other"):
        folder = Folder(_private(tmp_path / name))
        folder.mark()
        folder.close()
    (tmp_path / "pdqn-open").chmod(0o755)
    (tmp_path / "pdqn-link").symlink_to(tmp_path / "other")
    (tmp_path / "pdqn-file").touch()
    before = {path.name for path in tmp_path.iterdir()}
    assert sweep([str(tmp_path), str(tmp_path / "nowhere")]) == [left.path]
    assert before - {path.name for path in tmp_path.iterdir()} == {"pdqn-left"}
    assert (tmp_path / "other" / ".temporary").exists()
    lives.close()


def _private(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def test_a_socket_that_was_removed_lets_others_in_again_and_keeps_its_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("pdqn.socket_files._LOOK_SECONDS", 0.0)
    folder = _private(tmp_path / "s")
    address = f"ipc://{folder}/x"
    with zmq.Context() as context:
        router = context.socket(zmq.ROUTER)
        router.bind(address)
        file = SocketFile(router, address)
        before, after = (context.socket(zmq.DEALER) for _ in range(2))
        try:
            for member in (before, after):
                member.connect(address)
                member.send(b"")
                assert router.poll(5000)
                router.recv_multipart()
                shutil.rmtree(folder)
                file.tend()
                assert not folder.exists(), "only the process that has made it makes it again"
                file.tend()
                _private(folder)
                file.tend()
            before.send(b"still here")
            assert router.poll(5000)
            assert router.recv_multipart()[1] == b"still here"
        finally:
            for socket in (before, after, router):
                socket.close(0)


# ---- the three together ----

RUN = [
    "launch", "--env", "CartPole-v1", "--console", "plain", "--run-dir", "run", "--actors", "1",
    "--time", "120s",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "checkpoint.period_seconds=0.5", "--set", "system.metrics_seconds=0.2",
    "--set", "evaluation.enabled=false",
]  # fmt: skip


def remove(folder: Path) -> None:
    """Remove a folder although a run writes into it meanwhile."""
    for _ in range(100):
        with contextlib.suppress(OSError):  # a file came or went
            shutil.rmtree(folder)
            return


@pytest.mark.slow
def test_a_run_survives_without_its_folders_and_tells_at_its_end_what_it_could_not_save(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    with pdqn_command(*RUN, directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        (sockets,) = Path(command._temporary.name).glob("pdqn-*")
        for folder in (run.path, sockets):
            remove(folder)
        (forkserver,) = (p for p in command.members() if "forkserver" in " ".join(p.cmdline()))
        forkserver.kill()
        run.until(lambda: (run.path / CONFIG).is_file())
        run.until(lambda: (sockets / "coordinator").exists())
        run.role("actor").kill()
        run.until(lambda: run.joined("actor", 1))
        run.role("replay").kill()
        run.role("learner").kill()
        run.until(lambda: run.joined("replay", 1) and run.joined("learner", 1))
        run.until(run.checkpoints)
        run.grows("environment_steps", "learner_steps")
        # A file in the place of a folder, and a folder in the place of a file.
        (run.path / "checkpoints").rename(tmp_path / "checkpoints")
        (run.path / "checkpoints").touch()
        (run.path / "final_model.pth").unlink()
        (run.path / "final_model.pth" / "x").mkdir(parents=True)
        command.interrupt()
        assert command.wait(20) == 1
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))
    for text in (summary["error"], command.stdout.splitlines()[-1]):
        assert "the newest checkpoint does not exist" in text
        assert "nothing of it can be used" in text
        assert f"{run.path.name}/final_model.pth" in text
    pids = [e["pid"] for e in run.events("ended") if e.get("role") == "forkserver"]
    assert pids == [forkserver.pid]
    assert any("was removed while the run went on" in text for text in summary["unwritten"])
    assert "the folder of the run's sockets, was removed: it is made again" in command.stdout
    assert "Traceback" not in command.stdout + command.stderr
