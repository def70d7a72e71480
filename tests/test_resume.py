"""Resumed runs: figures and parameters continue, and contradictions are refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from launcher.hosts.access import Access
from launcher.interrupts import Interrupts
from launcher.metrics.metrics import MemberKey, RunMetrics
from launcher.metrics.roster import Roster
from launcher.plan.prepare import prepare
from launcher.run import launch as running
from launcher.run.resume import read_run
from launcher.run.state import RunState, read_state
from launcher.rundir import RunDirectory
from learner.checkpoint import load_newest
from learner.checkpoint_folders import checkpoints
from pdqn.arguments import same
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import Layer, build
from pdqn.messages import Episode, Report
from pdqn.model_head import BEST_MODEL
from pdqn.spans import Span

if TYPE_CHECKING:
    from conftest import StartCommand

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]

SETTINGS: Layer = {
    "run": {"env": "CartPole-v1", "mode": "single", "seed": 3},
    "replay": {"capacity": 2000, "min_size": 64, "samples_per_insert": 2.0},
    "learner": {"batch_size": 16, "device": "cpu", "threads": 1},
    "network": {"hidden": 16},
    "evaluation": {"enabled": False},
    "checkpoint": {"period_seconds": 1e9},
}
COMMAND = [
    "launch", "--console", "plain", "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "checkpoint.period_seconds=0.5", "--set", "system.telemetry_seconds=0.2",
    "--set", "system.metrics_seconds=0.2", "--set", "evaluation.enabled=false",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("same_threads", "no_picture")


class Grid(gymnasium.Env[Any, Any]):
    """A screen whose pixels are the actions: auto stacks it, and chooses a spatial network."""

    def __init__(self, side: int = 40) -> None:
        self.observation_space = spaces.Box(0, 255, (side, side), np.uint8)
        self.action_space = spaces.Discrete(side * side)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), float(action == 0), False, True, {}


gymnasium.register("test/Grid-v0", lambda **arguments: Grid(**arguments))


def launch(directory: Path, *, resume: bool = False, **changes: dict[str, Any]) -> dict[str, Any]:
    """Train in this process and return the summary."""
    past = read_run(directory) if resume else None
    layers = [("test", changes)] if past else [("settings", SETTINGS), ("test", changes)]
    code = running.launch(
        build(*(past.layers(*layers) if past else layers)),
        Interrupts(),
        past=past,
        run_dir=None if past else directory,
        console="off",
        access=Access(),
        agreed=True,
        check_only=False,
    )
    assert code == 0
    return json.loads((directory / "summary.json").read_text(encoding="utf-8"))


OTHERWISE: Layer = {
    "run": {"frame_stack": 1},
    "network": {"kind": "conv", "hidden": 16, "layers": 2, "channels": 8},
}


def launch_chosen_otherwise(directory: Path) -> Config:
    """Write a run of a version that chose otherwise than auto does here; return its settings."""
    run = {"env": "test/Grid-v0", "steps": 200, **OTHERWISE["run"]}
    launch(directory, run=run, network=dict(OTHERWISE["network"]))
    auto = {section: dict.fromkeys(values, "auto") for section, values in OTHERWISE.items()}
    configured = build(("run", read_run(directory).configured), ("test", auto))
    (directory / "configured.toml").write_text(configured.to_toml())
    return configured


def counts_of(summary: dict[str, Any]) -> dict[str, Any]:
    names = ("episodes", "environment_steps", "learner_steps", "active_seconds", "wall_seconds")
    return {name: summary[name] for name in names}


# ---- what continues ----


def test_a_resumed_run_goes_on_in_its_directory_and_its_figures_cover_the_whole(
    tmp_path: Path, read_lines: ReadLines
):
    first = launch(tmp_path, run={"steps": 400})
    second = launch(tmp_path, resume=True, run={"steps": 1000})
    before, after = counts_of(first), counts_of(second)
    assert all(after[name] > before[name] for name in after)
    assert after["environment_steps"] == 1000
    assert (first["sessions"], second["sessions"]) == (1, 2)
    sent = second["transitions"]["sent"]
    assert second["transitions"]["received"] == sent > first["transitions"]["sent"]
    lines = read_lines(tmp_path / "metrics.jsonl")
    for name in ("time_seconds", "environment_steps", "learner_steps", "episodes"):
        values = [line[name] for line in lines]
        assert values == sorted(values)
    resumed = [e for e in read_lines(tmp_path / "events.jsonl") if e["event"] == "resumed"]
    assert [(e["session"], e["changed"]) for e in resumed] == [(2, ["run.steps = 1000"])]


def test_its_parameters_target_optimizer_and_random_state_are_those_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    launch(tmp_path, run={"steps": 400})
    saved = load_newest(tmp_path)
    assert saved is not None
    restored: list[dict[str, Any]] = []

    def look_and_stop(self: Any) -> int:
        restored.append(self._learner.get_state())
        return self._session.conclude("steps", Roster.of([]))

    monkeypatch.setattr("launcher.run.single.SingleRun.execute", look_and_stop)
    launch(tmp_path, resume=True, run={"steps": 1000})
    torch.testing.assert_close(restored, [saved], rtol=0, atol=0)


def test_what_an_earlier_session_drew_at_random_is_not_drawn_again(
    tmp_path: Path, read_lines: ReadLines
):
    launch(tmp_path, run={"steps": 200})
    launch(tmp_path, resume=True, run={"steps": 400})
    launch(tmp_path, resume=True, run={"steps": 600})
    seeds = [e["text"] for e in read_lines(tmp_path / "events.jsonl") if e["event"] == "seeds"]
    assert len(seeds) == len(set(seeds)) == 3


def test_counters_survive_the_file_and_grow_on(tmp_path: Path):
    first = RunMetrics("coverage")
    actor = MemberKey("actor", 0, 0)
    for now, steps in ((10.0, 100), (14.0, 300)):
        report = Report({"environment_steps": steps}, episodes=(Episode(1.0, 3, 0.25),))
        first.ingest(actor, report, now)
    RunState(sessions=1, incarnations={("actor", 0): 1}, metrics=first.get_state()).write(tmp_path)
    state = read_state(tmp_path)
    assert state.incarnations == {("actor", 0): 1}
    second = RunMetrics("coverage")
    second.set_state(state.metrics)
    assert second.counts()["environment_steps"] == 300
    assert second.value("rollout/coverage") == 0.25
    assert second.seconds_since_first_step(1000.0) == 4.0, "nothing has been stepped here yet"
    for now, steps in ((1000.0, 50), (1002.0, 80)):
        second.ingest(actor, Report({"environment_steps": steps}), now)
    assert second.counts()["environment_steps"] == 380
    assert second.active_seconds() == 6.0
    assert second.seconds_since_first_step(1003.0) == 7.0


def test_a_full_disk_is_said_once_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "state.json")

    said: list[str] = []
    monkeypatch.setattr("launcher.run.state.replace_text", full)
    monkeypatch.setattr(RunDirectory, "write_snapshot", full)
    monkeypatch.setattr(
        "launcher.console.console.SilentConsole.message", lambda _, text: said.append(text)
    )
    assert launch(tmp_path, run={"steps": 400})["exit_reason"] == "steps"
    told = [line for line in said if "No space left" in line]
    assert sorted(told) == [
        f"{name} is not written: state.json: No space left on device; the run goes on"
        for name in ("snapshot.json", "state.json")
    ]


def test_the_first_error_of_an_earlier_session_stays_in_the_summary(tmp_path: Path):
    launch(tmp_path, run={"steps": 200})
    state = read_state(tmp_path)
    state.first_error = "actor 1: killed by SIGKILL"
    state.write(tmp_path)
    summary = launch(tmp_path, resume=True, run={"steps": 400})
    assert summary["first_error"] == "actor 1: killed by SIGKILL"


def drained(*spans: Span) -> Report:
    """Make the report of a replay that has taken whatever had come."""
    return Report(gauges={"drained": 1.0, "spans_waiting": 0.0}, spans=spans)


def test_what_was_on_its_way_when_a_run_was_killed_died_with_its_actor_and_is_not_waited_for():
    first = RunMetrics(None)
    first.ingest(MemberKey("actor", 0, 0), Report({"transitions_sent": 100}), 1.0)
    spans = (Span(0, 0, 0, 90),)
    settled = Report({"transitions_received": 90}, spans=spans)
    first.ingest(MemberKey("replay", 0, 0), settled, 1.0)
    second = RunMetrics(None)
    second.set_state(json.loads(json.dumps(first.get_state())))
    second.ingest(MemberKey("replay", 0, 1), drained(*spans), 2.0)
    assert second.in_flight() == 0
    second.ingest(MemberKey("actor", 0, 1), Report({"transitions_sent": 50}), 2.0)
    assert second.in_flight() == 50
    second.ingest(MemberKey("replay", 0, 1), drained(*spans, Span(0, 1, 0, 50)), 2.0)
    assert second.in_flight() == 0
    transitions = second.summary()["transitions"]
    assert (transitions["sent"], transitions["received"]) == (150, 140)
    assert (transitions["lost"], transitions["died"]) == (0, 10), "it died with its actor"


def test_what_a_killed_launcher_had_not_heard_is_counted_once_the_journal_is_read():
    first = RunMetrics(None)
    first.ingest(MemberKey("actor", 0, 0), Report({"transitions_sent": 100}), 1.0)
    first.ingest(MemberKey("replay", 0, 0), Report(spans=(Span(0, 0, 0, 90),)), 1.0)
    second = RunMetrics(None)
    second.set_state(json.loads(json.dumps(first.get_state())))
    # Of the next incarnation, the launcher had not heard at all.
    spans = Span(0, 0, 0, 120), Span(0, 1, 0, 30, 10)
    second.ingest(MemberKey("replay", 0, 1), drained(*spans), 2.0)
    transitions = second.summary()["transitions"]
    assert (transitions["sent"], transitions["received"]) == (150, 140)
    assert (transitions["refused"], transitions["lost"], transitions["died"]) == (10, 0, 0)


def test_a_run_that_kept_no_ledger_goes_on_with_its_sums():
    first = RunMetrics(None)
    first.ingest(MemberKey("actor", 0, 0), Report({"transitions_sent": 100}), 1.0)
    counted = Report({"transitions_received": 80, "transitions_refused": 5})
    first.ingest(MemberKey("replay", 0, 0), counted, 1.0)
    state = json.loads(json.dumps(first.get_state()))
    del state["ledger"]
    second = RunMetrics(None)
    second.set_state(state)
    second.ingest(MemberKey("actor", 0, 1), Report({"transitions_sent": 50}), 2.0)
    second.ingest(MemberKey("replay", 0, 1), drained(Span(0, 1, 0, 50)), 2.0)
    assert second.in_flight() == 0
    transitions = second.summary()["transitions"]
    assert (transitions["sent"], transitions["received"]) == (150, 130)
    assert (transitions["refused"], transitions["lost"]) == (5, 15)


def test_a_run_that_was_ended_before_it_wrote_anything_begins_anew(tmp_path: Path):
    config = build(("settings", SETTINGS), ("test", {"run": {"steps": 400}}))
    directory = RunDirectory(tmp_path)
    resolved = prepare(config)[2].config
    directory.write_config(resolved, config)
    directory.close()
    assert launch(tmp_path, resume=True)["environment_steps"] == 400


def test_a_run_that_was_killed_before_its_first_checkpoint_says_that_its_learner_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    launch(tmp_path, run={"steps": 400})
    launch(tmp_path, resume=True, run={"steps": 600})
    assert "begin" not in capsys.readouterr().err, "nothing is lost"
    shutil.rmtree(tmp_path / "checkpoints")
    past = read_run(tmp_path)
    past.check(prepare(build(*past.layers(("test", {"run": {"steps": 800}}))))[2].config)
    (line,) = capsys.readouterr().err.splitlines()
    steps = past.state.metrics["learner_steps"]
    assert line == (
        f"pdqn: --resume {tmp_path}: no checkpoint: the learner starts over, "
        f"after {steps} learner steps"
    )


def test_a_run_without_its_counters_says_that_they_begin_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    launch(tmp_path, run={"steps": 200})
    (tmp_path / "state.json").unlink()
    launch(tmp_path, resume=True, run={"steps": 400})
    assert "no state.json: the counters start over" in capsys.readouterr().err


def test_what_another_version_chose_for_a_run_stays_whatever_auto_stands_for_now(tmp_path: Path):
    here = prepare(launch_chosen_otherwise(tmp_path))[2].config.to_map()
    before = read_run(tmp_path).config.to_map()
    for section, values in OTHERWISE.items():
        assert all(here[section][key] != before[section][key] == values[key] for key in values)
    assert launch(tmp_path, resume=True, run={"steps": 300})["environment_steps"] >= 300
    # The version's choice also stays if the option names "auto" itself.
    summary = launch(tmp_path, resume=True, run={"steps": 400}, network={"kind": "auto"})
    assert summary["environment_steps"] >= 400
    after = read_run(tmp_path).config.to_map()
    assert (after["network"], after["run"]["frame_stack"]) == (before["network"], 1)


def test_a_session_that_is_killed_before_it_wrote_again_has_its_starts_counted(tmp_path: Path):
    state = RunState(incarnations={("actor", 0): 3})
    assert not state.covers("actor", 0, 3)
    state.reserve_around("actor", 0)
    state.write(tmp_path)
    assert state.covers("actor", 0, 3)
    assert state.covers("actor", 5, 0), "more actors may join before the next write"
    assert not state.covers("actor", 0, 11)
    assert not state.covers("replay", 0, 0)
    later = read_state(tmp_path)
    assert later.incarnations["actor", 0] == 11
    assert later.incarnations["actor", 5] == 8
    state.incarnations["actor", 0] = 20
    state.write(tmp_path)
    assert read_state(tmp_path).incarnations["actor", 0] == 20
    state.reserved.clear()  # at the end of a session nothing more starts
    state.write(tmp_path)
    assert read_state(tmp_path).incarnations == {("actor", 0): 20}


def written(directory: Path, config: Config, *, without: str = "nothing") -> Config:
    """Write the settings of a run that has not begun, and return those with which it resumes."""
    for name in ("config.toml", "configured.toml"):
        lines = config.to_toml().splitlines()
        kept = [line for line in lines if not line.startswith(f"{without} = ")]
        (directory / name).write_text("\n".join(kept))
    past = read_run(directory)
    resumed = build(*past.layers())
    past.check(resumed)
    return resumed


def test_nan_and_infinity_among_the_arguments_are_not_a_contradiction(tmp_path: Path):
    arguments = {"limit": float("nan"), "inner": [{"bound": float("-inf"), "odd": [float("nan")]}]}
    config = build(("test", {**SETTINGS, "run": {**SETTINGS["run"], "env_args": arguments}}))
    assert same(written(tmp_path, config).run.env_args, arguments)


def test_a_run_of_an_earlier_version_goes_on_reading_images_as_it_did(tmp_path: Path):
    config = build(("test", SETTINGS))
    assert written(tmp_path, config).network.images == "space"
    assert written(tmp_path, config).network.fold_frames
    assert written(tmp_path, config, without="images").network.images == "dtype"
    assert not written(tmp_path, config, without="fold_frames").network.fold_frames


# ---- limits ----


def test_a_run_that_was_interrupted_goes_on_to_the_limit_that_it_had(tmp_path: Path):
    launch(tmp_path, run={"steps": 400})
    state = read_state(tmp_path)
    state.metrics["totals"] = [
        [role, name, 200.0 if name == "environment_steps" else value]
        for role, name, value in state.metrics["totals"]
    ]
    state.write(tmp_path)
    assert launch(tmp_path, resume=True)["environment_steps"] == 400


def test_a_limit_that_is_reached_is_refused_with_what_to_do(tmp_path: Path):
    launch(tmp_path, run={"steps": 400, "time_seconds": 500.0})
    with pytest.raises(UsageError, match=r"run\.steps = 400 is reached: .* larger --steps"):
        launch(tmp_path, resume=True)
    with pytest.raises(UsageError, match=r"run\.episodes = 2 is reached"):
        launch(tmp_path, resume=True, run={"episodes": 2})
    with pytest.raises(UsageError, match=r"run\.time_seconds = 0\.1 is reached"):
        launch(tmp_path, resume=True, run={"time_seconds": 0.1})


def test_a_limit_given_anew_takes_the_place_of_all_others(tmp_path: Path):
    launch(tmp_path, run={"steps": 400, "episodes": 10_000})
    past = read_run(tmp_path)
    config = build(*past.layers(("option", {"run": {"time_seconds": 900.0}})))
    assert (config.run.steps, config.run.episodes, config.run.time_seconds) == (None, None, 900.0)
    assert build(*past.layers()).run.steps == 400


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": {"hidden": 32}}, r"network\.hidden = 32, not 16"),
        ({"network": {"dueling": False}}, r"network\.dueling = False, not True"),
        ({"run": {"seed": 4}}, r"run\.seed = 4, not 3"),
        ({"run": {"env": "Acrobot-v1"}}, r"run\.env = Acrobot-v1, not CartPole-v1"),
        ({"run": {"frame_stack": 2}}, r"run\.frame_stack = 2, not 1"),
        ({"run": {"env_args": {"max_episode_steps": 9}}}, r"run\.env_args = .*9.*, not {}"),
    ],
)
def test_changed_structure_is_refused_and_named(tmp_path: Path, change: Any, named: str):
    launch(tmp_path, run={"steps": 200})
    before = (tmp_path / "config.toml").read_text()
    change = {**change, "run": {"steps": 900, **change.get("run", {})}}
    with pytest.raises(UsageError, match=named):
        launch(tmp_path, resume=True, **change)
    assert (tmp_path / "config.toml").read_text() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        # A choice that the run made and that is not named here is not a contradiction.
        ({"network": {"hidden": 32}}, r": network\.hidden = 32, not 16: the parameters"),
        ({"run": {"frame_stack": 4}}, r": run\.frame_stack = 4, not 1: the parameters"),
        ({"network": {"kind": "spatial"}}, r"network\.kind = spatial, not conv"),
        # The run's own choice may not even fit the named settings.
        ({"network": {"kind": "mlp"}}, r"network\.kind = mlp, not conv"),
        ({"run": {"env": "CartPole-v1"}}, r"run\.env = CartPole-v1, not test/Grid-v0"),
        ({"run": {"env_args": {"side": 7}}}, r"run\.env_args = {'side': 7}, not {}"),
    ],
)
def test_another_value_than_what_another_version_chose_is_refused(
    tmp_path: Path, change: Any, named: str
):
    launch_chosen_otherwise(tmp_path)
    with pytest.raises(UsageError, match=named):
        launch(tmp_path, resume=True, **{**change, "run": {"steps": 900, **change.get("run", {})}})


def test_other_settings_may_change(tmp_path: Path):
    launch(tmp_path, run={"steps": 200})
    launch(tmp_path, resume=True, run={"steps": 400}, learner={"learning_rate": 5e-5})
    config = read_run(tmp_path).config
    assert config.learner.learning_rate == 5e-5


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="not a run directory"):
        read_run(tmp_path)


def test_a_folder_that_cannot_be_looked_into_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UsageError, match="File name too long"):
        read_run(tmp_path / ("r" * 300))

    def private(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", private)
    with pytest.raises(UsageError, match="Permission denied"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["config.toml", "configured.toml"])
def test_a_run_whose_settings_are_gone_is_refused(tmp_path: Path, name: str):
    directory = RunDirectory(tmp_path)
    directory.write_config(build(), build())
    directory.close()
    (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=rf"{name} is damaged: it has no \[run\]"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "change", [{"restarts": []}, {"metrics": {"totals": []}}, {"metrics": {"totals": [[1]]}}]
)
def test_a_state_that_is_damaged_in_part_is_refused(tmp_path: Path, change: Any):
    RunState(metrics=RunMetrics(None).get_state()).write(tmp_path)
    path = tmp_path / "state.json"
    assert read_state(tmp_path).metrics, "this one is whole"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=r"state\.json: not a state that this version reads"):
        read_state(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', '{"format": 1}', "\x00"])
def test_a_state_that_was_not_written_by_a_run_is_refused(tmp_path: Path, content: str):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UsageError, match=r"state\.json: not a state that this version reads"):
        read_state(tmp_path)


def test_a_directory_whose_run_goes_on_is_refused(tmp_path: Path):
    first = RunDirectory(tmp_path)
    with pytest.raises(UsageError, match="is in use: its run goes on"):
        RunDirectory(tmp_path, resumed_at=1.0)
    first.close()
    RunDirectory(tmp_path, resumed_at=1.0).close()


def test_where_all_checkpoints_are_damaged_the_model_file_has_the_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    launch(tmp_path, run={"steps": 400})
    for path in checkpoints(tmp_path):
        (path / "learner.pth").write_bytes(b"damaged")
    [steps] = saved_steps(tmp_path)
    launch(tmp_path, resume=True, run={"steps": 800})
    said = (
        "no checkpoint can be read: the learner goes on with the parameters of final_model.pth, of "
        f"learner step {steps}, and a new optimizer"
    )
    assert f"{said}; the run took {steps} learner steps" in capsys.readouterr().err
    assert saved_steps(tmp_path)[0] > steps
    assert (tmp_path / "checkpoints" / f"unreadable-step-{steps:09d}").is_dir()


def test_without_any_parameters_it_is_told_how_to_begin_with_new_ones(tmp_path: Path):
    launch(tmp_path, run={"steps": 400})
    for path in (*tmp_path.glob("checkpoints/*/learner.pth"), *tmp_path.glob("*_model.pth")):
        path.write_bytes(b"damaged")
    told = r"none of the 1 checkpoints .* and no model file; to begin with .* move (\S+) away"
    with pytest.raises(UsageError, match=told) as refused:
        launch(tmp_path, resume=True, run={"steps": 800})
    [folder] = re.findall(r"move (\S+) away", str(refused.value))
    Path(folder).rename(tmp_path / "moved")
    launch(tmp_path, resume=True, run={"steps": 800})
    assert saved_steps(tmp_path)


def test_saves_after_a_damaged_newest_checkpoint_stay_and_the_next_resume_takes_them(
    tmp_path: Path,
):
    launch(tmp_path, run={"steps": 400}, checkpoint={"period_steps": 20, "keep": 5})
    before, *_ = saved_steps(tmp_path)
    damaged = tmp_path / "checkpoints" / f"step-{100 * before:09d}"
    damaged.mkdir()
    (damaged / "learner.pth").write_bytes(b"damaged")
    (tmp_path / BEST_MODEL).write_bytes(b"damaged")
    launch(tmp_path, resume=True, run={"steps": 800}, checkpoint={"keep": 1})
    [after] = saved_steps(tmp_path)
    assert before < after < 100 * before
    assert (tmp_path / "checkpoints" / f"unreadable-{damaged.name}").is_dir()
    assert (tmp_path / f"unreadable-{BEST_MODEL}").read_bytes() == b"damaged"
    launch(tmp_path, resume=True, run={"steps": 1200}, checkpoint={"keep": 1})
    assert saved_steps(tmp_path)[0] > after


def test_half_written_lines_and_files_are_removed(tmp_path: Path, read_lines: ReadLines):
    directory = RunDirectory(tmp_path)
    directory.metrics({"environment_steps": 8})
    directory.event("started")
    directory.close()
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"environment_st')
    step = tmp_path / "checkpoints" / "step-000000008"
    step.mkdir()
    left = [tmp_path / ".final_model.pth.123", step / ".learner.pth.123"]
    for path in left:
        path.write_bytes(b"half")
    others = [tmp_path / ".python-3.11", tmp_path / "notes.jsonl", tmp_path / ".cache.1"]
    for path in others[:2]:
        path.write_text("not the run's")
    others[2].mkdir()
    again = RunDirectory(tmp_path, resumed_at=60.0)
    again.metrics({"environment_steps": 16})
    again.event("resumed")
    again.close()
    steps = [line["environment_steps"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert steps == [8, 16]
    events = read_lines(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["started", "resumed"]
    assert events[1]["time_seconds"] >= 60.0, "time goes on, too"
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
    assert others[1].read_text() == "not the run's"


# ---- real processes ----


def metric(path: Path, name: str, read_lines: ReadLines) -> float:
    values = [line[name] for line in read_lines(path / "metrics.jsonl")]
    return values[-1] if values else 0


def steps_in(path: Path) -> float:
    """Return the environment steps in the state that a later session resumes from."""
    totals = read_state(path).metrics.get("totals", [])
    return sum(n for role, name, n in totals if (role, name) == ("actor", "environment_steps"))


def saved_steps(path: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints(path)]


def test_a_run_that_was_killed_is_resumed_and_one_that_is_damaged_falls_back_saying_so(
    pdqn_command: StartCommand, eventually: Eventually, read_lines: ReadLines, tmp_path: Path
):
    run = tmp_path / "run"
    options = ["--env", "CartPole-v1", "--actors", "2", "--run-dir", "run"]
    with pdqn_command(*COMMAND, *options, directory=tmp_path) as command:
        eventually(lambda: len(saved_steps(run)) >= 2, 60)
        eventually(lambda: steps_in(run) > 0, 60)
        os.kill(command.process.pid, signal.SIGKILL)
        eventually(lambda: not command.members(), 20)
    preset = "preset vector, but for replay.capacity, for "
    assert preset in command.stdout
    newest, before = saved_steps(run)[:2]
    (run / "checkpoints" / f"step-{newest:09d}" / "learner.pth").write_bytes(b"damaged")
    counted = steps_in(run)
    journal = sum(path.stat().st_size for path in (run / "journal" / "replay-0").glob("*.segment"))
    resume = ["launch", "--console", "plain", "--resume", "run", "--actors", "1"]
    with pdqn_command(*resume, directory=tmp_path) as command:
        eventually(lambda: metric(run, "environment_steps", read_lines) > counted + 500, 60)
        eventually(lambda: max(saved_steps(run)) > newest, 60)
        command.interrupt()
        assert command.wait(20) == 0, command.stderr
    assert f"step-{newest:09d} cannot be read" in command.stdout
    assert f"learner 0: goes on from learner step {before}\n" in command.stdout
    assert "with actor.count = 1" in command.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert summary["sessions"] == 2
    assert summary["preset"].startswith(preset), "a resumed run keeps it"
    assert summary["environment_steps"] > counted + 500
    events = read_lines(run / "events.jsonl")
    seeds = [event["text"] for event in events if event["event"] == "seeds"]
    assert len(seeds) == len(set(seeds)) == 3
    last = read_lines(run / "metrics.jsonl")[-1]
    assert last["replay/transitions_recovered"] * 20 < journal, "all of it, at 30 to 40 bytes each"
    assert last["replay/transitions_recovered"] * 60 > journal
    transitions = summary["transitions"]
    assert transitions["duplicate"] == transitions["lost"] == transitions["waiting"] == 0
    ends = sum(transitions[name] for name in ("received", "refused", "died"))
    assert transitions["made"] == ends, "of both sessions"
    joins = [event["text"] for event in events if event["event"] == "joined"]
    places = [(text.split(" on ")[0], text.rpartition(" ")[2]) for text in joins]
    assert len(places) == len(set(places)), "no incarnation is used twice"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_at_twenty_random_moments_always_saves_and_can_always_be_resumed(
    pdqn_command: StartCommand, eventually: Eventually, read_lines: ReadLines, tmp_path: Path
):
    run, moments = tmp_path / "run", random.Random(7)
    options = ["--env", "CartPole-v1", "--actors", "2", "--run-dir", "run", "--time", "1h"]
    steps = 0
    for _ in range(20):
        begun = (run / "config.toml").exists()
        arguments = ["launch", "--console", "plain", "--resume", "run"] if begun else COMMAND
        with pdqn_command(*arguments, *([] if begun else options), directory=tmp_path) as command:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(moments.uniform(0.0, 15.0))
            command.interrupt()
            assert command.wait(20) == 0, command.stderr
        if not (run / "config.toml").exists():
            continue  # the role had not started
        summary = json.loads((run / "summary.json").read_text())
        assert summary["exit_reason"] == "interrupted"
        assert summary["transitions"]["lost"] == 0
        assert summary["environment_steps"] >= steps
        steps = summary["environment_steps"]
        if summary["learner_steps"]:
            assert summary["learner_steps"] in saved_steps(run)
    assert steps > 0
