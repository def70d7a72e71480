"""A trained policy in a program of the user's."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import pdqn
from actors.environments.describe import describe_environment
from actors.evaluation import Scores, play
from launcher.evaluation import evaluate as evaluation
from launcher.evaluation.evaluate import evaluate
from launcher.results.films import record_film
from launcher.results.models import chosen_model
from pdqn.config import Config, NetworkConfig, RunConfig
from pdqn.errors import UsageError
from pdqn.model import Model, load_model, read_model, save_model
from pdqn.networks import build_network
from pdqn.policy import Policy, _values_on, greedy, named_parts
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.trust import EVERYTHING


def saved(
    path: Path, env: str, *, frame_stack: int = 1, kind: str = "auto", **env_args: Any
) -> EnvironmentSpec:
    """Write the model of an untrained network, and return its spec."""
    torch.manual_seed(1)
    spec = describe_environment(env, env_args, frame_stack)
    config = Config(run=RunConfig(env=env, env_args=env_args), network=NetworkConfig(kind=kind))
    save_model(path, config, spec, build_network(spec, config.network), 7)
    return spec


def returns_of(policy: Any, env: gymnasium.Env[Any, Any], seeds: list[int]) -> list[float]:
    """Play as a user's program would."""
    totals = []
    for seed in seeds:
        policy.reset()
        observation, info = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            action = policy.act(observation, info.get("action_mask"))
            observation, reward, terminated, truncated, info = env.step(action)
            total += float(reward)
            ended = terminated or truncated
        totals.append(total)
    env.close()
    return totals


@pytest.mark.parametrize("frame_stack", [1, 4])
def test_a_program_plays_as_the_evaluation_does(tmp_path: Path, frame_stack: int):
    path = tmp_path / "final_model.pth"
    spec = saved(path, "CartPole-v1", frame_stack=frame_stack)
    network = load_model(path).network
    scores = play(lambda o: greedy(network, o), spec, {}, [3, 4, 5])
    assert scores is not None
    policy = pdqn.load_policy(tmp_path)
    found = returns_of(policy, gymnasium.make("CartPole-v1"), [3, 4, 5])
    assert found == scores.returns.tolist()


def test_circle_placement_is_played_by_its_own_observations(tmp_path: Path):
    spec = saved(tmp_path / "m.pth", "pdqn/CirclePlacement-v0", map_size=16)
    network = load_model(tmp_path / "m.pth").network
    scores = play(lambda o: greedy(network, o), spec, {"map_size": 16}, [3, 4])
    assert scores is not None
    env = gymnasium.make("actors.environments.registration:pdqn/CirclePlacement-v0", map_size=16)
    found = returns_of(pdqn.load_policy(tmp_path / "m.pth"), env, [3, 4])
    np.testing.assert_allclose(found, scores.returns)


class Offset(gymnasium.Env[Any, Any]):
    """Actions 5 to 7, nested observations, and masks in the info."""

    action_space = spaces.Discrete(3, start=5)
    observation_space = spaces.Dict(
        {
            "camera": spaces.Tuple(
                [spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(4, start=1)]
            ),
            "flags": spaces.MultiBinary(3),
        }
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self._left = 4
        return self._seen()

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        observation, info = self._seen()
        self._left -= 1
        return observation, float(action), self._left == 0, False, info

    def _seen(self) -> tuple[Any, Any]:
        valid = np.zeros(3, np.int8)
        valid[self._left % 3] = 1
        camera = (np.array([0.5, -0.5], np.float32), np.int64(2))
        return {"camera": camera, "flags": np.array([1, 0, 1], np.int8)}, {"action_mask": valid}


def offset() -> Offset:
    return Offset()


def test_nested_observations_masks_and_numbers_of_actions_are_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "offset_environment", sys.modules[__name__])
    saved(tmp_path / "m.pth", "offset_environment:offset")
    policy = pdqn.load_policy(tmp_path / "m.pth")
    # One action is valid at each step: 4 % 3 = 1, then 0, 2 and 1.
    assert returns_of(policy, Offset(), [0]) == [6 + 5 + 7 + 6]
    observation, info = Offset().reset()
    values = policy.values(observation, info["action_mask"])
    assert np.isfinite(values).tolist() == [False, True, False]


def test_parts_are_named_by_the_way_to_them():
    nested = {"a": (1, {"b": 2}), "c": 3}
    assert dict(named_parts(nested)) == {"a.0": 1, "a.1.b": 2, "c": 3}
    assert dict(named_parts(5)) == {"observation": 5}


