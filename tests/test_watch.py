"""A run watched from elsewhere: by its directory, and by its address."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_console import snapshot, starting

from launcher.console.dashboard import render
from launcher.console.watch import Address, Directory, watch
from launcher.interrupts import Interrupts
from launcher.metrics.snapshot import Snapshot
from launcher.rundir import RunDirectory
from pdqn.errors import RunError, UsageError
from pdqn.layers import build

if TYPE_CHECKING:
    from conftest import StartCommand

Eventually = Callable[..., Any]

RUN = [
    "launch", "--env", "CartPole-v1", "--run-dir", "run", "--console", "plain", "--actors", "1",
    "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "evaluation.enabled=false", "--set", "system.telemetry_seconds=0.2",
]  # fmt: skip


@pytest.mark.parametrize("view", [snapshot(), starting(), snapshot(evaluation=None, headline=None)])
def test_a_snapshot_survives_json(view: Snapshot):
    seen = Snapshot.from_map(json.loads(json.dumps(view.to_map())))
    assert seen.members == view.members
    assert seen.evaluation == view.evaluation
    assert seen.headline == view.headline
    assert seen.history == {name: tuple(series) for name, series in view.history.items()}
    assert seen == view


def test_numbers_that_are_not_finite_reach_those_who_watch_as_unknown():
    figures = {"train/loss": math.nan, "time/fps": math.inf, "train/q_mean": 0.5}
    history = {"train/loss": (0.5, math.nan, math.inf)}
    view = snapshot(figures=figures, history=history)
    seen = Snapshot.from_map(json.loads(json.dumps(view.to_map(), allow_nan=False)))
    assert [seen.value(name) for name in figures] == [None, None, 0.5]
    assert seen.history == {"train/loss": (0.5, None, None)}
    for size in ((80, 24), (200, 50)):
        assert render(seen, *size).renderables


def written(path: Path, stage: str) -> RunDirectory:
    directory = RunDirectory(path)
    directory.write_config(build(), build())
    view = snapshot(stage=stage).to_map()
    directory.write_snapshot({"snapshot": view, "said": 0, "messages": []})
    return directory


def test_a_run_that_was_killed_is_seen_and_then_reported(tmp_path: Path):
    directory = written(tmp_path, "running")
    source = Directory(tmp_path)
    found = source.look()
    assert found is not None
    assert source.look() is None, "it goes on, and has written nothing new"
    directory.close()
    with pytest.raises(RunError, match="ended without a last snapshot"):
        source.look()


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a run directory"):
        Directory(tmp_path)


def test_a_folder_that_cannot_be_looked_into_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UsageError, match="File name too long"):
        Directory(tmp_path / ("r" * 300))

    def private(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", private)
    with pytest.raises(UsageError, match="Permission denied"):
        Directory(tmp_path)


@pytest.mark.parametrize("content", ["", '{"snapshot": ', "[]", "\x00"])
@pytest.mark.parametrize("name", ["summary.json", "snapshot.json"])
def test_a_damaged_file_ends_in_one_line_that_names_it(tmp_path: Path, name: str, content: str):
    written(tmp_path, "done").close()
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=rf"{name} cannot be read"):
        watch(str(tmp_path), "plain", Interrupts())


def damaged(change: Callable[[Any], Any]) -> dict[str, Any]:
    """Build the content of a run's view, with a change that this version would not write."""
    shown = json.loads(json.dumps(snapshot().to_map()))
    changed = change(shown)
    return {"snapshot": shown if changed is None else changed, "said": 0, "messages": []}


def setting(*path: Any, value: Any) -> Callable[[Any], Any]:
    def change(shown: Any) -> None:
        *parents, last = path
        for key in parents:
            shown = shown[key]
        shown[last] = value

    return change


