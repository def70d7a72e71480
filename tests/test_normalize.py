"""Normalisation by running statistics that are part of the parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_learner_options import SPEC, config_of, learn, sample_of

from learner.learner import Learner
from pdqn.errors import UsageError
from pdqn.model import load_model, save_model
from pdqn.networks import build_network
from pdqn.networks.array_network import has_arrays
from pdqn.networks.fused import FusedNetwork
from pdqn.networks.scaling import RunningScale
from pdqn.networks.sizes import check_network, network_sizes
from pdqn.specs import EnvironmentSpec, FieldSpec


def test_the_statistics_are_those_of_all_rows_however_they_came():
    rows = np.random.default_rng(0).normal(7.0, 3.0, (500, 4)).astype(np.float32)
    scale = RunningScale(4)
    for part in np.array_split(rows, [1, 3, 64, 300]):
        scale.observe(torch.from_numpy(part))
    assert scale.mean.numpy() == pytest.approx(rows.mean(0), rel=1e-4)
    assert scale.variance.numpy() == pytest.approx(rows.var(0), rel=1e-3)
    assert scale.count.item() == 500
    shown = scale(torch.from_numpy(rows)).numpy()
    assert shown.mean(0) == pytest.approx(np.zeros(4), abs=1e-3)
    assert shown.std(0) == pytest.approx(np.ones(4), rel=1e-3)


def test_before_any_row_values_stay_as_they_are_and_outliers_are_bounded():
    scale = RunningScale(2)
    assert scale(torch.tensor([[0.5, -2.0]])).numpy() == pytest.approx(
        np.array([[0.5, -2.0]]), rel=1e-3
    )
    assert scale(torch.tensor([[1e6, -1e6]])).tolist() == [[10.0, -10.0]]


def test_the_learner_counts_its_batches_for_both_networks_at_once():
    learner = Learner(config_of(normalize=True), SPEC)
    online, target = learner.online, learner.target
    assert isinstance(online, FusedNetwork)
    assert isinstance(target, FusedNetwork)
    assert not has_arrays(online), "compiled loops do not normalise"
    for seed in range(3):
        learn(learner, sample_of(seed))
    assert online.scaling is not None
    assert target.scaling is not None
    seen = np.concatenate([sample_of(seed).observation["observation"] for seed in range(3)])
    assert online.scaling.mean.cpu().numpy() == pytest.approx(seen.mean(0), abs=1e-5)
    assert torch.equal(online.scaling.mean, target.scaling.mean)
    assert torch.equal(online.scaling.variance, target.scaling.variance)


def test_acting_changes_no_statistics():
    network = build_network(SPEC, config_of(normalize=True).network)
    assert isinstance(network, FusedNetwork)
    observation = {"observation": torch.randn(5, 4), "action_mask": torch.ones(5, 3)}
    network(*network.prepare(observation))
    assert network.scaling is not None
    assert network.scaling.count.item() == 0


def test_a_model_file_has_the_statistics(tmp_path: Path):
    config = config_of(normalize=True)
    learner = Learner(config, SPEC)
    learn(learner, sample_of(1))
    path = tmp_path / "model.pth"
    save_model(path, config, SPEC, learner.online, learner.learner_steps)
    loaded = load_model(path).network
    observation = {"observation": 9 + torch.randn(5, 4), "action_mask": torch.ones(5, 3)}
    online = learner.online.cpu()
    values = online(*online.prepare(observation))
    assert torch.equal(values, loaded(*loaded.prepare(observation)))


@pytest.mark.parametrize(
    ("spec", "settings", "told"),
    [
        (
            EnvironmentSpec("i", (FieldSpec("image", (40, 40, 3), "uint8"),), 3),
            {"kind": "nature"},
            "i has no plain numbers, but image",
        ),
        (SPEC, {"kind": "mine:make"}, "a network of kind mine:make does not have it"),
    ],
)
def test_where_nothing_can_be_normalised_it_is_refused(
    spec: EnvironmentSpec, settings: dict[str, str], told: str
):
    config = dataclasses.replace(config_of(normalize=True).network, **settings)
    with pytest.raises(UsageError, match=told):
        check_network(spec, network_sizes(spec, config))
