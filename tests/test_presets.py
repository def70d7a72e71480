"""Presets of known algorithms: their settings exist and work together."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from test_machine import machine

import launcher
from launcher.cli.commands import check
from launcher.cli.options import PRESETS, configuration_of
from launcher.kinds import suited
from launcher.plan.plan import Plan
from launcher.plan.prepare import check_combinations, prepare
from launcher.plan.report import as_json, report
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import build, read_toml
from pdqn.specs import EnvironmentSpec, FieldSpec

FOLDER = Path(launcher.__file__).with_name("presets")


def preset(name: str) -> Config:
    return build((f"preset {name}", read_toml(FOLDER / f"{name}.toml")))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_made_of_settings_that_go_together(name: str):
    config = preset(name)
    check_combinations(config)
    assert config != Config()


def test_rainbow_learns_as_often_and_renews_its_target_after_as_many_frames_as_the_paper_says():
    config, frames_per_step = preset("rainbow"), 4
    samples_per_insert = config.replay.samples_per_insert
    assert samples_per_insert is not None
    steps_per_batch = config.learner.batch_size / samples_per_insert
    assert steps_per_batch == 4
    assert config.learner.target_update_period * steps_per_batch * frames_per_step == 32_000


def test_rainbow_begins_after_as_many_frames_and_corrects_its_sampling_as_slowly_as_the_paper():
    config, frames_per_step = preset("rainbow"), 4
    assert config.replay.min_size == 80_000 / frames_per_step
    learner_steps = config.replay.importance_sampling_annealing_steps
    assert learner_steps * 4 * frames_per_step == 200_000_000


def test_beyond_the_rainbow_learns_every_64_steps_and_renews_its_target_after_32000():
    config = preset("btr")
    samples_per_insert = config.replay.samples_per_insert
    assert samples_per_insert is not None
    steps_per_batch = config.learner.batch_size / samples_per_insert
    assert steps_per_batch == 64
    assert config.learner.target_update_period * steps_per_batch == 32_000
    assert config.learner.adam_epsilon == pytest.approx(0.005 / config.learner.batch_size, rel=2e-3)


@pytest.mark.parametrize("name", ["pqn", "board"])
def test_pqn_and_board_sample_each_transition_twice_while_it_is_fresh(name: str):
    config = preset(name)
    assert (config.actor.returns, config.actor.trace_decay) == ("lambda", 0.65)
    assert config.learner.target == "none"
    assert config.replay.samples_per_insert == 2
    rollout = (config.actor.envs_per_actor or 0) * (config.actor.segment_length or 0)
    assert config.replay.capacity == 2 * rollout


@pytest.mark.parametrize("name", ["pqn", "board"])
def test_pqn_and_board_square_the_errors_of_any_return_of_a_small_board(name: str):
    assert preset(name).learner.huber_delta >= 1e5


def test_board_is_pqn_with_priorities_and_another_network():
    board, pqn = preset("board"), preset("pqn")
    assert (board.actor, board.learner) == (pqn.actor, pqn.learner)
    assert board.replay == dataclasses.replace(pqn.replay, priority_exponent=0.6)
    assert board.network == dataclasses.replace(pqn.network, kind="hadamax_small")


def test_every_file_is_a_preset_and_every_preset_a_file():
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(PRESETS)


# ---- the preset that comes by itself ----


def planned(*arguments: str) -> Plan:
    """Make the plan of ``pdqn check`` with these arguments."""
    with check.make_context("check", list(arguments)) as context:
        asked = configuration_of(context.params)
    return prepare(asked.config, given=asked.given)[2]


def configured(*arguments: str) -> Config:
    """Return the configuration of these arguments before the plan fills it in."""
    return planned(*arguments).before


def spec_of(*fields: FieldSpec, name: str = "a/Task-v0") -> EnvironmentSpec:
    return EnvironmentSpec(name, fields, 3)


def box(*shape: int, dtype: str = "float32") -> FieldSpec:
    return FieldSpec("observation", shape, dtype)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (spec_of(box(3), name="pdqn/CirclePlacement-v0"), "placement"),
        (spec_of(box(4), name="CartPole-v1"), "vector"),
        (spec_of(box(2)), "vector"),
        (spec_of(box(6, dtype="float64"), FieldSpec("action_mask", (3,), "bool")), "vector"),
        (spec_of(box(32)), "vector"),
        (spec_of(box(33)), None),
        (spec_of(box(128, dtype="uint8")), None),
        (spec_of(FieldSpec("observation", (1,), "int64", categories=(16,), start=(0,))), None),
        (spec_of(box(10, 10, 4, dtype="bool")), "board"),
        (spec_of(box(9, 9, 3, dtype="uint8")), "board"),
        (spec_of(box(7, 7, 3, dtype="uint8")), None),
        (spec_of(box(4, 10, 10, dtype="uint8")), "board"),
        (spec_of(box(84, 84, dtype="uint8")).stacked(4), "atari"),
        (spec_of(box(84, 84, 4, dtype="uint8")), "atari"),
        (spec_of(box(4, 84, 84, dtype="uint8")), "atari"),
        (spec_of(box(84, 84)).stacked(4), None),
        (spec_of(box(96, 96, 3, dtype="uint8")), None),
        (spec_of(box(210, 160, 3, dtype="uint8")), None),
    ],
)
def test_the_kind_of_observation_decides_which_preset_comes_by_itself(
    spec: EnvironmentSpec, name: str | None
):
    found = suited(spec, on_cpu=True)
    assert (found and found.name) == name


def test_screens_have_a_preset_by_themselves_only_where_a_cpu_learns():
    screen, board = box(84, 84, dtype="uint8"), box(10, 10, 4, dtype="bool")
    assert suited(spec_of(screen).stacked(4), on_cpu=False) is None
    assert suited(spec_of(board), on_cpu=False) == suited(spec_of(board), on_cpu=True)


def test_circle_placement_has_its_preset_without_being_asked():
    given, asked = configured(), configured("--preset", "placement")
    assert given == asked
    assert (given.actor.n_step, given.actor.exploration) == (15, "boltzmann")


def test_what_a_person_says_wins_over_what_suits_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "own.toml"
    file.write_text("[actor]\nn_step = 5\n")
    assert configured("--config", str(file)).actor.n_step == 5
    assert configured("--set", "actor.n_step=4").actor.n_step == 4
    assert configured("--preset", "dqn").actor == preset("dqn").actor
    told = configured("--env-arg", "map_size=64").run.env_args
    assert told == {"map_size": 64, "rollouts": "auto"}
    assert configured("--env-arg", "rollouts=0").run.env_args == {"rollouts": 0}
    monkeypatch.setenv("PDQN_ACTOR__N_STEP", "6")
    assert configured("--env", "CartPole-v1").actor.n_step == 6
    assert configured("--env", "CartPole-v1").replay == preset("vector").replay


def test_circle_placement_tells_of_other_placements_in_training_alone():
    for arguments in ((), ("--preset", "placement")):
        config = configured(*arguments)
        assert config.run.env_args == {"rollouts": "auto"}
        assert config.evaluation_env_args == {"rollouts": 0}
    assert configured("--preset", "dqn").run.env_args == {}
    assert configured("--preset", "placement", "--env", "CartPole-v1").run.env_args == {}


def test_a_vector_and_a_board_have_their_presets_and_say_so():
    for env, name in (("CartPole-v1", "vector"), ("MinAtar/Breakout-v1", "board")):
        plan, wanted = planned("--env", env), preset(name)
        assert (plan.before.actor, plan.before.replay) == (wanted.actor, wanted.replay)
        assert (plan.before.learner, plan.before.network) == (wanted.learner, wanted.network)
        assert plan.preset.startswith(f"preset {name}, for ")
        text = io.StringIO()
        Console(width=200, file=text).print(report(machine(), plan))
        assert plan.preset in text.getvalue()
        assert as_json(machine(), plan)["plan"]["preset"] == plan.preset


def test_the_machine_still_sizes_what_a_preset_leaves_open():
    plan = planned("--env", "CartPole-v1")
    assert plan.before.actor.count is None
    assert plan.config.actor.count is not None


def test_a_person_who_names_a_preset_gets_no_other():
    plain = planned("--env", "CartPole-v1", "--preset", "none")
    assert (plain.before.actor, plain.before.learner, plain.preset) == (
        Config().actor,
        Config().learner,
        "",
    )
    assert planned("--env", "MinAtar/Breakout-v1", "--preset", "dqn").before.learner == (
        preset("dqn").learner
    )


def test_a_setting_of_a_persons_takes_the_place_of_the_presets_and_the_run_says_so():
    plan = planned("--env", "MinAtar/Breakout-v1", "--set", "learner.batch_size=32")
    assert plan.before.learner.batch_size == 32
    assert plan.before.learner.target == "none"
    assert plan.preset.startswith("preset board, but for learner.batch_size, for ")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("actor.n_step=1", "actor.n_step does nothing beside it"),
        ("learner.target_update_period=100", "learner.target_update_period does nothing beside it"),
        ("learner.munchausen=true", "munchausen = true with actor.returns = lambda"),
        (
            "network.normalize_rewards=true",
            "normalize_rewards = true with actor.returns = lambda",
        ),
        ("replay.capacity=1000", "min_size is 4096"),
    ],
)
def test_a_preset_stands_aside_for_a_setting_that_does_not_go_with_it(setting: str, reason: str):
    plan = planned("--env", "MinAtar/Breakout-v1", "--set", setting)
    section, key = setting.partition("=")[0].split(".")
    assert plan.before.learner.target == "network"
    assert getattr(getattr(plan.before, section), key) != getattr(getattr(Config(), section), key)
    assert plan.preset.startswith("no preset: board would be for small boards")
    assert reason in plan.preset
    assert not plan.errors


def test_a_preset_whose_cause_a_person_overrides_does_not_stand_aside():
    given = ("--set", "actor.returns=n_step", "--set", "actor.n_step=1")
    plan = planned("--env", "MinAtar/Breakout-v1", *given)
    assert (plan.before.actor.n_step, plan.before.learner.target) == (1, "none")


def test_an_error_that_is_a_persons_own_is_told_as_without_a_preset():
    setting = ("--set", "learner.micro_batch_size=1000")
    told = []
    for more in ((), ("--preset", "none")):
        with pytest.raises(UsageError) as caught:
            planned("--env", "CartPole-v1", *setting, *more)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "micro_batch_size = 1000" in told[0]


def test_a_configuration_that_sets_everything_has_no_preset_and_none_is_named(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text(Config().to_toml())
    plan = planned("--config", str(file), "--env", "CartPole-v1")
    assert plan.preset == ""
    assert plan.before.actor == Config().actor


@pytest.mark.parametrize("options", [(), ("--preset", "none"), ("--env-arg", "rollouts=0")])
def test_a_run_of_circle_placement_is_the_same_again_by_its_configuration(
    tmp_path: Path, options: tuple[str, ...]
):
    first = planned(*options).config
    file = tmp_path / "config.toml"
    file.write_text(first.to_toml())
    again = planned("--config", str(file)).config
    assert (again.run.env_args, again.evaluation.env_args) == (
        first.run.env_args,
        first.evaluation.env_args,
    )
    assert again.actor == first.actor
