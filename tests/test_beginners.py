"""Environments as people write them: used, or refused in the words of a teacher."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environments_of_people as people
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.environments.describe import describe_environment, examine_environment
from actors.environments.making import attribute, baselines_of, makers
from actors.environments.vector import VectorEnvironment
from actors.evaluation import play
from launcher.plan.prepare import prepare
from pdqn.config import Config
from pdqn.errors import RunError, UsageError
from pdqn.layers import build

HERE = "environments_of_people"


def refusal(env_id: str, **env_args: Any) -> str:
    """Return the one line that refuses an environment."""
    with pytest.raises(UsageError) as caught:
        describe_environment(env_id, env_args)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"environment {env_id}: ").removeprefix(f"environment {env_id} ")


FAULTS = [
    (
        "StepOfFour",
        "StepOfFour.step() gave 4 values (observation, reward, done, info): the old gym"
        " interface; return observation, reward, terminated, truncated, info",
    ),
    (
        "WrappedStepOfFour",
        "StepOfFour.step() gave 4 values (observation, reward, done, info): the old gym interface",
    ),
    (
        "OldWrapper",
        "OldWrapper.step() gave 4 values (observation, reward, done, info): the old gym interface",
    ),
    (
        "StepOfThree",
        "StepOfThree.step() gave 3 values; return observation, reward, terminated, truncated, info",
    ),
    (
        "StepOfNone",
        "StepOfNone.step() gave None, as a function without a return does; return "
        "observation, reward, terminated, truncated, info",
    ),
    (
        "StepOnlyReward",
        "StepOnlyReward.step() gave one value (1.0); return observation, reward, "
        "terminated, truncated, info",
    ),
    (
        "ResetOnlyObservation",
        "ResetOnlyObservation.reset() gave only an observation (array([2., 1.], "
        "dtype=float32)): the old gym interface; return observation, info",
    ),
    (
        "ResetOnlyList",
        "ResetOnlyList.reset() gave 1.0 as its info, or only an observation: the old gym interface",
    ),
    (
        "ResetOfNone",
        "ResetOfNone.reset() gave None, as a function without a return does; return "
        "observation, info",
    ),
    ("ResetOfThree", "ResetOfThree.reset() gave 3 values; return observation, info"),
    (
        "ResetInfoNone",
        "ResetInfoNone.reset() gave None as its info; return observation, info, where "
        "info is a dict such as {}",
    ),
    (
        "StepInfoNone",
        "StepInfoNone.step() gave None as its info; return observation, reward, "
        "terminated, truncated, info, where info is a dict",
    ),
    (
        "ResetWithoutSeed",
        "ResetWithoutSeed.reset() cannot be called as gymnasium calls it (got an "
        "unexpected keyword argument 'seed'); write def reset(self, *, seed=None, "
        "options=None)",
    ),
    (
        "StepWithoutAction",
        "StepWithoutAction.step() cannot be called as gymnasium calls it (too many "
        "positional arguments); write def step(self, action)",
    ),
    ("NoStep", "NoStep has no method step; add def step(self, action)"),
    (
        "LazySpaces",
        "LazySpaces has no observation_space before its first reset; set it in "
        "LazySpaces.__init__(), such as self.observation_space = spaces.Box(",
    ),
    ("LazyInAWrapper", "LazySpaces has no observation_space before its first reset; set it in"),
    (
        "NumberOfActions",
        "NumberOfActions.action_space is 2, not a space of gymnasium, such as spaces.Discrete(n)",
    ),
    (
        "SpaceAsTuple",
        "SpaceAsTuple.observation_space is (2,), not a space of gymnasium, such as spaces.Box(",
    ),
    (
        "SpaceAsClass",
        "SpaceAsClass.action_space is the class Discrete, not a space of gymnasium, such as",
    ),
    ("WrapperWithoutSuper", "WrapperWithoutSuper.__init__() does not call super().__init__(env)"),
    (
        "StepRewardNone",
        "StepRewardNone.step() gave None as its reward; return observation, reward, "
        "terminated, truncated, info, where reward is one number",
    ),
    ("StepRewardInWords", "StepRewardInWords.step() gave 'good' as its reward; "),
    (
        "StepTerminatedNone",
        "StepTerminatedNone.step() gave None as terminated; return observation, reward,"
        " terminated, truncated, info, where terminated is True or False",
    ),
    ("StepTruncatedInWords", "StepTruncatedInWords.step() gave 'False' as truncated; "),
    (
        "ObservesFloats",
        "an observation float32[2] is not in Box(0, 4, (2,), uint8); convert it by "
        ".astype(np.uint8), or give the space its dtype: Walk.reset() gave it",
    ),
    (
        "ObservesTooMuch",
        "an observation float32[3] is not in Box(0.0, 4.0, (2,), float32): "
        "ObservesTooMuch.step() gave it",
    ),
    (
        "ObservesNone",
        "the observation None is not in Box(0.0, 4.0, (2,), float32): Walk.reset() gave it",
    ),
    (
        "ObservesNoDict",
        "the observation is array([2., 1.], dtype=float32); its space has the keys "
        "'place': Walk.reset() gave it",
    ),
    (
        "ObservesPartOfDict",
        "the observation has no key 'place'; its space has the keys 'place': Walk.reset() gave it",
    ),
    (
        "WrapperObservesTooMuch",
        "an observation float32[3] is not in Box(0.0, 4.0, (2,), float32): "
        "WrapperObservesTooMuch.observation() gave it",
    ),
    (
        "HeadlineInWords",
        'info["progress"] is \'half way\'; headline_metric = "progress" makes it the '
        "score, so one number is needed",
    ),
    (
        "HeadlineOfTwo",
        'info["progress"] is array([1., 1.]); headline_metric = "progress" makes it the score',
    ),
    (
        "MaskIsTooShort",
        'info["action_mask"] is [1]; one 0 or 1 for each of the 2 actions is needed',
    ),
    (
        "MaskOfIndices",
        'info["action_mask"] is [1, 2]; one 0 or 1 for each of the 2 actions is needed',
    ),
    (
        "MaskChanges",
        'info["action_mask"] is array([1., 1., 1.]); one value for each of the 2 '
        "actions is needed at every step",
    ),
    ("HeadlineReserved", "headline_metric = 'final_info' is a key of gymnasium's and pdqn's own"),
    (
        "Continuous",
        "has the actions Box(-1.0, 1.0, (1,), float32); only Discrete is supported: a "
        "Q-network has one value for each of a finite set of actions; choose a few of "
        "them, for example with gymnasium.wrappers.DiscretizeAction",
    ),
    (
        "TwoActionsAtOnce",
        "has the actions MultiDiscrete([2 3]); only Discrete is supported: a Q-network "
        "has one value for each of a finite set of actions; number all 6 combinations, "
        "as spaces.Discrete(6)",
    ),
    (
        "returns_nothing",
        "it made None, not a gymnasium.Env: does the function return the environment?",
    ),
    (
        "returns_the_class",
        "it made the class Walk, not a gymnasium.Env: return Walk(), an instance",
    ),
    (
        "waits",
        "it made coroutine, not a gymnasium.Env: write def, not async def, before the function",
    ),
    ("yields", "it made generator, not a gymnasium.Env: write return, not yield, before"),
    (
        "returns_another_batch",
        "its batch for num_envs=1 has 3 environments; make as many as num_envs says",
    ),
    (
        "ObservesGradients",
        "the observation tensor([2., 1.], requires_grad=True) is not an array (Can't call numpy() "
        "on Tensor that requires grad. Use tensor.detach().numpy() instead.): Walk.reset() gave it",
    ),
    ("returns_a_pair", "it made tuple, not a gymnasium.Env: return the environment alone"),
    (
        "returns_a_batch",
        "it made SyncVectorEnv, not a gymnasium.Env: it is a batch; pdqn makes its own batch",
    ),
    (
        "NotDerived",
        "it made NotDerived, not a gymnasium.Env: derive it: class NotDerived(gymnasium.Env)",
    ),
    ("needs", "needs() needs the argument size; give --env-arg size=..."),
    (
        "already_made",
        "already_made is an environment, not what makes one; write def make(): return "
        "Walk(...) in environments_of_people, and environments_of_people:make here",
    ),
    (
        "StepOfFive",
        "environments_of_people has no function StepOfFive, and registers no "
        "environment of this name; did you mean StepOf",
    ),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium's checker
@pytest.mark.parametrize(("name", "words"), FAULTS, ids=[name for name, _ in FAULTS])
def test_a_fault_is_one_line_that_says_what_to_change(name: str, words: str):
    told = refusal(f"{HERE}:{name}")
    assert told.startswith(words), told


REGISTERED = [
    ("StepOfFour", "StepOfFour.step() gave 4 values (observation, reward, done, info)"),
    ("ResetOnlyObservation", "ResetOnlyObservation.reset() gave only an observation"),
    ("ResetInfoNone", "ResetInfoNone.reset() gave None as its info"),
    ("StepTerminatedNone", "StepTerminatedNone.step() gave None as terminated"),
    ("ResetWithoutSeed", "ResetWithoutSeed.reset() cannot be called as gymnasium calls it"),
    ("LazySpaces", "LazySpaces has no observation_space before its first reset"),
    ("NumberOfActions", "NumberOfActions.action_space is 2, not a space of gymnasium"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium's checker
@pytest.mark.parametrize(("name", "words"), REGISTERED)
def test_so_is_that_of_one_that_gymnasium_has_wrapped(name: str, words: str):
    entry = f"{HERE}:{name}"
    gymnasium.register(id="Wrapped-v0", entry_point=entry, max_episode_steps=10)
    try:
        told = refusal("Wrapped-v0")
        assert told.startswith(words), told
    finally:
        gymnasium.registry.pop("Wrapped-v0")


PLACED = [
    name
    for name, words in FAULTS
    if ".step()" in words or ".reset()" in words or "__init__" in words
]


@pytest.mark.parametrize("name", PLACED)
def test_such_a_line_ends_with_the_persons_own_place(name: str):
    file, _, line = refusal(f"{HERE}:{name}").rpartition("(")[2].rstrip(")").rpartition(":")
    assert file == people.__file__
    method = inspect.getsource(people).splitlines()[int(line) - 1]
    assert method.strip().startswith("def ")


USED = [
    "Walk",
    "VectorConstant",
    "VectorMethod",
    "VectorStatic",
    "AnswersEverything",
    "AnswersTrue",
    "RaisesInProperties",
    "StrangersAttributes",
    "ItsOwnInner",
    "AdviceInWords",
    "AdviceOfManyKinds",
    "MaskIsAFunction",
    "MaskHasNames",
    "MaskIsABool",
    "OddKeys",
    "UserDictInfo",
    "takes_nothing",
]


def test_a_mask_and_a_reward_may_be_tensors():
    assert describe_environment(f"{HERE}:MaskIsATensor", {}).masked
    env = VectorEnvironment(describe_environment(f"{HERE}:HasGradients", {}), {}, 2)
    env.reset([0, 1])
    env.step(np.ones(2, np.int64))
    assert env.step(np.ones(2, np.int64)).rewards.tolist() == [2.0, 2.0]
    env.close()


BESIDE = [
    (
        "returns_the_same",
        "its factory returns the same object each time (Walk); create a new one at each call, or "
        "set actor.envs_per_actor=1",
    ),
    ("HoldsAPort", "number 2 of 2 in one process cannot be made: OSError: address already in use"),
]


@pytest.mark.parametrize(("name", "words"), BESIDE, ids=[name for name, _ in BESIDE])
def test_one_that_cannot_be_beside_another_is_told_and_evaluated_alone(name: str, words: str):
    spec = describe_environment(f"{HERE}:{name}", {})
    with pytest.raises(RunError) as caught:
        VectorEnvironment(spec, {}, 2)
    told = str(caught.value)
    assert told.startswith(f"environment {spec.id}: {words}")
    assert "actor.envs_per_actor=1" in told
    scores = play(lambda seen: np.ones(len(seen["observation"]), np.int64), spec, {}, [0, 1, 2])
    assert scores is not None
    assert scores.returns.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", USED)
def test_what_is_not_for_pdqn_is_passed_over(name: str):
    examined = examine_environment(f"{HERE}:{name}", {})
    spec = examined.spec
    assert (spec.headline_metric, spec.circle_placement, spec.masked) == (None, False, False)
    assert not examined.suggests
    env = VectorEnvironment(spec, {}, 3)
    env.reset([0, 1, 2])
    steps = [env.step(np.array([0, 1, 1])) for _ in range(4)]
    assert [step.suggested for step in steps] == [None] * 4
    assert steps[1].rewards.tolist() == [0.0, 1.0, 1.0]
    assert env.failures == 0
    assert env.baselines([1]) == {}
    env.close()


def config_of(name: str, **actor: Any) -> Config:
    run = {"env": f"{HERE}:{name}", "steps": 12}
    return build(("test", {"run": run, "actor": actor}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AdviceInWords", "gives 'right' as info[\"suggested_action\"]; the number of an"),
        ("AdviceOfManyKinds", 'gives [[0, 1], [1]] as info["suggested_action"]; the number of'),
        ("Walk", 'gives no info["suggested_action"] to follow'),
    ],
)  # fmt: skip
def test_advice_is_looked_at_once_somebody_asks_for_guidance(name: str, words: str):
    prepare(config_of(name))
    with pytest.raises(UsageError) as caught:
        prepare(config_of(name, guidance=0.5))
    assert words in str(caught.value)


class Advised(people.Walk):
    """A walk that suggests this."""

    advice: Any = None

    @property
    def info(self) -> Any:
        return {"suggested_action": self.advice}


@pytest.mark.parametrize(
    ("advice", "suggested", "odd"),
    [
        (1, 1, ""),
        (np.int32(1), 1, ""),
        (np.array([1]), 1, ""),
        (1.0, 1, ""),
        (-1, -1, ""),
        (None, None, ""),
        (0.5, None, "0.5"),
        (2, None, "2"),
        ("1", None, "'1'"),
        (float("nan"), -1, ""),
    ],
)
def test_only_the_number_of_an_action_is_advice(advice: Any, suggested: Any, odd: str):
    try:
        Advised.advice = advice
        examined = examine_environment(f"{__name__}:Advised", {})
        env = VectorEnvironment(examined.spec, {}, 1)
        env.reset([0])
        assert (None if env.suggested is None else env.suggested.tolist()) == (
            None if suggested is None else [suggested]
        )
        assert examined.odd_suggestion == odd
        env.close()
    finally:
        Advised.advice = None


class InWords(people.Walk):
    """A walk whose metric is a number at first, and later a word."""

    headline_metric = "progress"

    @property
    def info(self) -> Any:
        return {"progress": "done" if self.place == 4 else 0.5}


def test_a_headline_metric_that_turns_into_a_word_is_a_failure_with_its_reason():
    env = VectorEnvironment(describe_environment(f"{__name__}:InWords", {}), {}, 1)
    env.reset([0])
    env.step(np.ones(1, np.int64))
    with pytest.raises(RuntimeError, match=r"""info\["progress"\] is 'done'; headline_metric"""):
        env.step(np.ones(1, np.int64))
    env.close()


# ---- batches of factories ----


class Batches(people.Walk):
    """A class whose own function makes batches of it."""

    @staticmethod
    def vector(num_envs: int) -> Any:
        return SyncVectorEnv([people.Walk] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


class BatchesOfClass(people.Walk):
    @classmethod
    def vector(cls, num_envs: int) -> Any:
        return SyncVectorEnv([cls] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


class Maker:
    """An object that makes environments, and batches of them."""

    def __call__(self) -> Any:
        return people.Walk()

    def vector(self, num_envs: int) -> Any:
        return Batches.vector(num_envs)


maker = Maker()


def wrong_batch() -> Any:
    return people.Walk()


wrong_batch.vector = lambda num_envs: np.zeros(num_envs)  # type: ignore[attr-defined]


def no_metadata() -> Any:
    return people.Walk()


def _without_metadata(num_envs: int) -> Any:
    batch = Batches.vector(num_envs)
    batch.metadata = None
    return batch


no_metadata.vector = _without_metadata  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["Batches", "BatchesOfClass", "maker"])
def test_a_factory_may_bring_its_own_batch_in_several_ways(name: str):
    env_id = f"{__name__}:{name}"
    assert makers(env_id, {}).vector is not None
    env = VectorEnvironment(describe_environment(env_id, {}), {}, 3)
    assert isinstance(env._env, SyncVectorEnv)
    assert env._guarded == []
    env.close()


def test_what_a_class_has_for_its_instances_makes_no_batch():
    for name in ("VectorConstant", "VectorMethod", "VectorStatic", "AnswersEverything"):
        assert makers(f"{HERE}:{name}", {}).vector is None


def test_a_function_that_makes_another_thing_than_a_batch_is_named():
    told = refusal(f"{__name__}:wrong_batch")
    assert told.startswith("its own batch cannot be made: the attribute vector of its factory made")
    assert describe_environment(f"{__name__}:no_metadata", {}).num_actions == 2


@pytest.fixture
def _broken_entry() -> Iterator[None]:
    gymnasium.register(
        id="Broken-v0", entry_point=f"{HERE}:Walk", vector_entry_point="no_such_module:Batch"
    )
    yield
    gymnasium.registry.pop("Broken-v0")


@pytest.mark.usefixtures("_broken_entry")
def test_a_registered_batch_that_cannot_be_made_is_told_as_such():
    told = refusal("Broken-v0")
    assert told.startswith("its own batch cannot be made: ModuleNotFoundError: No module named")


# ---- attributes ----


def test_only_what_an_object_defines_is_its_attribute():
    env = people.AnswersEverything()
    assert attribute(env, "headline_metric") is None
    assert attribute(gymnasium.wrappers.TimeLimit(env, 3), "baselines") is None
    assert attribute(people.ItsOwnInner(), "headline_metric") is None
    assert attribute(people.HeadlineInWords(), "headline_metric") == "progress"
    assert baselines_of(people.StrangersAttributes()) is None


class Scored(people.Walk):
    scores: Any = None

    def baselines(self, seeds: Any) -> Any:
        return self.scores


@pytest.mark.parametrize(
    "scores", [None, [1.0, 2.0], {"random": 1.0}, {"random": [1.0]}, {"random": ["a", "b"]}]
)
def test_scores_of_baselines_are_checked(scores: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Scored, "scores", scores)
    env = VectorEnvironment(describe_environment(f"{__name__}:Scored", {}), {}, 1)
    words = r"baselines\(seeds\) gave .*; a dict of names and scores is needed, one .* 2 seeds"
    with pytest.raises(ValueError, match=words):
        env.baselines([1, 2])
    monkeypatch.setattr(Scored, "scores", {"random": [1, 2]})
    assert env.baselines([1, 2])["random"].tolist() == [1.0, 2.0]
    env.close()


# ---- names and arguments ----


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("", "not a name; write an id such as CartPole-v1, or my_module:make"),
        ("my_env:Env()", "not a name; write my_env:Env"),
        ("my/Grid-v0", "; if a module registers it, write that before it: my_module:my/Grid-v0"),
        ("cartpole", "; write CartPole-v1 or CartPole-v0"),
        ("CartPol-v1", "; write CartPole-v1"),
        ("CartPole-v9", "It provides versioned environments"),
        ("CartPole-v9", "; write CartPole-v1"),
        (f"{HERE}:CartPol-v1", "; write CartPole-v1"),
        ("Breakout-v4", "; write ALE/Breakout-v5"),
        ("BreakoutNoFrameskip-v4", "; write ALE/Breakout-v5"),
        ("PongDeterministic-v4", "; write ALE/Pong-v5"),
        ("pong", "; write ALE/Pong-v5"),
        ("Pong-ram-v0", "; frames are observed, not the memory; write ALE/Pong-v5"),
        ("MyGame.make", "; for make in the module MyGame, write MyGame:make"),
        (HERE, f"; for the module {HERE}, write {HERE}:NAME, where NAME is the function or class"),
        ("./my_env.py:make", "a path is not a module; write my_env:make"),
        ("my_env.py:make", "a path is not a module; write my_env:make"),
        ("envs/my_env:make", "a path is not a module; write envs.my_env:make"),
        ("envs\\my_env.py:make", "a path is not a module; write envs.my_env:make"),
        ("/home/me/my_env.py:Env", "write my_env:Env in the folder /home/me"),
        ("../my_env.py:Env", "write my_env:Env in the folder .."),
        ("my_env.py", "write my_env:NAME, where NAME is the function or class in it that makes"),
        (":make", "no module before the colon; write my_module:make"),
        ("my_env:", "no name after the colon; write my_env:NAME"),
        ("actors.robot:make", "; pdqn has packages actors, launcher, learner, replay, so rename"),
    ],
)
def test_a_name_as_beginners_write_it_is_answered_with_what_to_write(
    env_id: str, words: str, monkeypatch: pytest.MonkeyPatch
):
    # Atari's package registers its old ids when it is imported, which another test may have done.
    monkeypatch.delitem(gymnasium.registry, env_id, raising=False)
    assert words in refusal(env_id)


def test_a_module_whose_name_is_misspelt_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_maze.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert refusal("my_mase:make") == "No module named 'my_mase'; did you mean my_maze?"


@pytest.mark.parametrize(
    ("env_id", "text"),
    [
        ("test:make", "test has no function make, and registers no environment of this name"),
        ("my_maze:make", "cannot import name 'SPEED' from 'test'"),
    ],
)
def test_a_module_that_another_of_its_name_hides_is_to_be_renamed(
    env_id: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "test.py").write_text("SPEED = 1\ndef make(): ...\n")
    (tmp_path / "my_maze.py").write_text("from test import SPEED\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "my_maze", raising=False)
    told = refusal(env_id)
    assert text in told
    assert re.search(r"; another module test \(.*\) hides your test.py, so rename yours$", told)


def test_a_file_of_the_current_directory_is_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_maze.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "; for the module my_maze, write my_maze:NAME" in refusal("my_maze")


def test_arguments_of_a_game_are_compared_with_those_that_there_are():
    told = refusal("ALE/Pong-v5", render_mode="human")
    assert "argument 'render_mode'; it accepts frame_skip, repeat_action_probability" in told


@pytest.mark.parametrize(
    ("name", "env_args", "words"),
    [
        ("needs", {"colour": "red"}, "needs() needs the argument size; give --env-arg size=..."),
        ("needs", {"size": 1, "color": 2},
         "needs() got an unexpected keyword argument 'color'; it accepts size, colour"),
        ("takes_nothing", {"size": 1},
         "takes_nothing() got an unexpected keyword argument 'size'; it accepts none"),
        ("Walk", {"size": 1}, "Walk() got an unexpected keyword argument 'size'; it accepts none"),
    ],
)  # fmt: skip
def test_arguments_are_compared_with_those_of_the_factory(
    name: str, env_args: dict[str, Any], words: str
):
    assert refusal(f"{HERE}:{name}", **env_args) == words
    assert describe_environment(f"{HERE}:needs", {"size": 1, "colour": "blue"}).num_actions == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import gymnasium\ndef make(:\n", "SyntaxError: invalid syntax ({}:2)"),
        ("import pigame\n", "No module named 'pigame' ({}:1)"),
        ("def make():\n    return {}['size']\n", "KeyError: 'size' ({}:2)"),
        ("def make():\n    assert False\n", "AssertionError ({}:2)"),
        ("import numpy as np\ndef make():\n    np.zeros(-1)\n",
         "negative dimensions are not allowed ({}:3)"),
        ("def make():\n    return mkae()\n", "NameError: name 'mkae' is not defined ({}:2)"),
    ],
)  # fmt: skip
def test_an_error_in_a_persons_file_is_told_with_its_line(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "erring_module.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "erring_module", raising=False)
    assert refusal("erring_module:make") == words.format(file)
