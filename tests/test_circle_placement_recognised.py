"""Circle placement is recognised by its own declaration, not by names or fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TimeLimit

from actors.circle_placement.environment import CirclePlacementEnv
from actors.environments.describe import describe_environment
from actors.environments.registration import CIRCLE_PLACEMENT_ID
from launcher.plan.prepare import prepare
from launcher.results.pictures import draw_pictures
from launcher.rundir import RunDirectory
from pdqn.config import Config
from pdqn.layers import build
from pdqn.model import load_model, read_model, save_model
from pdqn.networks import build_network
from pdqn.networks.qmap import QMap
from pdqn.networks.sizes import QMAP_FIELDS
from pdqn.specs import EnvironmentSpec

HERE = __name__
SIZE = 16
VARIANT = "pdqn-test/SmallMaps-v0"


class Treasure(gymnasium.Env[Any, Any]):
    """A game of another kind that happens to have a map and radii.

    Args:
        names: of its fields.
    """

    def __init__(self, names: tuple[str, ...] = ("map", "radii")) -> None:
        shapes = {"map": (SIZE, SIZE), "action_mask": (SIZE * SIZE,), "progress": (2,)}
        self._shapes = {name: shapes.get(name, (1,)) for name in names}
        self.observation_space = spaces.Dict(
            {name: spaces.Box(0, 1, shape, np.float32) for name, shape in self._shapes.items()}
        )
        self.action_space = spaces.Discrete(SIZE * SIZE)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        return self._seen(), 1.0, False, False, {}

    def _seen(self) -> dict[str, Any]:
        return {name: np.ones(shape, np.float32) for name, shape in self._shapes.items()}


class Halved(gymnasium.RewardWrapper[Any, Any]):
    """A wrapper that halves every reward."""

    def reward(self, reward: Any) -> float:
        return float(reward) / 2


def wrapped(**arguments: Any) -> gymnasium.Env[Any, Any]:
    return Halved(TimeLimit(CirclePlacementEnv(**arguments), 50))


def flat(**arguments: Any) -> gymnasium.Env[Any, Any]:
    return FlattenObservation(CirclePlacementEnv(**arguments))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    entry_point = "actors.circle_placement.environment:CirclePlacementEnv"
    gymnasium.register(VARIANT, entry_point, max_episode_steps=9)
    yield
    gymnasium.registry.pop(VARIANT)


def planned(env: str, env_args: dict[str, Any], **network: Any) -> tuple[EnvironmentSpec, Config]:
    layer = {
        "run": {"env": env, "env_args": env_args},
        "network": network,
        "replay": {"capacity": 1000, "store": "dense"},
    }
    spec, _, plan = prepare(build(("test", layer)))
    return spec, plan.config


def pictures_of(directory: Path, spec: EnvironmentSpec, config: Config) -> list[str]:
    """Draw the pictures of a run that has not learned anything yet."""
    run = RunDirectory(directory)
    run.write_config(config, config)
    run.metrics({"environment_steps": 1, "time_seconds": 1.0, "time/fps": 1.0})
    run.close()
    network = build_network(spec, config.network)
    save_model(directory / "final_model.pth", config, spec, network, 0)
    return [path.name for path in draw_pictures(directory)]


@pytest.mark.parametrize(
    "env", [CIRCLE_PLACEMENT_ID, f"actors.environments.registration:{CIRCLE_PLACEMENT_ID}",
            VARIANT, f"{HERE}:{VARIANT}", f"{HERE}:wrapped"],
)  # fmt: skip
def test_however_it_is_reached_it_has_its_discount_its_network_and_its_picture(
    env: str, tmp_path: Path
):
    spec, config = planned(env, {"map_size": SIZE, "radii": [3, 2]})
    assert spec.circle_placement
    assert config.actor.discount == 1.0
    assert config.network.kind == "qmap"
    names = ["training_results.png", "strategy.png"]
    assert pictures_of(tmp_path / "run", spec, config) == names


@pytest.mark.parametrize("names", [("map", "radii"), tuple(sorted(QMAP_FIELDS))])
def test_a_game_with_a_map_and_radii_has_none_of_them(names: tuple[str, ...], tmp_path: Path):
    spec, config = planned(f"{HERE}:Treasure", {"names": names})
    assert not spec.circle_placement
    assert config.actor.discount == 0.99
    assert config.network.kind != "qmap"
    assert pictures_of(tmp_path / "run", spec, config) == ["training_results.png"]


def test_a_game_that_has_all_of_its_fields_may_ask_for_its_network():
    names = tuple(sorted(QMAP_FIELDS))
    _, config = planned(f"{HERE}:Treasure", {"names": names}, kind="qmap")
    assert config.network.kind == "qmap"
    assert config.actor.discount == 0.99


def test_without_its_fields_it_has_another_network():
    spec, config = planned(f"{HERE}:flat", {"map_size": SIZE})
    assert spec.circle_placement
    assert (config.actor.discount, config.network.kind) == (1.0, "mlp")


def test_a_model_that_was_saved_before_environments_said_so_is_read(tmp_path: Path):
    spec, config = planned(CIRCLE_PLACEMENT_ID, {"map_size": SIZE})
    path = tmp_path / "model.pth"
    save_model(path, config, spec, build_network(spec, config.network), 5)
    content = torch.load(path, weights_only=True)
    del content["spec"]["circle_placement"]
    torch.save(content, path)
    model = load_model(path)
    assert isinstance(model.network, QMap)
    assert model.spec == read_model(path).spec
    assert not model.spec.circle_placement


def test_what_it_says_reaches_other_hosts():
    spec = describe_environment(CIRCLE_PLACEMENT_ID, {"map_size": SIZE})
    assert EnvironmentSpec.from_map(spec.to_map()).circle_placement