class PairAndMask(gymnasium.Env[Any, Any]):
    """An observation of two numbers, and a mask in the info that leaves only action 1."""

    observation_space = spaces.Tuple([spaces.Discrete(3), spaces.Discrete(2)])
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        return (0, 1), {"action_mask": [0, 1]}

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        return (0, 1), float(action), True, False, {"action_mask": [0, 1]}


def test_a_policy_sees_a_tuple_beside_a_mask_of_the_info(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "nested_environment", sys.modules[__name__])
    saved(tmp_path / "m.pth", "nested_environment:PairAndMask")
    policy = pdqn.load_policy(tmp_path / "m.pth")
    observation, info = PairAndMask().reset()
    assert policy.act(observation, info["action_mask"]) == 1


def test_an_observation_of_another_environment_is_refused(tmp_path: Path):
    saved(tmp_path / "m.pth", "CartPole-v1")
    policy = pdqn.load_policy(tmp_path / "m.pth")
    with pytest.raises(
        ValueError, match=r"observation: float64\[3\] is not float32\[4\]; CartPole-v1 needs"
    ):
        policy.act(np.zeros(3))
    with pytest.raises(ValueError, match=r"the observation has x; CartPole-v1 needs observation"):
        policy.act({"x": np.zeros(4)})


class Sight(gymnasium.Env[Any, Any]):
    """A picture that is upside down, and a category; both say what it shows."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = spaces.Discrete(3)

    def __init__(self, *, picture: bool = True, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        box = spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.observation_space = box if picture else spaces.Discrete(5)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self._steps = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        self._steps += 1
        return self._seen(), 1.0, self._steps == 3, False, {}

    def _seen(self) -> Any:
        if self.observation_space.shape == ():
            return self._steps
        return np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)[::-1, :, ::-1]

    def render(self) -> Any:
        return self._seen()


@pytest.fixture
def sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sight_environment", sys.modules[__name__])


@pytest.mark.usefixtures("sight")
@pytest.mark.parametrize(
    ("picture", "given"),
    [
        (True, np.full((16, 16, 3), 0.5)),
        (True, np.full((16, 16, 3), 0.5, np.float32)),
        (True, np.full((16, 16, 3), 300)),
        (True, np.full((16, 16, 3), -1)),
        (True, np.zeros((16, 16), np.uint8)),
        (True, np.zeros((3, 16, 16), np.uint8)),
        (True, None),
        (False, 2.7),
        (False, "3"),
        (False, 5),
        (False, -1),
        (False, np.int64(1 << 40)),
        (False, None),
        (False, [[1]]),
    ],
)
def test_what_is_not_of_the_space_is_refused(tmp_path: Path, picture: bool, given: Any):
    saved(tmp_path / "m.pth", "sight_environment:Sight", picture=picture)
    policy = pdqn.load_policy(tmp_path / "m.pth", trust=True)
    with pytest.raises(ValueError, match=r"^observation: .* is not .*"):
        policy.act(given)


def test_values_that_are_not_finite_are_refused_and_those_beyond_the_bounds_are_not(tmp_path: Path):
    saved(tmp_path / "m.pth", "CartPole-v1")
    policy = pdqn.load_policy(tmp_path / "m.pth")
    assert policy.act([100, -100.0, 0, True]) in (0, 1)
    for odd in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match=r"^observation: .* is not finite"):
            policy.act([odd, 0, 0, 0])


def test_masks_apply_or_are_refused(tmp_path: Path):
    saved(tmp_path / "m.pth", "CartPole-v1")
    policy = pdqn.load_policy(tmp_path / "m.pth")
    # An environment whose observations hold no mask may still forbid an action.
    assert [policy.act(np.zeros(4), mask) for mask in ([1, 0], [False, True])] == [0, 1]
    for mask, words in (
        ([0, 0], "leaves no action"),
        ([1, 1, 1], r"has the shape \[3\], not \[2\]"),
        (1, r"has the shape \[\], not \[2\]"),
        ([-1, 1], "0 and 1 are needed"),
        ([0, -np.inf], "0 and 1 are needed"),
    ):
        with pytest.raises(ValueError, match=f"the action mask .*{words}"):
            policy.act(np.zeros(4), mask)


@pytest.mark.usefixtures("sight")
def test_views_are_taken_by_the_policy_and_by_films(tmp_path: Path):
    saved(tmp_path / "m.pth", "sight_environment:Sight")
    model = load_model(tmp_path / "m.pth", EVERYTHING)
    seen, _ = Sight().reset()
    frozen = seen.copy()
    frozen.flags.writeable = False
    values = [Policy(model).values(one) for one in (seen, frozen, seen.tolist())]
    assert (values[0] == values[1]).all()
    assert (values[0] == values[2]).all()
    assert record_film(model, tmp_path / "film.gif", 1) == (4, True)
    batch = {"observation": np.stack([seen] * 2)[:, ::-1]}
    assert greedy(model.network, batch).shape == (2,)


def test_a_model_of_an_earlier_version_acts_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "sight_environment", sys.modules[__name__])
    path = tmp_path / "m.pth"
    spec = saved(path, "sight_environment:Sight")
    content = torch.load(path, weights_only=True)
    for key in ("images", "channels_axis", "fold_frames"):
        del content["network"][key]
    for field in content["spec"]["fields"]:
        del field["scale"]
    torch.save(content, path)
    file = read_model(path)
    assert (file.network.images, file.network.fold_frames) == ("dtype", False)
    assert spec.difference(file.spec) == file.spec.difference(spec) == ""
    seen, _ = Sight().reset()
    assert np.isfinite(pdqn.load_policy(path, trust=True).values(seen)).all()


def test_the_best_parameters_are_had_by_asking(tmp_path: Path):
    saved(tmp_path / "final_model.pth", "CartPole-v1")
    with pytest.raises(UsageError, match=r"run directory with best_model\.pth$"):
        pdqn.load_policy(tmp_path, best=True)
    saved(tmp_path / "best_model.pth", "CartPole-v1")
    assert pdqn.load_policy(tmp_path, best=True).model.parameter_version == 7
    with pytest.raises(
        UsageError,
        match=r"final_model\.pth is a model file; only a run directory has a best model$",
    ):
        pdqn.load_policy(tmp_path / "final_model.pth", best=True)


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_a_batch_is_played_as_each_of_its_episodes_alone(tmp_path: Path, frame_stack: int):
    saved(tmp_path / "m.pth", "CartPole-v1", frame_stack=frame_stack)
    together = pdqn.load_policy(tmp_path / "m.pth")
    frames = np.random.default_rng(1).normal(size=(6, 4, 4)).astype(np.float32)
    begins = {2: [1], 4: [True, False, False, True]}  # by indices, or by marks
    found = []
    for step, frame in enumerate(frames):
        together.reset(begins.get(step, []))
        found.append(together.values(frame))
    wanted = np.zeros_like(found)
    for index in range(4):
        alone = pdqn.load_policy(tmp_path / "m.pth")
        for step, frame in enumerate(frames):
            if (step, index) in ((2, 1), (4, 0), (4, 3)):
                alone.reset()
            wanted[step, index] = alone.values(frame[index])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    together.reset()
    actions = together.act(frames[0])
    assert (actions.dtype, actions.tolist()) == (np.int64, wanted[0].argmax(axis=1).tolist())


def test_a_batch_has_a_mask_for_each_observation_and_keeps_its_size_within_episodes(
    tmp_path: Path,
):
    saved(tmp_path / "m.pth", "CartPole-v1", frame_stack=2)
    policy = pdqn.load_policy(tmp_path / "m.pth")
    batch = np.zeros((3, 4), np.float32)
    assert policy.act(batch, [[1, 0], [0, 1], [1, 0]]).tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"the shape \[2\], not \[3, 2\]"):
        policy.act(batch, [1, 0])
    with pytest.raises(ValueError, match="leaves no action"):
        policy.act(batch, [[1, 0], [0, 0], [1, 0]])
    with pytest.raises(ValueError, match="the batch has 2 observations, and the one before had 3"):
        policy.act(batch[:2])
    with pytest.raises(ValueError, match=r"reset\(7\): the last batch had 3 observations"):
        policy.reset(7)
    policy.reset()
    assert policy.values(batch[:2]).shape == (2, 2)
    policy.reset()
    assert policy.act(batch[0]) in (0, 1)  # one observation is not a batch of one
    policy.reset()
    assert policy.act(batch[:1]).shape == (1,)


def test_batches_of_nested_observations_are_as_vector_environments_give_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "offset_environment", sys.modules[__name__])
    saved(tmp_path / "m.pth", "offset_environment:offset")
    policy = pdqn.load_policy(tmp_path / "m.pth", trust=True)
    envs = gymnasium.vector.SyncVectorEnv([offset, offset])
    observation, info = envs.reset()
    values = policy.values(observation, np.stack(info["action_mask"]))
    assert np.isfinite(values).tolist() == [[False, True, False]] * 2
    assert policy.act(observation, np.stack(info["action_mask"])).tolist() == [6, 6]


A, B = FieldSpec("a", (2,), "float32"), FieldSpec("b", (2, 2), "uint8")
LISTED: dict[str, tuple[tuple[FieldSpec, ...], Any]] = {
    "arrays": ((FieldSpec("observation", (2,), "float32"),), lambda a, b: a),
    "lists": ((FieldSpec("observation", (2,), "float32"),), lambda a, b: a.tolist()),
    "lists of tuples": (
        (FieldSpec("observation", (2, 2), "uint8"),),
        lambda a, b: [(*row,) for row in b.tolist()],
    ),
    "numbers": (
        (FieldSpec("observation", (), "int64", categories=(9,), start=(0,)),),
        lambda a, b: int(b[0, 0]),
    ),
    "dicts": ((A, B), lambda a, b: {"b": b, "a": a}),
    "dicts of lists": (
        (A, FieldSpec("observation", (2, 2), "uint8")),
        lambda a, b: {"observation": b.tolist(), "a": a},
    ),
    "tuples": (
        (FieldSpec("0", (2,), "float32"), FieldSpec("1.x", (2, 2), "uint8")),
        lambda a, b: (a, {"x": b}),
    ),
}


@pytest.mark.parametrize("kind", LISTED)
def test_a_list_of_observations_is_a_batch(kind: str):
    fields, of = LISTED[kind]
    spec = EnvironmentSpec("test/Listed-v0", fields, 3)
    policy = Policy(Model(build_network(spec, NetworkConfig(hidden=8)).eval(), spec, {}, 0))
    rng = np.random.default_rng(3)
    rows = [(rng.normal(size=2).astype(np.float32), rng.integers(0, 9, (2, 2))) for _ in range(4)]
    alone = [policy.values(of(a, b)) for a, b in rows]
    assert [each.shape for each in alone] == [(3,)] * 4
    together = policy.values([of(a, b) for a, b in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    assert len({each.tobytes() for each in alone}) > 1


def test_a_list_of_observations_that_differ_or_are_too_few_is_refused_in_a_line():
    spec = EnvironmentSpec("test/Listed-v0", (A, B), 3)
    policy = Policy(Model(build_network(spec, NetworkConfig(hidden=8)).eval(), spec, {}, 0))
    whole = {"a": [1.0, 2.0], "b": [[1, 2], [3, 4]]}
    for wrong, told in [
        ([whole, {"a": [1.0, 2.0]}], "^observation 1 of the batch has a, the first a, b$"),
        ([whole, {**whole, "a": [1.0]}], r"^a: \[.*\] is not an array; .* needs float32 \[2, 2\]$"),
        ([whole, 3], "^the observation has observation; test/Listed-v0 needs a, b$"),
        ([], "^the observation has observation; test/Listed-v0 needs a, b$"),
    ]:
        with pytest.raises(ValueError, match=told):
            policy.act(wrong)


def test_another_device_computes_the_same_and_one_that_is_not_there_is_named(tmp_path: Path):
    saved(tmp_path / "m.pth", "CartPole-v1")
    cpu = pdqn.load_policy(tmp_path / "m.pth")
    batch = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    mask = np.array([[1, 0]] * 5)
    # Its values are read back as from a GPU.
    other = Policy(load_model(tmp_path / "m.pth"), "cuda" if torch.cuda.is_available() else "cpu")
    on_device = partial(
        _values_on, other.model.network, next(other.model.network.parameters()).device
    )
    np.testing.assert_allclose(on_device({"observation": batch}), cpu.values(batch), rtol=1e-4)
    np.testing.assert_allclose(other.values(batch, mask), cpu.values(batch, mask), rtol=1e-4)
    with pytest.raises(UsageError, match="device 'nonsense'"):
        pdqn.load_policy(tmp_path / "m.pth", device="nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device 'cuda': "):
            pdqn.load_policy(tmp_path / "m.pth", device="cuda")


PROGRAM = """
import gymnasium, pdqn
policy = pdqn.load_policy("run")
env = gymnasium.make("CartPole-v1")
observation, info = env.reset(seed=1)
print(policy.act(observation))
"""


def test_three_lines_are_enough_in_a_fresh_interpreter_elsewhere(tmp_path: Path):
    (tmp_path / "run").mkdir()
    saved(tmp_path / "run" / "final_model.pth", "CartPole-v1")
    command = [sys.executable, "-I", "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("0", "1")


def test_importing_the_package_does_not_import_torch():
    check = "import sys, pdqn; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("score", "first"), [(None, 1_000_000), (9.0, 2_000_000)])
def test_parameters_that_evaluations_chose_are_judged_on_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: float | None, first: int
):
    spec = describe_environment("CartPole-v1", {})
    config = Config(run=RunConfig(env="CartPole-v1"))
    network = build_network(spec, config.network)
    save_model(tmp_path / "m.pth", config, spec, network, 7, score)
    played: list[int] = []

    def noted(*arguments: Any, seeds: list[int], **others: Any) -> Scores | None:
        played.extend(seeds)
        return play(*arguments, seeds=seeds, **others)

    monkeypatch.setattr("launcher.evaluation.evaluate.play", noted)
    assert evaluate(tmp_path / "m.pth", 3, as_json=True) == 0
    assert set(played) == {first, first + 1, first + 2}


def test_the_best_parameters_are_evaluated_where_there_are_no_last_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    saved(tmp_path / "best_model.pth", "CartPole-v1")
    assert evaluate(tmp_path, 1, as_json=True) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["episodes"] == 1
    assert told.err == (
        f"pdqn: {tmp_path} has no final_model.pth, as of a run that goes on or was ended at once; "
        "its best parameters are used, best_model.pth\n"
    )
    assert chosen_model(tmp_path, best=True) == tmp_path / "best_model.pth"
    with pytest.raises(
        UsageError, match=r"with final_model\.pth; it has best_model\.pth: best=True$"
    ):
        pdqn.load_policy(tmp_path)
    saved(tmp_path / "final_model.pth", "CartPole-v1")
    assert chosen_model(tmp_path, best=False) == tmp_path / "final_model.pth"
    assert capsys.readouterr().err == ""


def test_an_evaluation_tells_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    saved(tmp_path / "m.pth", "CartPole-v1")
    told: list[str] = []

    @contextlib.contextmanager
    def noted(describe: Callable[[], str]) -> Iterator[None]:
        told.append(describe())
        reported = evaluation.random_act

        def act(*arguments: Any) -> Any:
            told.append(describe())
            return reported(*arguments)

        monkeypatch.setattr(evaluation, "random_act", act)
        yield
        told.append(describe())

    monkeypatch.setattr(evaluation, "progress", noted)
    assert evaluate(tmp_path / "m.pth", 20, as_json=True, quick=True) == 0
    assert told == [
        f"opens {tmp_path / 'm.pth'}",
        "plays the environment's baselines",
        "plays the random policy: 20 of 20 episodes",
    ]
    json.loads(capsys.readouterr().out)


class Endless(gymnasium.Env[Any, Any]):
    """A game that only a person ends; then it would tell how calm it was."""

    headline_metric = "calm"
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, {}


def test_a_policy_whose_episodes_are_all_cut_is_evaluated_by_their_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made: Any = Endless
    gymnasium.register(id="pdqn-test/Endless-v0", entry_point=made)
    try:
        spec = describe_environment("pdqn-test/Endless-v0", {})
        config = Config(run=RunConfig(env=spec.id))
        save_model(tmp_path / "m.pth", config, spec, build_network(spec, config.network), 7, None)
        assert evaluate(tmp_path / "m.pth", 3, as_json=True, max_episode_steps=5) == 0
        told = capsys.readouterr()
        result = json.loads(told.out)
        assert (result["episodes"], result["cut"], result["unscored"]) == (3, 3, 3)
        assert (result["return_mean"], result["length_mean"]) == (5, 5)
        assert result["metrics"] == result["baselines"] == {}
        assert "the random policy is left out: 3 of its 3 episodes were cut" in told.err
        assert evaluate(tmp_path / "m.pth", 3, as_json=False, max_episode_steps=5) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "3 of them cut, 3 before their headline metric was known" in shown
        assert "return" in shown
    finally:
        gymnasium.registry.pop("pdqn-test/Endless-v0")
