"""The parameters with the best evaluation are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.best import BestKeeper
from pdqn.config import Config, NetworkConfig
from pdqn.model import load_model, save_model
from pdqn.networks import QNetwork, build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

CONFIG = Config(network=NetworkConfig(hidden=4, layers=1))
FIELDS = (FieldSpec("observation", (3,), "float32"),)
SPEC = EnvironmentSpec("test/Vector-v0", FIELDS, 2)


def build() -> QNetwork:
    return build_network(SPEC, CONFIG.network)


def result(return_mean: float, **metrics: float) -> dict[str, Any]:
    return {"return_mean": return_mean, "metrics": metrics}


def offer(keeper: BestKeeper, scores: Any, version: int, network: QNetwork | None = None) -> bool:
    """Offer an evaluation by the score of each episode, or by one that all episodes have."""
    values = np.full(4, scores) if isinstance(scores, float) else np.asarray(scores, np.float64)
    described = result(float(np.nanmean(values)))
    return keeper.offer(described, values, network or build(), version)


def offer_result(keeper: BestKeeper, described: dict[str, Any], version: int) -> bool:
    score = described["metrics"].get("coverage", described["return_mean"])
    return keeper.offer(described, np.full(4, score), build(), version)


def test_a_better_evaluation_replaces_the_file_and_a_worse_one_does_not(tmp_path: Path):
    path = tmp_path / "best.pth"
    keeper = BestKeeper(path, CONFIG, SPEC)
    networks = [build() for _ in range(4)]
    for version, score in enumerate((1.0, 3.0, 2.0, 3.0)):
        offer(keeper, score, version, networks[version])
    model = load_model(path)
    assert (model.score, model.parameter_version, keeper.score) == (3.0, 1, 3.0)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, networks[1].state_dict()[name])


def test_a_keeper_that_was_started_again_remembers_what_it_has(tmp_path: Path):
    path = tmp_path / "best.pth"
    offer(BestKeeper(path, CONFIG, SPEC), 3.0, 7)
    again = BestKeeper(path, CONFIG, SPEC)
    offer(again, 2.0, 8)
    assert load_model(path).parameter_version == 7


def test_a_damaged_file_is_set_aside_and_the_next_evaluation_is_the_best(tmp_path: Path):
    path = tmp_path / "best.pth"
    path.write_bytes(b"damaged")
    keeper = BestKeeper(path, CONFIG, SPEC)
    assert "best.pth: not a model" in keeper.unread
    assert (tmp_path / "unreadable-best.pth").read_bytes() == b"damaged"
    assert offer(keeper, -3.0, 1)
    again = BestKeeper(path, CONFIG, SPEC)
    assert (again.score, again.unread) == (-3.0, "")


def test_the_headline_metric_decides_where_there_is_one(tmp_path: Path):
    path = tmp_path / "best.pth"
    keeper = BestKeeper(path, CONFIG, EnvironmentSpec("test/Headline-v0", FIELDS, 2, "coverage"))
    offer_result(keeper, result(9.0, coverage=0.1), 1)
    offer_result(keeper, result(1.0, coverage=0.2), 2)
    assert load_model(path).parameter_version == 2


def test_a_mean_over_the_episodes_that_were_not_cut_is_never_the_best(tmp_path: Path):
    path = tmp_path / "best.pth"
    keeper = BestKeeper(path, CONFIG, EnvironmentSpec("test/Headline-v0", FIELDS, 2, "coverage"))
    assert offer_result(keeper, {**result(9.0, coverage=0.2), "unscored": 0}, 1)
    assert not offer_result(keeper, {**result(1.0, coverage=0.9), "unscored": 1}, 2)
    assert not offer_result(keeper, {**result(1.0), "unscored": 3}, 3), "all were cut"
    assert load_model(path).parameter_version == 1


def test_where_the_run_directory_is_on_another_host_nothing_is_written(tmp_path: Path):
    path = tmp_path / "elsewhere" / "best.pth"
    keeper = BestKeeper(path, CONFIG, SPEC)
    offer(keeper, 3.0, 1)
    assert not path.parent.exists()


# ---- the first evaluation ----

FIRST = [0.40, 0.42, 0.38, 0.44]


def keeper_with_first(path: Path) -> BestKeeper:
    keeper = BestKeeper(path, CONFIG, SPEC)
    assert offer(keeper, FIRST, 0)
    assert (keeper.version, keeper.is_first) == (0, True)
    return keeper


@pytest.mark.parametrize(
    ("gains", "is_kept"),
    [
        ([0.01, 0.01, 0.02, 0.01], True),
        ([0.01, -0.01, 0.02, 0.0], False),  # 0.005 +- 0.0065
        ([0.02, 0.0, 0.0, 0.0], False),  # one map says little: 0.005 +- 0.005
        ([0.01, 0.01, 0.01, 0.01], True),
        ([0.0, 0.0, 0.0, 0.0], False),
        ([1e-15, 1e-15, 1e-15, 1e-15], False),  # rounding
        ([-0.01, -0.01, -0.02, -0.01], False),
    ],
)
def test_the_first_parameters_stay_the_best_until_an_evaluation_is_two_errors_above_them(
    tmp_path: Path, gains: list[float], is_kept: bool
):
    keeper = keeper_with_first(tmp_path / "best.pth")
    assert offer(keeper, np.add(FIRST, gains), 100) is is_kept
    assert load_model(tmp_path / "best.pth").parameter_version == (100 if is_kept else 0)
    assert (keeper.version, keeper.is_first) == ((100, False) if is_kept else (0, True))


def test_once_the_first_evaluation_is_beaten_the_highest_score_counts(tmp_path: Path):
    keeper = keeper_with_first(tmp_path / "best.pth")
    assert offer(keeper, np.add(FIRST, 0.01), 100)
    assert offer(keeper, np.add(FIRST, [0.09, -0.01, 0.01, -0.01]), 200), "0.02 +- 0.024"
    assert not offer(keeper, np.add(FIRST, 0.015), 300)
    assert keeper.version == 200


def test_what_the_first_evaluation_was_outlives_a_restart(tmp_path: Path):
    path = tmp_path / "best.pth"
    keeper_with_first(path)
    again = BestKeeper(path, CONFIG, SPEC)
    assert (again.version, again.is_first) == (0, True)
    assert not offer(again, np.add(FIRST, [0.02, 0.0, 0.0, 0.0]), 100)
    assert offer(again, np.add(FIRST, 0.01), 200)
    later = BestKeeper(path, CONFIG, SPEC)
    assert (later.version, later.is_first) == (200, False)
    assert not offer(later, np.add(FIRST, 0.005), 300)


def test_of_a_single_episode_there_is_no_error_and_the_score_decides(tmp_path: Path):
    keeper = BestKeeper(tmp_path / "best.pth", CONFIG, SPEC)
    assert [offer(keeper, [score], n) for n, score in enumerate((0.4, 0.4, 0.3, 0.41))] == [
        *(True, False, False, True)
    ]


def test_episodes_are_compared_where_both_evaluations_have_a_score(tmp_path: Path):
    keeper = BestKeeper(tmp_path / "best.pth", CONFIG, SPEC)
    offer(keeper, [0.40, np.nan, 0.38, 0.9], 0)
    assert not offer(keeper, [0.39, 9.0, 0.37], 100), "9.0 has nothing to be compared with"
    assert offer(keeper, [0.41, 9.0, 0.40, np.nan, 0.1], 200)


def test_the_best_file_of_an_earlier_version_is_replaced_by_any_higher_score(tmp_path: Path):
    path = tmp_path / "best.pth"
    save_model(path, CONFIG, SPEC, build(), 7, 3.0)
    keeper = BestKeeper(path, CONFIG, SPEC)
    assert (keeper.score, keeper.version, keeper.is_first) == (3.0, 7, False)
    assert not offer(keeper, 2.5, 8)
    assert offer(keeper, [9.0, 0.0, 2.0, 2.0], 9)
