"""The parameters with the best evaluation are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from actors.best import BestKeeper
from pdqn.config import Config, NetworkConfig
from pdqn.model import load_model
from pdqn.networks import QNetwork, build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

CONFIG = Config(network=NetworkConfig(hidden=4, layers=1))
FIELDS = (FieldSpec("observation", (3,), "float32"),)
SPEC = EnvironmentSpec("test/Vector-v0", FIELDS, 2)


def network() -> QNetwork:
    return build_network(SPEC, CONFIG.network)


def result(return_mean: float, **metrics: float) -> dict[str, Any]:
    return {"return_mean": return_mean, "metrics": metrics}


def test_a_better_evaluation_replaces_the_file_and_a_worse_one_does_not(tmp_path: Path):
    path = tmp_path / "best.pth"
    keeper = BestKeeper(path, CONFIG, SPEC)
    networks = [network() for _ in range(4)]
    for version, score in enumerate((1.0, 3.0, 2.0, 3.0)):
        keeper.offer(result(score), networks[version], version)
    model = load_model(path)
    assert (model.score, model.parameter_version, keeper.score) == (3.0, 1, 3.0)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, networks[1].state_dict()[name])


def test_a_keeper_that_was_started_again_remembers_what_it_has(tmp_path: Path):
    path = tmp_path / "best.pth"
    BestKeeper(path, CONFIG, SPEC).offer(result(3.0), network(), 7)
    again = BestKeeper(path, CONFIG, SPEC)
    again.offer(result(2.0), network(), 8)
    assert load_model(path).parameter_version == 7


def test_a_damaged_file_is_set_aside_and_the_next_evaluation_is_the_best(tmp_path: Path):
    path = tmp_path / "best.pth"
    path.write_bytes(b"damaged")
    keeper = BestKeeper(path, CONFIG, SPEC)
    assert "best.pth: not a model" in keeper.unread
    assert (tmp_path / "unreadable-best.pth").read_bytes() == b"damaged"
    assert keeper.offer(result(-3.0), network(), 1)
    again = BestKeeper(path, CONFIG, SPEC)
    assert (again.score, again.unread) == (-3.0, "")


def test_the_headline_metric_decides_where_there_is_one(tmp_path: Path):
    path = tmp_path / "best.pth"
    keeper = BestKeeper(path, CONFIG, EnvironmentSpec("test/Headline-v0", FIELDS, 2, "coverage"))
    keeper.offer(result(9.0, coverage=0.1), network(), 1)
    keeper.offer(result(1.0, coverage=0.2), network(), 2)
    assert load_model(path).parameter_version == 2


def test_a_mean_over_the_episodes_that_were_not_cut_is_never_the_best(tmp_path: Path):
    path = tmp_path / "best.pth"
    keeper = BestKeeper(path, CONFIG, EnvironmentSpec("test/Headline-v0", FIELDS, 2, "coverage"))
    assert keeper.offer({**result(9.0, coverage=0.2), "unscored": 0}, network(), 1)
    assert not keeper.offer({**result(1.0, coverage=0.9), "unscored": 1}, network(), 2)
    assert not keeper.offer({**result(1.0), "unscored": 3}, network(), 3), "all were cut"
    assert load_model(path).parameter_version == 1


def test_where_the_run_directory_is_on_another_host_nothing_is_written(tmp_path: Path):
    path = tmp_path / "elsewhere" / "best.pth"
    keeper = BestKeeper(path, CONFIG, SPEC)
    keeper.offer(result(3.0), network(), 1)
    assert not path.parent.exists()
