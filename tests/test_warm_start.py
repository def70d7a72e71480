"""Runs that begin with the parameters of another run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from launcher.beginning import Beginning, model_of
from launcher.plan.inspector import Inspector
from learner.checkpoint import Saver
from learner.learner import Learner
from learner.warm_start import fit, fit_file
from pdqn.config import Config, SystemConfig
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import load_model, save_model
from pdqn.model_head import INITIAL_MODEL
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

if TYPE_CHECKING:
    from conftest import StartCommand

SPEC = EnvironmentSpec("CartPole-v1", (FieldSpec("observation", (4,), "float32"),), 2)
WIDER = dataclasses.replace(SPEC, num_actions=5)


def config_of(**network: int) -> Config:
    settings = {
        "run": {"env": "CartPole-v1"},
        "actor": {"count": 1, "discount": 1.0},
        "network": {"kind": "mlp", "hidden": 8, "layers": 2, **network},
        "replay": {"samples_per_insert": 2.0},
        "learner": {"learning_rate": 1e-3, "device": "cpu", "precision": "float32", "threads": 1},
    }
    return build(("test", settings))


def model_file(path: Path, version: int = 70) -> Path:
    torch.manual_seed(3)
    config = config_of()
    save_model(path, config, SPEC, build_network(SPEC, config.network), version)
    return path


def test_a_learner_begins_with_all_parameters_of_the_same_network(tmp_path: Path):
    model_file(tmp_path / INITIAL_MODEL)
    learner, said = Learner(config_of(), SPEC), list[str]()
    Saver(tmp_path, config_of(), SPEC).restore(learner, said.append)
    given = load_model(tmp_path / INITIAL_MODEL).network.state_dict()
    for network in (learner.online, learner.target):
        assert all(torch.equal(given[name], t) for name, t in network.state_dict().items())
    assert learner.learner_steps == 0, "the steps are those of this run"
    (line,) = said
    assert line.startswith("begins with the parameters of learner step 70, all ")


def test_parts_of_other_shapes_stay_new_and_are_named(tmp_path: Path):
    path = model_file(tmp_path / INITIAL_MODEL)
    learner, said = Learner(config_of(), WIDER), list[str]()
    before = {name: t.clone() for name, t in learner.online.state_dict().items()}
    Saver(tmp_path, config_of(), WIDER).restore(learner, said.append)
    given, after = load_model(path).network.state_dict(), learner.online.state_dict()
    other = [name for name in after if after[name].shape != given[name].shape]
    assert len(other) == 2, "the weights and biases of the advantages"
    assert all(torch.equal(after[n], before[n] if n in other else given[n]) for n in after)
    (line,) = said
    assert f"begins with {len(after) - 2} of {len(after)} parts" in line
    assert all(name in line for name in other)


def test_a_checkpoint_of_the_run_itself_goes_before(tmp_path: Path):
    model_file(tmp_path / INITIAL_MODEL)
    learner = Learner(config_of(), SPEC)
    Saver(tmp_path, config_of(), SPEC).save(learner)
    own = {name: t.clone() for name, t in learner.online.state_dict().items()}
    resumed, said = Learner(config_of(), SPEC), list[str]()
    Saver(tmp_path, config_of(), SPEC).restore(resumed, said.append)
    assert all(torch.equal(own[n], t) for n, t in resumed.online.state_dict().items())
    assert said == ["goes on from learner step 0"]


def test_many_parts_that_do_not_fit_are_counted():
    own = {f"layer{i}": torch.zeros(2) for i in range(9)} | {"kept": torch.zeros(1)}
    found = fit(own, {"kept": torch.ones(1), "layer1": torch.zeros(3)}, 5)
    assert found.taken == ("kept",)
    assert "layer1, [2] and not [3]" in found.text
    assert found.text.endswith("; and 5 more")


def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path):
    path = model_file(tmp_path / "other.pth")
    with pytest.raises(UsageError, match="none of its parameters fits this network: mine, which"):
        fit_file(path, torch.nn.ParameterDict({"mine": torch.zeros(3)}))


def test_the_launcher_says_what_fits_before_anything_starts(tmp_path: Path):
    path = model_file(tmp_path / "final_model.pth")
    assert model_of(tmp_path) == model_of(path) == path
    with Inspector(SystemConfig()) as inspector:
        begins = Beginning(model=path).check(config_of(), WIDER, inspector)
    assert begins.startswith(f"{path}: begins with ")
    with pytest.raises(UsageError, match="neither a model file nor a run with a model"):
        model_of(tmp_path / "nothing")


def test_a_run_begins_where_another_ended(
    pdqn_command: StartCommand, tmp_path: Path, eventually: Callable[..., object]
):
    run = [
        "launch", "--env", "CartPole-v1", "--mode", "single", "--console", "plain",
        "--preset", "none", "--set", "network.hidden=8", "--set", "evaluation.enabled=false",
    ]  # fmt: skip
    model_file(tmp_path / "first.pth")
    options = ["--init-from", "first.pth", "--steps", "50", "--run-dir", "run"]
    with pdqn_command(*run, *options, directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert "first.pth: begins with the parameters of learner step 70, all " in command.stdout
    given = load_model(tmp_path / "first.pth").network.state_dict()
    kept = load_model(tmp_path / "run" / "final_model.pth").network.state_dict()
    assert all(torch.equal(given[name], kept[name]) for name in kept), "it took no learner step"
    with pdqn_command(*run, "--resume", "run", "--init-from", "run", directory=tmp_path) as command:
        assert command.wait() == 2
    assert "--init-from run: a resumed run goes on with its own parameters" in command.stderr
