"""The settings of known algorithms: they are settings, and they work together."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import launcher
from benchmarks.learning_cases import placement
from launcher.cli import PRESETS
from learner.objective import check_combinations
from pdqn.config import Config, build, from_assignments, read_toml

FOLDER = Path(launcher.__file__).with_name("presets")


def preset(name: str) -> Config:
    return build((f"preset {name}", read_toml(FOLDER / f"{name}.toml")))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_made_of_settings_that_go_together(name: str):
    config = preset(name)
    check_combinations(config)
    assert config != Config()


def test_every_file_is_a_preset_and_every_preset_a_file():
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(PRESETS)


def test_the_preset_for_placement_is_what_its_figures_were_measured_with():
    arguments = placement(64, "fixed").systems[0].arguments
    pairs = itertools.pairwise(arguments)
    sets = [value for option, value in pairs if option == "--set"]
    measured = build(("case", from_assignments(sets)))
    wanted = preset("placement")
    assert (measured.actor, measured.replay, measured.learner) == (
        wanted.actor,
        wanted.replay,
        wanted.learner,
    )
