"""Mode single: everything in one process, in lockstep, and repeatable to the last bit."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import wait_until
from contents import all_of

from actors.environments.describe import describe_environment
from launcher.console.console import Console, SilentConsole
from launcher.interrupts import Interrupts
from launcher.metrics.metrics import MemberKey
from launcher.metrics.roster import Roster
from launcher.results.training import read_metrics
from launcher.run.session import Session
from launcher.run.single import SingleRun
from launcher.rundir import RunDirectory
from learner.checkpoint import load_newest
from learner.checkpoint_folders import checkpoints
from pdqn.config import Config
from pdqn.layers import build
from pdqn.messages import Report
from pdqn.model import load_model
from pdqn.seeds import environment_seeds

PLACEMENT = {"env_args": {"map_size": 16, "radii": [3, 2, 1]}}
NEVER = 1e9
TIMED = ("time", "_per_second", "seconds", "wait_share", "fps", "train/loss", "run_dir")


def config_of(run: dict[str, Any], replay: dict[str, Any] | None = None, **learner: Any) -> Config:
    layer = {
        "run": {"mode": "single", "seed": 3, **run},
        "actor": {
            "count": 1,
            "envs_per_actor": 4,
            "discount": 1.0,
            "segment_length": 16,
            "batch_transitions": 16,
        },
        "replay": {
            "capacity": 1000,
            "store": "dense",
            "decode_threads": 1,
            "min_size": 64,
            "samples_per_insert": 2.0,
            "samples_per_insert_tolerance": 100.0,
            **(replay or {}),
        },
        "learner": {
            "batch_size": 16,
            "learning_rate": 1e-3,
            "device": "cpu",
            "precision": "float32",
            "threads": 1,
            **learner,
        },
        "network": {"hidden": 16} if "env" in run else {"channels": 4},
        "evaluation": {"episodes": 2, "period_seconds": NEVER},
        "checkpoint": {"period_seconds": NEVER},
        "system": {"metrics_seconds": NEVER},
    }
    return build(("test", layer))


class Listening(SilentConsole):
    """A console that keeps its messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def session_of(config: Config, directory: Path, console: Console | None = None) -> Session:
    spec = describe_environment(config.run.env, config.run.env_args, config.run.frame_stack or 1)
    run_dir = RunDirectory(directory)
    run_dir.write_config(config, config)
    return Session(config, spec, run_dir, console or SilentConsole(), Interrupts())


def execute(config: Config, directory: Path) -> Session:
    session = session_of(config, directory)
    assert SingleRun(session).execute() == 0
    return session


def untimed(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if not any(word in k for word in TIMED)}


pytestmark = pytest.mark.usefixtures("same_threads", "no_picture")


@pytest.fixture
def with_picture() -> None:
    """Let the run draw its picture."""


COMPRESSED = {"store": "compressed", "memory": "1000000", "decode_threads": 2}


@pytest.mark.parametrize(
    ("run", "replay"),
    [
        ({"env": "CartPole-v1", "steps": 600}, {}),
        ({"env": "CartPole-v1", "steps": 600, "frame_stack": 3}, {}),
        ({"env": "CartPole-v1", "steps": 600, "frame_stack": 3}, COMPRESSED),
        ({**PLACEMENT, "steps": 240}, {}),
    ],
    ids=["vector", "stacks", "compressed", "map"],
)
def test_two_runs_of_one_seed_are_identical_to_the_last_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: dict[str, Any],
    replay: dict[str, Any],
    read_lines: Any,
):
    monkeypatch.setattr("actors.baselines._LATER", ())  # the clock decides when these are known
    paths = [tmp_path / "first", tmp_path / "second"]
    # The step size follows how far the run is, which must not depend on when that is reported.
    config = config_of(run, replay, learning_rate_final=1e-5)
    sessions = [execute(config, path) for path in paths]
    models = [torch.load(path / "final_model.pth", weights_only=True) for path in paths]
    first, second = (model["parameters"] for model in models)
    assert models[0]["parameter_version"] == models[1]["parameter_version"] > 0
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (first.keys(), models[0]["spec"]) == (second.keys(), models[1]["spec"])
    summaries = [json.loads((path / "summary.json").read_text()) for path in paths]
    assert untimed(summaries[0]) == untimed(summaries[1])
    assert summaries[0]["learner_steps"] > 20
    # A run of some length writes further lines between these, at times that may differ.
    lines = [[untimed(line) for line in read_lines(path / "metrics.jsonl")] for path in paths]
    for is_evaluation in (False, True):
        last = [[x for x in of if ("eval/episodes" in x) == is_evaluation][-1] for of in lines]
        assert last[0] == last[1]
    losses = [session.metrics.total("learner", "loss_sum") for session in sessions]
    assert losses[0] == losses[1] > 0