DAMAGES: dict[str, Callable[[Any], Any]] = {
    "the snapshot is a text": lambda _: "running",
    "the snapshot is a list": lambda _: [1],
    "the figures are missing": lambda shown: shown.pop("figures") and None,
    "the stage is missing": lambda shown: shown.pop("stage") and None,
    "the history is a list": setting("history", value=[]),
    "a series is a number": setting("history", "time/fps", value=1.0),
    "a point of a series is a text": setting("history", "time/fps", value=["1"]),
    "a point of a series is not finite": setting("history", "time/fps", value=[math.inf]),
    "the figures are a list": setting("figures", value=["time/fps"]),
    "a figure is a text": setting("figures", "time/fps", value="fast"),
    "a figure is a truth": setting("figures", "time/fps", value=True),
    "a figure is not finite": setting("figures", "time/fps", value=math.nan),
    "a figure is larger than any float": setting("figures", "time/fps", value=10**400),
    "a count is larger than any float": setting("rejected", "bad shape", value=10**400),
    "the time is a text": setting("elapsed_seconds", value="now"),
    "the time is unknown": setting("elapsed_seconds", value=None),
    "the progress is not finite": setting("progress", value=math.inf),
    "the stage is a number": setting("stage", value=3),
    "the environment is a list": setting("env", value=["x"]),
    "the headline is a number": setting("headline", value=1),
    "the members are a number": setting("members", value=3),
    "a member is a list": setting("members", 0, value=["actor"]),
    "a member's state is another": setting("members", 0, "state", value="asleep"),
    "a member's state is a list": setting("members", 0, "state", value=[]),
    "a member's load is a text": setting("members", 0, "cpu_percent", value="9"),
    "a member's index is a fraction": setting("members", 0, "index", value=0.5),
    "a rejection is counted in words": setting("rejected", "bad shape", value="ten"),
    "the evaluation is a number": setting("evaluation", value=1.0),
    "a baseline is a text": setting("evaluation", "baselines", "random", value="0.2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_snapshot_of_another_kind_is_of_another_version(tmp_path: Path, damage: str):
    written(tmp_path, "done").close()
    seen = damaged(DAMAGES[damage])
    (tmp_path / "snapshot.json").write_text(json.dumps(seen))
    with pytest.raises(RunError, match="another version of pdqn"):
        watch(str(tmp_path), "plain", Interrupts())


def test_watching_ends_when_its_reader_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = written(tmp_path, "running")
    reading, writing = os.pipe()
    interrupts = Interrupts()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        watching = threading.Thread(target=watch, args=(str(tmp_path), "json", interrupts))
        watching.start()
        assert os.read(reading, 20).startswith(b'{"event":"progress"')
        assert watching.is_alive(), "the run goes on, and somebody reads"
        os.close(reading)
        watching.join(5)
        ended = not watching.is_alive()
        interrupts.count = 1
        watching.join()
    directory.close()
    assert ended


def test_an_address_that_is_none_is_refused_and_one_without_a_run_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
):
    with pytest.raises(UsageError, match=r"tcp://nowhere has no port; expected tcp://HOST:PORT"):
        Address("tcp://nowhere")
    monkeypatch.setattr("launcher.console.watch._PATIENCE_SECONDS", 0.0)
    source = Address("tcp://127.0.0.1:9", insecure=True)
    with pytest.raises(RunError, match=r"tcp://127\.0\.0\.1:9: no run answers"):
        source.look()
    source.close()


def test_a_run_is_watched_by_directory_and_by_address_until_it_ends_and_not_ended_by_leaving(
    pdqn_command: StartCommand, eventually: Eventually, tmp_path: Path
):
    with pdqn_command(*RUN, "--bind", "127.0.0.1", directory=tmp_path) as run:
        eventually(lambda: "others with --join tcp://" in run.stdout, 60)
        address = run.stdout.split("others with --join ")[1].split()[0]
        eventually((tmp_path / "run" / "snapshot.json").exists, 60)
        by_path = ["watch", "run", "--console", "json"]
        key = ["--key", "run/keys/local.key"]
        by_address = ["watch", address, *key, "--console", "plain"]
        with (
            pdqn_command(*by_path, directory=tmp_path) as first,
            pdqn_command(*by_address, directory=tmp_path) as second,
        ):
            eventually(lambda: "learner steps" in second.stdout, 60)
            eventually(lambda: '"stage":"running"' in first.stdout, 60)
            with pdqn_command("watch", "run", "--console", "plain", directory=tmp_path) as leaving:
                eventually(lambda: "env steps" in leaving.stdout, 60)
                leaving.interrupt()
                assert leaving.wait(20) == 0, leaving.stderr
            assert run.process.poll() is None
            os.kill(run.process.pid, signal.SIGINT)
            assert run.wait(20) == 0, run.stderr
            assert first.wait(20) == 0, first.stderr
            assert second.wait(20) == 0, second.stderr
    events = [json.loads(line) for line in first.stdout.splitlines()]
    assert events[-1]["event"] == "summary"
    assert events[-1]["summary"]["exit_reason"] == "interrupted"
    texts = [event["text"] for event in events if event["event"] == "message"]
    assert len(texts) == len(set(texts)) > 0, "each is shown once"
    with pdqn_command("watch", "run", "--console", "plain", directory=tmp_path) as later:
        assert later.wait(30) == 0, later.stderr
    assert "done " in later.stdout
    assert "(interrupted)" in later.stdout
