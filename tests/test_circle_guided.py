"""Searches of circle placement in which a policy takes part: ``--search`` and ``Policy.search``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from actors.circle_placement.completion import absent, best_centre, greedy
from actors.circle_placement.environment import CirclePlacementEnv, EpisodeBatch
from actors.circle_placement.guided import (
    POLICY_ALONE,
    Method,
    Values,
    exact_greedy,
    of_symmetries,
    parse_search,
    place,
)
from actors.circle_placement.problem import OwnMaps, Problem
from actors.circle_placement.search import Placement, beam_search
from actors.circle_placement.tables import NEVER, tables_of
from actors.environments.describe import describe_environment
from launcher.evaluation.evaluate import evaluate
from pdqn.config import Config, NetworkConfig, RunConfig
from pdqn.errors import UsageError
from pdqn.model import Model, save_model
from pdqn.networks import build_network
from pdqn.policy import Policy, action_values
from pdqn.specs import Observation

CIRCLES = "pdqn/CirclePlacement-v0"
SEARCHES = ["rollouts:1", "rollouts:8", "beam:3x7", "beam:1x2", "time:20ms"]
PROBLEMS = [
    Problem.parse(32, "fixed", False),
    Problem.parse(48, "random", False, spacing=1),
    Problem.parse(24, [4] * 20, False),  # never room for all of them
    Problem.parse(24, [11], False),
]


def model_of(
    env: str = CIRCLES, frame_stack: int = 1, kind: str = "auto", **env_args: Any
) -> Model:
    """The model of a network that has learned nothing, and is far from greedy."""
    torch.manual_seed(1)
    spec = describe_environment(env, env_args, frame_stack)
    network = build_network(spec, NetworkConfig(kind=kind)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return Model(network, spec, env_args, 7)


def values_of(problem: Problem) -> Values:
    return partial(action_values, model_of(map_size=problem.map_size).network)


def noise(seed: int = 0) -> Values:
    """Q that knows nothing; the same for the same calls in the same order."""
    generator = np.random.default_rng(seed)

    def values(observation: Observation) -> NDArray[np.float32]:
        mask = observation["action_mask"]
        drawn = generator.random(mask.shape, np.float32)
        return np.where(mask > 0, drawn, np.float32(-np.inf))

    return values


def begun(problem: Problem, seed: int) -> EpisodeBatch:
    batch = EpisodeBatch(problem, 1)
    batch.start(0, seed)
    return batch


def replayed(problem: Problem, seed: int, placement: Placement) -> float:
    """The coverage that the environment gives for a placement, which must end its episode."""
    batch, collected = begun(problem, seed), 0.0
    for x, y in placement.centres.tolist():
        rewards, _ = batch.place(np.array([x * problem.map_size + y]))
        collected += float(rewards[0])
    assert batch.ends[0] != 0
    return collected


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("text", SEARCHES)
def test_the_environment_collects_what_a_search_promises_and_never_less_than_greedy(problem, text):
    network = values_of(problem)
    for seed in range(60, 63):
        least = exact_greedy(begun(problem, seed)).coverage
        assert replayed(problem, seed, exact_greedy(begun(problem, seed))) == pytest.approx(least)
        for values in (network, noise(), None):
            found = place(begun(problem, seed), parse_search(text), values)
            assert replayed(problem, seed, found) == pytest.approx(found.coverage, abs=1e-12)
            assert found.coverage >= least - 1e-12


@pytest.mark.parametrize("method", [POLICY_ALONE, parse_search("symmetries")])
def test_a_policy_without_a_search_collects_what_it_promises(method):
    problem = PROBLEMS[2]
    found = place(begun(problem, 60), method, noise())
    assert replayed(problem, 60, found) == pytest.approx(found.coverage, abs=1e-12)
    assert found.coverage < exact_greedy(begun(problem, 60)).coverage


def test_a_search_follows_the_rules_of_peoples_own_maps(tmp_path: Path):
    town = np.random.default_rng(0).random((30, 45))
    town[10:14, 20:30] = np.nan
    np.save(tmp_path / "town.npy", town)
    own = OwnMaps(str(tmp_path / "town.npy"), keep_out="disc", placed=[[5, 5, 4]])
    problem = Problem.parse("auto", [6, 5, 5, 3], False, spacing=2, own=own)
    for text in SEARCHES:
        found = place(begun(problem, 0), parse_search(text), noise())
        assert len(found.centres) == 4
        assert replayed(problem, 0, found) == pytest.approx(found.coverage, abs=1e-12)


def test_a_time_limit_begins_from_the_policys_placement():
    problem = PROBLEMS[0]
    network, gains = values_of(problem), []
    for seed in range(60, 64):
        tables = tables_of(problem, seed)
        good = beam_search(tables, 4, 16)
        moves = {k: x * problem.map_size + y for k, (x, y) in enumerate(good.centres.tolist())}

        def knowing(observation: Observation, moves: dict[int, int] = moves) -> Any:
            values = np.zeros(observation["action_mask"].shape, np.float32)
            values[0, moves[int(observation["placed"][0].sum())]] = 1.0
            return values

        over_before_it_begins = Method("time", seconds=1e-9)
        found = place(begun(problem, seed), over_before_it_begins, knowing)
        assert found.coverage == pytest.approx(good.coverage, abs=1e-12)
        least = greedy(tables)[0] / tables.total
        gains.append(good.coverage - least)
        found = place(begun(problem, seed), over_before_it_begins, network)
        assert found.coverage >= least - 1e-12
    assert max(gains) > 1e-4


@pytest.mark.parametrize("text", ["rollouts:4", "beam:3x6", "symmetries"])
def test_the_same_search_finds_the_same(text):
    problem = PROBLEMS[0]
    network = values_of(problem)
    first, again = (place(begun(problem, 60), parse_search(text), network) for _ in range(2))
    assert first.centres.tolist() == again.centres.tolist()
    assert first.coverage == again.coverage


@pytest.mark.parametrize("text", ["rollouts:1", "beam:1x2"])
def test_the_centre_that_q_prefers_is_tried(text):
    problem = Problem.parse(16, [3, 2], False)
    for seed in range(6):
        tables = tables_of(problem, seed)
        whole = np.full((1, 256), -np.inf, np.float32)
        for x, y in np.argwhere(tables.sums[0] > NEVER):
            rows, columns = absent(tables), absent(tables)
            rows[0], columns[0] = x, y
            value = best_centre(tables, rows, columns, 1, 0, 0.0)[0]
            whole[0, x * 16 + y] = (tables.sums[0, x, y] + value) / tables.total
        found = place(begun(problem, seed), parse_search(text), lambda _, whole=whole: whole)
        assert found.coverage == pytest.approx(whole.max(), abs=1e-6)


def test_a_beam_asks_once_a_step_for_all_its_placements():
    problem, sizes = PROBLEMS[0], []
    values = noise()

    def counted(observation: Observation) -> NDArray[np.float32]:
        sizes.append(len(observation["map"]))
        masks = observation["action_mask"].astype(bool)
        assert masks.any(axis=1).all()
        return values(observation)

    place(begun(problem, 60), parse_search("beam:3x8"), counted)
    assert isinstance(problem.radii, tuple)
    assert sizes == [1] + [3] * (len(problem.radii) - 2)


def test_without_the_policy_weights_propose_all_centres():
    problem = PROBLEMS[0]
    tables = tables_of(problem, 60)
    for text, width, breadth in (("rollouts:8", 1, 16), ("beam:3x7", 3, 7)):
        found = place(begun(problem, 60), parse_search(text), None)
        assert found.centres.tolist() == beam_search(tables, width, breadth).centres.tolist()


def test_symmetries_are_the_mean_of_q_over_the_square_as_by_hand():
    size, network = 16, model_of(map_size=16, radii="4,3,2").network
    env = CirclePlacementEnv(map_size=size, radii="4,3,2")
    observation, _ = env.reset(seed=3)
    observation, *_ = env.step(int(observation["action_mask"].argmax()))
    sums = np.zeros((size, size))
    last = size - 1
    for swapped in (False, True):
        for down in (False, True):
            for right in (False, True):
                # Cell (i, j) of the map lies at where[i][j] of its image.
                where = np.empty((size, size, 2), np.int64)
                for i, j in np.ndindex(size, size):
                    a, b = (last - i if down else i), (last - j if right else j)
                    where[i, j] = (b, a) if swapped else (a, b)
                rows, columns = where[..., 0], where[..., 1]
                image = {key: part[None] for key, part in observation.items()}
                for key in ("map", "action_mask"):
                    seen = np.empty((size, size), observation[key].dtype)
                    seen[rows, columns] = observation[key].reshape(size, size)
                    image[key] = seen.reshape(1, *observation[key].shape)
                sums += action_values(network, image).reshape(size, size)[rows, columns]
    batched = {key: part[None] for key, part in observation.items()}
    found = of_symmetries(partial(action_values, network))(batched)
    valid = np.isfinite(found[0])
    assert valid.tolist() == observation["action_mask"].astype(bool).tolist()
    np.testing.assert_allclose(found[0][valid], sums.ravel()[valid] / 8, rtol=1e-4, atol=1e-4)
    alone = action_values(network, batched)[0]
    assert np.abs(found[0][valid] - alone[valid]).max() > 0.1


@pytest.mark.parametrize("text", ["rollouts:4", "beam:2x6", "time:10ms", "symmetries"])
def test_a_program_plays_the_actions_of_a_search(text):
    env = gymnasium.make(CIRCLES, map_size=32)
    policy = Policy(model_of(map_size=32))
    _, info = env.reset(seed=5)
    actions = policy.search(env, text)
    assert (actions.dtype, actions.ndim) == (np.int64, 1)
    ended = False
    for action in actions:
        assert not ended
        _, _, ended, _, info = env.step(int(action))
    assert ended
    if text != "symmetries":
        least = env.unwrapped.baselines([5])["exact_greedy"][0]  # type: ignore[attr-defined]
        assert info["coverage"] >= least - 1e-12
    with pytest.raises(ResetNeeded, match="reset"):
        policy.search(env, text)
    env.close()


def test_a_policy_of_another_size_of_map_takes_part():
    env = CirclePlacementEnv(map_size=48)
    env.reset(seed=5)
    assert len(Policy(model_of(map_size=32)).search(env, "rollouts:2")) == 13


@pytest.mark.parametrize(
    "text",
    ["", "rollouts", "rollouts:0", "rollouts:-1", "rollouts:1.5", "rollouts:9999", "beam:16",
     "beam:0x4", "beam:4x1", "beam:999x4", "time:0ms", "time:5", "time:3601s", "time:1h",
     "symmetry", "rollouts:1 2"],
)  # fmt: skip
def test_a_bad_method_is_refused_in_one_line(text):
    with pytest.raises(UsageError) as caught:
        parse_search(text, "--search")
    assert str(caught.value) == (
        f"--search {text!r}: expected rollouts:16 (1 to 512), beam:16x32 (1 to 256 x 2 to 1024), "
        "time:100ms or time:2s (at most 3600s), or symmetries"
    )


def test_policies_and_environments_without_a_search_are_refused():
    env = CirclePlacementEnv(map_size=32)
    env.reset(seed=5)
    ours, method = Policy(model_of(map_size=32)), "rollouts:2"
    with pytest.raises(UsageError, match="method 'best': expected rollouts:16"):
        ours.search(env, "best")
    with pytest.raises(UsageError, match="expected a policy of circle placement; this is of CartP"):
        Policy(model_of("CartPole-v1")).search(env, method)
    with pytest.raises(UsageError, match="not CartPoleEnv"):
        ours.search(gymnasium.make("CartPole-v1").unwrapped, method)
    with pytest.raises(UsageError, match="the policy sees 2 frames at once"):
        Policy(model_of(frame_stack=2, kind="mlp", map_size=16, radii="3,2")).search(env, method)
    with pytest.raises(UsageError, match="has 256 actions, the environment 1024"):
        Policy(model_of(kind="mlp", map_size=16, radii="3,2")).search(env, method)
    overlapping = CirclePlacementEnv(map_size=32, overlap=True)
    overlapping.reset(seed=5)
    with pytest.raises(UsageError, match="circles must not overlap, and overlap=true lets them"):
        ours.search(overlapping, method)


def saved(path: Path, env: str, **env_args: Any) -> Path:
    spec = describe_environment(env, env_args)
    config = Config(run=RunConfig(env=env, env_args=env_args))
    save_model(path, config, spec, build_network(spec, config.network), 7)
    return path


def test_an_evaluation_tells_gain_and_time_of_a_search_beside_the_same_without_the_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = saved(tmp_path / "m.pth", CIRCLES, map_size=32)
    assert evaluate(path, 3, as_json=True, quick=True, search="beam:2x8") == 0
    result = json.loads(capsys.readouterr().out)
    found = result["search"]
    assert (found["method"], found["maps"]) == ("beam:2x8", 3)
    placements = found["placements"]
    assert list(placements) == ["exact_greedy", "policy", "with_policy", "without_policy"]
    greedy_mean = result["baselines"]["exact_greedy"]
    assert placements["exact_greedy"]["coverage"] == pytest.approx(greedy_mean, abs=1e-12)
    assert placements["policy"]["coverage"] == pytest.approx(result["return_mean"], abs=1e-9)
    for row in placements.values():
        assert row["gain"] == pytest.approx(row["coverage"] - greedy_mean, abs=1e-12)
        assert row["seconds"] > 0
    assert placements["with_policy"]["gain"] >= -1e-12
    difference = placements["with_policy"]["gain"] - placements["without_policy"]["gain"]
    assert found["network_gain"][0] == pytest.approx(difference, abs=1e-12)

    assert evaluate(path, 2, as_json=False, quick=True, search="rollouts:1") == 0
    assert "without network" in capsys.readouterr().out
    assert evaluate(path, 2, as_json=False, quick=True, search="symmetries") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "symmetries: 2 held-out maps" in shown
    assert "without network" not in shown


def test_an_evaluation_refuses_a_search_before_it_plays(tmp_path: Path):
    path = saved(tmp_path / "m.pth", CIRCLES, map_size=32, overlap=True)
    with pytest.raises(UsageError, match="--search rollouts:2: circles must not overlap"):
        evaluate(path, 2, as_json=True, search="rollouts:2")
    path = saved(tmp_path / "c.pth", "CartPole-v1")
    with pytest.raises(UsageError, match="--search rollouts:2: expected a policy of circle placem"):
        evaluate(path, 2, as_json=True, search="rollouts:2")
    with pytest.raises(UsageError, match="--search 'best': expected"):
        evaluate(tmp_path / "none.pth", 2, as_json=True, search="best")
