"""Mode single, stopped and resumed: equal to the bit to a run that was never stopped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from test_single import PLACEMENT, Listening, config_of, untimed

from actors.environments.describe import describe_environment
from launcher.console.console import SilentConsole
from launcher.interrupts import Interrupts
from launcher.run.session import Session
from launcher.run.single import SingleRun
from launcher.run.state import read_state
from launcher.rundir import RunDirectory
from launcher.standstill import STANDSTILL
from learner.checkpoint import load_newest
from pdqn import plain
from pdqn.config import Config
from pdqn.layers import build
from replay.records import read_records

pytestmark = pytest.mark.usefixtures("same_threads", "no_picture")


def config_with(run: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """Return settings with every part of the state: noise, n-step, priorities, late parameters."""
    options = {
        "actor": {"n_step": 3},
        "network": {"noisy": run is not PLACEMENT},  # which has no dense layers
        "learner": {"double": True, "publish_period": 7},
        "evaluation": {"enabled": True, "episodes": 1, "period_steps": 50},
    }
    base = config_of({**run, "steps": None}, {"capacity": 300})
    return build(("base", base.to_map()), ("options", options), ("more", sections))


def session_in(config: Config, directory: Path, said: list[str] | None = None) -> Session:
    """Begin a session of a run, which resumes what is in its directory."""
    spec = describe_environment(config.run.env, config.run.env_args, config.run.frame_stack or 1)
    state = read_state(directory)
    run_dir = RunDirectory(directory, state.elapsed_seconds)
    run_dir.write_config(config, config)
    console = SilentConsole()
    if said is not None:
        console = Listening()
        console.said = said
    return Session(config, spec, run_dir, console, Interrupts(), state)


def run_to(
    config: Config, directory: Path, steps: int, prepare: Callable[[SingleRun], object] = id
) -> list[str]:
    """Run, or go on, up to these environment steps; return the console's lines."""
    limited = build(("config", config.to_map()), ("limit", {"run": {"steps": steps}}))
    said: list[str] = []
    run = SingleRun(session_in(limited, directory, said))
    prepare(run)
    assert run.execute() == 0
    return said


def interrupt_after(learner_steps: int) -> Callable[[SingleRun], object]:
    """Interrupt a run within its turn, after a learner step."""

    def prepare(run: SingleRun) -> None:
        step, left = run._learner.step, iter(range(learner_steps))

        def step_and_interrupt(*arguments: Any) -> Any:
            run._session.interrupts.count = int(next(left, None) is None)
            return step(*arguments)

        run._learner.step = step_and_interrupt  # type: ignore[method-assign]

    return prepare


def everything_in(directory: Path) -> dict[str, Any]:
    """Return all that a later session would go on from, and the figures without those of clocks."""
    checkpoint = load_newest(directory)
    assert checkpoint is not None
    (record,) = read_records(directory / STANDSTILL).records
    summary = untimed(json.loads((directory / "summary.json").read_text()))
    state = untimed(json.loads((directory / "state.json").read_text())["metrics"])
    # The streams of the ledger are those of each session; the summary has what they come to.
    del summary["sessions"], summary["eval"], state["evaluation"], state["ledger"]
    # Counts of the recovery itself; sums of losses are rounded as reports come.
    own = ("transitions_recovered", "journal_damaged")
    totals = [total for total in state["totals"] if total[1] not in own]
    state["totals"] = sorted(total for total in totals if total[0] in ("actor", "replay"))
    return {
        "checkpoint": checkpoint,
        "standstill": plain.unpack(record.payload),
        "summary": summary,
        "figures": state,
    }


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    """Compare to the bit, and name the first difference."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert list(first) == list(second), where
        for name in first:
            assert_equal(first[name], second[name], f"{where}/{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, other, f"{where}/{index}")
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype, where
        assert first.tobytes() == second.tobytes(), where
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second or (first != first and second != second), (where, first, second)


def sampled_next(config: Config, directory: Path) -> tuple[Any, ...]:
    """Return the tree's sums and the next samples of the replay that a session would go on with."""
    run = SingleRun(session_in(config, directory))
    buffer = run._replay.buffer
    tree = buffer._tree._nodes.tobytes()
    samples = [buffer.sample(16).keys.tolist() for _ in range(5)]
    run._replay.close()
    run._rollout.close()
    run._session.records.close()
    assert run._session.records.flush(60)
    return buffer.total_priority, tree, samples


