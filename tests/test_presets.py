"""Presets of known algorithms: their settings exist and work together."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import launcher
from benchmarks.learning_cases import placement
from launcher.cli.commands import check
from launcher.cli.options import PRESETS, configuration_of
from launcher.plan.prepare import check_combinations
from pdqn.config import Config
from pdqn.layers import build, from_assignments, read_toml

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


def test_pqn_samples_each_transition_twice_while_it_is_fresh():
    config = preset("pqn")
    assert (config.actor.returns, config.actor.trace_decay) == ("lambda", 0.65)
    assert config.learner.target == "none"
    assert config.replay.samples_per_insert == 2
    rollout = (config.actor.envs_per_actor or 0) * (config.actor.segment_length or 0)
    assert config.replay.capacity == 2 * rollout


def test_every_file_is_a_preset_and_every_preset_a_file():
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(PRESETS)


def test_the_preset_for_placement_is_what_its_figures_were_measured_with_but_for_their_pace():
    arguments = placement(64, "fixed").systems[0].arguments
    pairs = itertools.pairwise(arguments)
    sets = [value for option, value in pairs if option == "--set"]
    measured = build(("case", from_assignments(sets)))
    wanted = preset("placement")
    # Other sizes and a number of decay steps fitted the machine of these figures.
    paced = {
        "actor": {"envs_per_actor": 16},
        "replay": {"samples_per_insert": 0.6},
        "learner": {"learning_rate_decay_steps": "auto"},
    }
    measured = build(("measured", measured.to_map()), ("pace", paced))
    assert (measured.actor, measured.replay, measured.learner) == (
        wanted.actor,
        wanted.replay,
        wanted.learner,
    )


# ---- the preset that suits an environment ----


def configured(*arguments: str) -> Config:
    """Build the configuration of ``pdqn check`` with these arguments."""
    with check.make_context("check", list(arguments)) as context:
        return configuration_of(context.params)


def test_circle_placement_has_its_preset_without_being_asked():
    given, asked = configured(), configured("--preset", "placement")
    assert given == asked
    assert (given.actor.n_step, given.actor.exploration) == (15, "boltzmann")


def test_what_a_person_says_wins_over_what_suits_the_environment(tmp_path: Path):
    file = tmp_path / "own.toml"
    file.write_text("[actor]\nn_step = 5\n")
    assert configured("--config", str(file)).actor.n_step == 5
    assert configured("--set", "actor.n_step=4").actor.n_step == 4
    assert configured("--preset", "dqn").actor == preset("dqn").actor
    told = configured("--env-arg", "map_size=64").run.env_args
    assert told == {"map_size": 64, "rollouts": "auto"}
    assert configured("--env-arg", "rollouts=0").run.env_args == {"rollouts": 0}


def test_circle_placement_tells_of_other_placements_in_training_alone():
    for arguments in ((), ("--preset", "placement")):
        config = configured(*arguments)
        assert config.run.env_args == {"rollouts": "auto"}
        assert config.evaluation_env_args == {"rollouts": 0}
    assert configured("--preset", "dqn").run.env_args == {}
    assert configured("--preset", "placement", "--env", "CartPole-v1").run.env_args == {}


def test_other_environments_have_the_defaults():
    assert configured("--env", "CartPole-v1").actor == Config().actor