def test_bounds_are_computed_beside_it_and_the_summary_has_them(tmp_path: Path):
    run = SingleRun(session_of(config_of({**PLACEMENT, "steps": 40}), tmp_path))
    wait_until(lambda: run._evaluate() and "dual_bound" in run._evaluation._baselines.scores)
    assert run.execute() == 0
    evaluated = json.loads((tmp_path / "summary.json").read_text())["eval"]
    assert evaluated["baselines"]["dual_bound"] >= evaluated["return_mean"]


class Careless(gymnasium.Env[Any, Any]):
    """An environment that draws from the process's random states and ignores its seed."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.array([random.random(), np.random.rand()], np.float32), {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], random.random(), np.random.rand() < 0.1, False, {}


def test_what_an_environment_draws_without_a_seed_repeats_too_whatever_is_evaluated_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "careless", sys.modules[__name__])
    models = []
    for name, steps in (("seldom", 0), ("often", 5)):
        config = config_of({"env": "careless:Careless", "steps": 300})
        often = {"evaluation": {"enabled": True, "episodes": 2, "period_steps": steps}}
        execute(build(("first", config.to_map()), ("then", often)), tmp_path / name)
        models.append(load_model(tmp_path / name / "final_model.pth"))
    first, second = (model.network.state_dict() for model in models)
    assert models[0].parameter_version == models[1].parameter_version > 0
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_evaluations_come_by_learner_steps_where_they_are_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_lines: Any
):
    config = config_of({"env": "CartPole-v1", "steps": 600})
    by_steps = {"evaluation": {"enabled": True, "episodes": 1, "period_steps": 10}}
    for name in ("first", "second"):
        execute(build(("first", config.to_map()), ("then", by_steps)), tmp_path / name)
    versions = [
        [
            line["eval/parameter_version"]
            for line in read_lines(tmp_path / name / "metrics.jsonl")
            if "eval/parameter_version" in line
        ]
        for name in ("first", "second")
    ]
    assert versions[0] == versions[1]
    assert versions[0][0] == 0, "the best parameters have to be better than the first ones"
    assert len(versions[0]) > 3


def test_the_store_changes_nothing_but_how_frames_are_kept(tmp_path: Path):
    run = {"env": "CartPole-v1", "steps": 600, "frame_stack": 2}
    for name, replay in (("dense", {}), ("compressed", COMPRESSED)):
        execute(config_of(run, replay), tmp_path / name)
    dense, compressed = (
        load_model(tmp_path / n / "final_model.pth") for n in ("dense", "compressed")
    )
    assert dense.parameter_version == compressed.parameter_version > 0
    assert dense.spec.frame_stack == 2
    expected = dense.network.state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in compressed.network.state_dict().items())


def test_another_seed_is_another_run(tmp_path: Path):
    run = {"env": "CartPole-v1", "steps": 400}
    for seed in (1, 2):
        execute(config_of({**run, "seed": seed}), tmp_path / str(seed))
    models = [load_model(tmp_path / str(seed) / "final_model.pth").network for seed in (1, 2)]
    tensors = [list(model.state_dict().values()) for model in models]
    assert any((a != b).any() for a, b in zip(*tensors, strict=True))


def test_a_run_of_so_many_steps_ends_after_exactly_as_many_rounds(tmp_path: Path):
    session = execute(config_of({"env": "CartPole-v1", "steps": 402}), tmp_path)
    # Four environments step at once.
    assert session.metrics.counts()["environment_steps"] == 404
    assert json.loads((tmp_path / "summary.json").read_text())["exit_reason"] == "steps"


def test_a_run_of_so_many_episodes_ends_with_the_round_that_completes_them(tmp_path: Path):
    session = execute(config_of({**PLACEMENT, "episodes": 21}), tmp_path)
    # Every episode has three placements; four end at once.
    assert session.metrics.counts()["episodes"] == 24
    assert json.loads((tmp_path / "summary.json").read_text())["exit_reason"] == "episodes"


def test_samples_per_insert_is_held(tmp_path: Path):
    session = execute(config_of({"env": "CartPole-v1", "steps": 1000}), tmp_path)
    inserted = session.metrics.total("replay", "transitions_received")
    sampled = session.metrics.total("replay", "samples")
    # Two for each transition after the first 64, within the tolerance and one segment.
    assert abs(2.0 * (inserted - 64) - sampled) <= 100 + 2.0 * 4 * 20


@pytest.mark.usefixtures("with_picture")
def test_everything_that_a_run_leaves_is_there(tmp_path: Path):
    config = config_of({"env": "CartPole-v1", "steps": 400})
    execute(config, tmp_path)
    for name in ("config.toml", "metrics.jsonl", "events.jsonl", "training_results.png"):
        assert (tmp_path / name).stat().st_size > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["transitions"]["lost"] == 0
    state = load_newest(tmp_path)
    assert state is not None
    assert state["learner_steps"] == summary["learner_steps"]
    assert len(list(checkpoints(tmp_path))) == 1


def test_figures_are_lines_of_numbers_and_the_scores_of_the_last_episodes_are_kept_beside_them(
    tmp_path: Path, read_lines: Any
):
    execute(config_of({"env": "CartPole-v1", "steps": 400}), tmp_path)
    lines = read_lines(tmp_path / "metrics.jsonl")
    values = [value for line in lines for value in line.values()]
    assert {type(value) for value in values} <= {int, float, bool, type(None)}
    drawn = read_metrics(tmp_path)
    # CartPole rewards every step with 1.
    assert len(drawn.recent) == lines[-1]["episodes"] > 0
    assert sum(drawn.recent) <= lines[-1]["environment_steps"]


def test_the_last_evaluation_is_of_the_final_parameters(tmp_path: Path):
    # The acting parameters are refreshed every 64 steps, and the run ends between two refreshes.
    execute(config_of({"env": "CartPole-v1", "steps": 800}, publish_period=64), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["learner_steps"] % 64 != 0
    assert summary["eval"]["parameter_version"] == summary["learner_steps"]
    assert load_model(tmp_path / "final_model.pth").parameter_version == summary["learner_steps"]


@pytest.mark.usefixtures("steps_with_torch")
def test_a_loss_that_was_not_finite_does_not_spoil_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = session_of(config_of({"env": "CartPole-v1", "steps": 400}), tmp_path)
    run = SingleRun(session)
    # One transition of infinite return has the effect of a diverged target.
    monkeypatch.setattr("learner.objective.hard_values", once_infinite())
    assert run.execute() == 0
    assert 0 < session.metrics.total("learner", "loss_sum") < float("inf")
    assert session.metrics.total("learner", "steps_skipped") == 1


def once_infinite() -> Any:
    from learner.losses import hard_values

    calls = iter(range(1_000_000))

    def targets(*arguments: Any) -> torch.Tensor:
        result = hard_values(*arguments)
        return result + float("inf") if next(calls) == 0 else result

    return targets


def test_what_is_learned_is_acted_on_and_changes_priorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = session_of(config_of({"env": "CartPole-v1", "steps": 400}), tmp_path)
    run = SingleRun(session)
    act, update, acted_on, updated = run._act, run._replay.buffer.update_priorities, set[int](), []

    def noted_act() -> None:
        acted_on.add(run._acting_version)
        act()

    def noted_update(keys: Any, priorities: Any) -> None:
        updated.append(len(keys))
        update(keys, priorities)

    monkeypatch.setattr(run, "_act", noted_act)
    monkeypatch.setattr(run._replay.buffer, "update_priorities", noted_update)
    assert run.execute() == 0
    learned = session.metrics.learner_steps()
    assert updated == [16] * learned
    period = session.config.learner.publish_period
    assert acted_on == set(range(0, learned, period))
    assert len(acted_on) > 2


@pytest.mark.parametrize(("key", "larger"), [("+", True), ("-", False)])
def test_a_key_makes_samples_per_insert_more_or_fewer(tmp_path: Path, key: str, larger: bool):
    run = SingleRun(session_of(config_of({"env": "CartPole-v1", "steps": 10}), tmp_path))
    before = run._replay.limiter.target
    run._session.controls[key]()
    assert (run._replay.limiter.target > before) == larger
    assert run._replay.limiter.target != before
    assert run.execute() == 0


def test_an_interrupted_run_saves_everything_and_does_not_evaluate(tmp_path: Path):
    session = session_of(config_of({"env": "CartPole-v1", "steps": 10**9}), tmp_path)
    run = SingleRun(session)
    act, rounds = run._act, iter(range(200))

    def act_and_interrupt() -> None:
        act()
        session.interrupts.count = int(next(rounds, None) is None)

    run._act = act_and_interrupt
    assert run.execute() == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["exit_reason"] == "interrupted"
    assert summary["environment_steps"] == 804
    assert summary["eval"]["parameter_version"] == 0 < summary["learner_steps"]
    assert load_model(tmp_path / "final_model.pth").parameter_version == summary["learner_steps"]


def test_a_tolerance_without_end_does_not_keep_a_run_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wide = {"samples_per_insert_tolerance": 1e30}
    run = SingleRun(session_of(config_of({"env": "CartPole-v1"}, wide), tmp_path))
    learn, session = run._learner.step, run._session

    def learn_and_interrupt(*arguments: Any) -> Any:
        session.interrupts.count = 1
        return learn(*arguments)

    monkeypatch.setattr(run._learner, "step", learn_and_interrupt)
    assert run.execute() == 0
    assert run._learner.learner_steps == 1


def test_stored_observations_are_those_of_their_step_and_not_of_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = session_of(config_of({**PLACEMENT, "steps": 120}), tmp_path)
    run = SingleRun(session)
    record, seen = run._rollout._recorder.record, set()

    def record_and_copy(packed: Any, *rest: Any) -> None:
        seen.update(row.tobytes() for row in packed["map"])
        record(packed, *rest)

    monkeypatch.setattr(run._rollout._recorder, "record", record_and_copy)
    assert run.execute() == 0
    stored = {row.tobytes() for row in all_of(run._replay.buffer).observation["map"]}
    assert stored <= seen
    # Three placements an episode, four environments: nearly every map is a new one.
    assert len(stored) > 100


# ---- environments that fail ----

TRAP = {"env": "failing_environments:broken", "steps": 600}


def with_evaluation(config: Config, **evaluation: Any) -> Config:
    return build(("test", config.to_map()), ("evaluation", {"evaluation": evaluation}))


def test_an_environment_that_always_fails_ends_the_run_after_a_last_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = with_evaluation(
        config_of({**TRAP, "env_args": {"bad_seeds": []}}), env_args={"bad_seeds": [-1]}
    )
    console = Listening()
    session = session_of(config, tmp_path, console)
    assert SingleRun(session).execute() == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["exit_reason"] == "failed"
    expected = "EnvironmentFailedError: an environment failed 5 times in a row: RuntimeError: the"
    assert summary["first_error"].startswith(expected)
    assert expected in capsys.readouterr().err
    assert "Traceback (most recent call last):" in console.said
    assert len(list(checkpoints(tmp_path))) == 1


@pytest.mark.parametrize(
    ("bad", "episodes"), [([1_000_000], 1), ([], None)], ids=["one seed", "every seed"]
)
def test_evaluations_whose_environments_fail_do_not_end_the_run(
    tmp_path: Path, bad: list[int], episodes: int | None
):
    config = with_evaluation(
        config_of({**TRAP, "env_args": {"bad_seeds": [-1]}}), env_args={"bad_seeds": bad}
    )
    session = execute(config, tmp_path)
    assert session.metrics.counts()["environment_steps"] >= 600
    evaluation = json.loads((tmp_path / "summary.json").read_text())["eval"]
    assert (evaluation and evaluation["episodes"]) == episodes


def test_evaluations_whose_environment_cannot_be_made_are_written_down_and_the_run_goes_on(
    tmp_path: Path, read_lines: Any
):
    config = with_evaluation(
        config_of({**TRAP, "env_args": {"bad_seeds": [-1]}}),
        env_args={"misspelt": 1},
        period_seconds=1e-6,
    )
    session = execute(config, tmp_path)
    assert session.metrics.counts()["environment_steps"] >= 600
    told = [e["text"] for e in read_lines(tmp_path / "events.jsonl") if e["event"] == "evaluation"]
    # The console also shows the first one, and more follow.
    assert len(told) > 1
    assert all("broken cannot be made: TypeError: " in text for text in told)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["first_error"] == told[0]
    assert summary["eval"] is None


def test_priorities_above_the_bound_are_clipped_and_counted(tmp_path: Path):
    config = config_of({**TRAP, "env_args": {"bad_seeds": [-1]}})
    bounded = dataclasses.replace(
        config, replay=dataclasses.replace(config.replay, priority_max=1.0)
    )
    for name, settings in (("default", config), ("bounded", bounded)):
        (tmp_path / name).mkdir()
        execute(settings, tmp_path / name)
    clipped = {
        name: json.loads((tmp_path / name / "summary.json").read_text())["priorities_clipped"]
        for name in ("default", "bounded")
    }
    assert clipped["default"] == 0
    assert clipped["bounded"] > 20


def test_a_reward_that_is_no_number_costs_that_step_and_the_run_goes_on(
    tmp_path: Path, read_lines: Any
):
    bad = environment_seeds(3, 0, 4, 0)[:1]
    config = config_of({**TRAP, "env_args": {"how": "nan", "bad_seeds": bad}})
    session = execute(config, tmp_path)
    assert session.metrics.counts()["environment_steps"] >= 600
    summary = json.loads((tmp_path / "summary.json").read_text())
    transitions = summary["transitions"]
    assert transitions["rejected"] == 0
    assert transitions["received"] == transitions["sent"] > 500
    assert transitions["lost"] == 0
    assert summary["steps_not_finite"].keys() == {"reward"}
    assert summary["learner_steps"] > 20
    told = [e["text"] for e in read_lines(tmp_path / "events.jsonl") if e["event"] == "not_finite"]
    assert len(told) == 1
    assert told[0].startswith("an environment's reward has the value nan: that step is left out")


@pytest.mark.parametrize("period_seconds", [0.01, 1e-9], ids=["soon", "after the first step"])
def test_an_evaluation_without_end_does_not_outlive_the_run(tmp_path: Path, period_seconds: float):
    """Play cliff walking: only the goal ends an episode, and the policy never finds it."""
    run = {"env": "CliffWalking-v1", "time_seconds": 1.0}
    bounds = {"period_seconds": period_seconds, "max_episode_steps": 10**9}
    config = with_evaluation(config_of(run), **bounds)
    session = session_of(config, tmp_path)
    evaluate, stages = SingleRun._evaluate, []

    def noted(single: SingleRun) -> None:
        stages.append(session.stage)
        if session.stage == "running":  # the last one ends only at its bound
            evaluate(single)

    single = SingleRun(session)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SingleRun, "_evaluate", noted)
        assert single.execute() == 0
    assert stages == ["running", "stopping"]
    assert json.loads((tmp_path / "summary.json").read_text())["exit_reason"] == "time"


def test_an_error_of_the_programs_own_loses_nothing_that_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = session_of(config_of({"env": "CartPole-v1", "steps": 10**6}), tmp_path)
    single = SingleRun(session)

    def show(_: Any) -> None:
        if session.metrics.total("learner", "learner_steps") > 20:
            raise ZeroDivisionError

    monkeypatch.setattr(session, "show", show)
    with pytest.raises(ZeroDivisionError):
        single.execute()
    assert load_model(tmp_path / "final_model.pth").parameter_version > 20
    session.records.close()
    assert session.records.flush(60)


def test_what_is_noted_again_and_again_is_shown_once_and_written_down_every_time(
    tmp_path: Path, read_lines: Any
):
    console = Listening()
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path, console)
    for step in range(3):
        session.note("evaluation", "evaluator", 0, f"step {step} has no score")
        session.note("saved", "learner", 0, f"saved at learner step {step}")
    session.records.close()
    assert session.records.flush(60)
    assert [text for text in console.said if "score" in text] == [
        "evaluator 0: step 0 has no score"
    ]
    assert len([text for text in console.said if "saved" in text]) == 3
    noted = [e for e in read_lines(tmp_path / "events.jsonl") if e["event"] == "evaluation"]
    assert len(noted) == 3


def test_the_first_traceback_is_shown_though_another_error_came_before(tmp_path: Path):
    console = Listening()
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path, console)
    session.note_error("actor 3: killed by SIGSEGV")
    session.note_error("actor 4: exit code 1")
    session.note_error("actor 5: KeyError", "Traceback\n  first")
    session.note_error("actor 6: KeyError", "Traceback\n  second")
    assert console.said == [
        *("actor 3: killed by SIGSEGV", "Traceback", "  first", "actor 5: KeyError"),
    ]
    session.run_dir.close()


def test_a_run_that_fails_again_while_it_ends_tells_why_it_failed_first(tmp_path: Path):
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path)
    session.fail("the Dask scheduler does not answer any more")
    session.fail("no actor can be kept alive")
    assert session.end_reason() == "failed"
    assert session.conclude("failed", Roster.of([])) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["error"] == "the Dask scheduler does not answer any more"


# Of a learner that published nothing after its start, only what it began with.
@pytest.mark.parametrize("rescued", [85, 40, 0, None])
def test_a_run_whose_learner_could_not_save_fails_unless_its_newest_parameters_were_saved(
    tmp_path: Path, rescued: int | None
):
    is_rescued = rescued == 85
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path)
    session.metrics.ingest(MemberKey("learner", 0, 0), Report({}, {"learner_steps": 90.0}), 1.0)
    session.metrics.ingest(MemberKey("actor", 0, 0), Report({"environment_steps": 9}, {}), 1.0)
    session.rescue = lambda: rescued
    assert session.conclude("steps", Roster.of([])) == (0 if is_rescued else 1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    told = " ".join(summary["unwritten"]) if is_rescued else summary["error"]
    assert ("of step 85 of 90 learner steps" if is_rescued else "is not saved") in told
    assert (summary["error"] is None) == is_rescued


def test_what_a_run_waits_for_is_shown_until_it_enters_the_next_stage(tmp_path: Path):
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path)
    session.wait_for("learner (0 of 1)")
    assert session.snapshot(Roster.of([])).waiting_for.startswith("learner (0 of 1), ")
    session.enter("running")
    assert (session.snapshot(Roster.of([])).stage, session.snapshot(Roster.of([])).waiting_for) == (
        "running",
        "",
    )
    session.run_dir.close()


def test_a_run_that_could_save_nothing_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pdqn.model.os.fsync", full)
    session = session_of(config_of({"env": "CartPole-v1", "steps": 200}, {}), tmp_path)
    assert SingleRun(session).execute() == 1
    error = json.loads((tmp_path / "summary.json").read_text())["error"]
    assert "final_model.pth does not exist" in error
    assert "No space left on device" in error
    assert "tries again" not in error
    assert not list(tmp_path.rglob("*.pth"))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_run_whose_summary_cannot_be_written_fails(tmp_path: Path):
    (tmp_path / "summary.json" / "in the way").mkdir(parents=True)
    session = session_of(config_of({"env": "CartPole-v1", "steps": 200}, {}), tmp_path)
    assert SingleRun(session).execute() == 1
    assert "summary.json is not written" in (session.failure or "")