FRESH = {"actor": {"returns": "lambda"}, "replay": {"max_age": 12}}


@pytest.mark.parametrize(
    ("run", "end", "stops", "sections"),
    [
        ({"env": "CartPole-v1"}, 900, (300, 612), {}),
        (PLACEMENT, 600, (100, 333), {}),
        ({"env": "CartPole-v1"}, 600, (300,), FRESH),
    ],
    ids=["cartpole", "placement", "fresh"],
)
def test_a_run_that_was_stopped_and_resumed_is_equal_to_one_that_was_not(
    tmp_path: Path, run: dict[str, Any], end: int, stops: tuple[int, ...], sections: dict[str, Any]
):
    config = config_with(run, **sections)
    run_to(config, tmp_path / "whole", end)
    for steps in stops:
        run_to(config, tmp_path / "parts", steps)
        run_to(config, tmp_path / "parts", end, interrupt_after(33))
    said = run_to(config, tmp_path / "parts", end)
    assert "goes on with the episodes that were in progress" in said
    whole, parts = (everything_in(tmp_path / name) for name in ("whole", "parts"))
    assert whole["summary"]["learner_steps"] > 50
    assert bool(whole["summary"]["transitions_expired"]) == bool(sections)
    assert_equal(whole, parts)
    first, second = (sampled_next(config, tmp_path / name) for name in ("whole", "parts"))
    assert first == second


def test_the_step_size_of_a_resumed_run_falls_on_from_where_it_was(tmp_path: Path):
    config = config_with({"env": "CartPole-v1"}, learner={"learning_rate_final": 1e-6})
    run_to(config, tmp_path / "whole", 600)
    for _ in range(2):
        run_to(config, tmp_path / "parts", 600, interrupt_after(33))
    run_to(config, tmp_path / "parts", 600)
    whole, parts = (everything_in(tmp_path / name) for name in ("whole", "parts"))
    taken = whole["checkpoint"]["optimizer"]["param_groups"][0]["lr"]
    assert taken == pytest.approx(1e-6, abs=1e-5)
    assert_equal(whole, parts)


class Forgetful(gymnasium.Env[Any, Any]):
    """An environment without methods for its state; an episode has ten steps."""

    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(2, self.steps / 10, np.float32), 1.0, self.steps == 10, False, {}


def test_episodes_that_cannot_be_saved_begin_again_and_what_they_had_recorded_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "forgetful", sys.modules[__name__])
    config = config_with({"env": "forgetful:Forgetful"})
    run_to(config, tmp_path, 100)  # two whole episodes of four environments, and five steps
    said = run_to(config, tmp_path, 104)
    expected = "new episodes begin: Forgetful has no methods get_state() and set_state()"
    assert said.count(expected) == 1
    # Of the five steps, the last one's reward is not known with the frame after it.
    assert json.loads((tmp_path / "summary.json").read_text())["transitions"]["sent"] == 80 + 16


def test_a_run_that_was_killed_goes_on_with_all_that_was_journaled_and_with_other_seeds(
    tmp_path: Path,
):
    config, killed, before = config_with({"env": "CartPole-v1"}), tmp_path / "killed", []

    def kill(run: SingleRun) -> None:
        act, left = run._act, iter(range(100))

        def act_or_die() -> None:
            if next(left, None) is None and not before:
                # What a kill would leave.
                shutil.copytree(tmp_path / "run", killed)
                buffer = run._replay.buffer
                before.extend((buffer.live_keys, buffer.total_priority, run._rollout._seeds))
                before.append(run._replay.limiter.get_state())
            act()

        run._act = act_or_die  # type: ignore[method-assign]

    run_to(config, tmp_path / "run", 420, kill)
    run = SingleRun(session_in(config, killed))
    buffer = run._replay.buffer
    assert [buffer.live_keys, buffer.total_priority] == before[:2]
    assert run._replay.limiter.get_state()["num_sampled"] == before[3]["num_sampled"] > 0
    assert not set(run._rollout._seeds) & set(before[2])
    run._session.interrupts.count = 1
    assert run.execute() == 0
    transitions = json.loads((killed / "summary.json").read_text())["transitions"]
    assert transitions["received"] == transitions["sent"] == buffer.inserted
    assert transitions["lost"] == 0
