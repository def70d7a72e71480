"""Policies without a score, and environments on which a run must not be evaluated."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from conftest import wait_until
from gymnasium import spaces

from actors.baselines import Baselines
from actors.best import BestKeeper
from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from actors.evaluator import Evaluator
from actors.greedy import GreedyEvaluation
from launcher.plan import prepare as preparation
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.messages import Pulse, Report, Welcome
from pdqn.model import load_model, save_model
from pdqn.model_head import BEST_MODEL
from pdqn.networks import build_network
from pdqn.telemetry import Telemetry

MOODY = "pdqn-test/Moody-v0"
CIRCLES = "pdqn/CirclePlacement-v0"


class Moody(gymnasium.Env[Any, Any]):
    """Episodes of one step whose return is the mood; with some moods it cannot be made."""

    mood: Any = 1.0

    def __init__(
        self,
        size: int = 3,
        dtype: Any = "float32",
        actions: int = 2,
        first: int = 0,
        headline: str | None = None,
        categories: int = 0,
        places: int = 0,
    ) -> None:
        if Moody.mood == "busy":
            raise OSError("the license server is busy\nask again")
        self.headline_metric = headline
        seen = spaces.Box(0, 1, (size,), dtype)
        self.observation_space = spaces.Discrete(categories) if categories else seen
        if places:
            self.observation_space = spaces.Box(0, 255, (places, places, 1), np.uint8)
        self.action_space = spaces.Discrete(places**2 or actions, start=first)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if Moody.mood == "upset":
            raise RuntimeError("it is not begun")
        return self.observation_space.sample() * 0, {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], Moody.mood, True, False, {}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: Any = Moody
    # Gymnasium's checker would warn of values that are not finite; warnings are errors here.
    gymnasium.register(id=MOODY, entry_point=made, disable_env_checker=True)
    monkeypatch.setattr(Moody, "mood", 1.0)
    yield
    gymnasium.registry.pop(MOODY)


def config_of(env: str = MOODY, **evaluation: Any) -> Config:
    layer = {
        "run": {"env": env},
        "network": {"hidden": 4, "layers": 1},
        "evaluation": {"episodes": 3, "period_seconds": 1e-6, **evaluation},
    }
    return build(("test", layer))


# ---- policies without a score ----


class Link:
    """Link and follower in one; the next event happens when the evaluator waits."""

    def __init__(self, *happens: Callable[[Link], None]) -> None:
        self.telemetry = Telemetry()
        self.pulse = Pulse(command="run")
        self.stopping = False
        self.parameter_version = 1
        self.reports: list[Report] = []
        self._happens = iter(happens)
        self._turns = 0

    def tell_ready(self) -> None:
        """Tell nobody."""

    def poll(self, timeout_seconds: float = 0.0) -> None:
        if timeout_seconds:
            next(self._happens)(self)
        else:
            self.waited()

    def waited(self) -> None:
        """Do nothing: the evaluator only looked for news."""

    def settle_memory(self) -> None:
        """Expect what is held; this link has no limit."""

    def report(self) -> None:
        self.reports.append(self.telemetry.report())

    def refresh(self) -> None:
        self._turns += 1
        assert self._turns < 50, "it goes round in circles"

    def close(self) -> None:
        """Do nothing: nothing is open."""


class Here:
    """The files of a run whose directory is on this host."""

    here = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def has_lost_home(self) -> bool:
        return False

    def push(self, name: str) -> None:
        assert (self.path / name).is_file()


def time_passes(_: Link) -> None:
    """Let time pass, and nothing else."""


def recovers(link: Link) -> None:
    Moody.mood, link.parameter_version = 5.0, 2


def finishes(link: Link) -> None:
    link.pulse = Pulse(command="finish", final_version=link.parameter_version)


Evaluated = Callable[..., tuple[list[Any], list[Any]]]


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """Provide ``evaluated(mood, *happens)``: an evaluator's notes and evaluations."""

    def run(
        mood: Any, *happens: Callable[[Link], None], env: str = MOODY, **evaluation: Any
    ) -> tuple[list[Any], list[Any]]:
        link = Link(*happens)
        monkeypatch.setattr("actors.evaluator.ParameterFollower", lambda *_: link)
        monkeypatch.setattr("actors.environments.guard.time.sleep", lambda _: None)
        config, spec = config_of(env, **evaluation), describe_environment(env, {})
        welcome = Welcome("r", 0, 0, config, spec, "", "")
        monkeypatch.setattr(Moody, "mood", mood)
        stand_ins: list[Any] = [None, link, welcome, Here(tmp_path)]
        with closing(Evaluator(*stand_ins)) as evaluator:
            evaluator.run()
        link.report()
        notes = [note for report in link.reports for note in report.notes]
        return notes, [r.evaluation.to_map() for r in link.reports if r.evaluation]

    return run


UNPLAYED = f"none of 3 held-out episodes of {MOODY} could be played to its end"
BUSY = f"environment {MOODY} cannot be made: OSError: the license server is busy"
UPSET = "an environment failed 5 times in a row: RuntimeError: it is not begun"
BAD_MOODS = pytest.mark.parametrize(
    ("mood", "cause"),
    [
        (math.nan, UNPLAYED),
        (math.inf, UNPLAYED),
        (-math.inf, UNPLAYED),
        ("busy", BUSY),
        ("upset", UPSET),
    ],
    ids=["nan", "inf", "-inf", "busy", "upset"],
)


@BAD_MOODS
def test_a_policy_without_a_score_is_noted_once_and_a_later_one_is_evaluated(
    evaluated: Evaluated, tmp_path: Path, mood: Any, cause: str
):
    notes, evaluations = evaluated(mood, time_passes, time_passes, recovers, finishes)
    ((kind, text),) = notes
    assert kind == "evaluation"
    assert text.startswith(f"step 1 has no score: {cause}")
    assert "\n" not in text
    assert [(e["parameter_version"], e["return_mean"]) for e in evaluations] == [(2, 5.0)]
    assert load_model(tmp_path / BEST_MODEL).parameter_version == 2


def improves(mood: float) -> Callable[[Link], None]:
    def better(link: Link) -> None:
        Moody.mood, link.parameter_version = mood, (link.parameter_version or 0) + 1

    return better


def test_evaluations_say_whose_parameters_are_the_best_and_whether_these_are_the_first(
    evaluated: Evaluated, tmp_path: Path
):
    _, evaluations = evaluated(3.0, improves(2.0), improves(5.0), improves(4.0), finishes)
    told = [(e["best"], e["best_version"], e["best_is_first"]) for e in evaluations]
    assert told == [(3.0, 1, True), (3.0, 1, True), (5.0, 3, False), (5.0, 3, False)]
    assert load_model(tmp_path / BEST_MODEL).parameter_version == 3


@BAD_MOODS
def test_a_run_whose_last_policy_has_no_score_ends_all_the_same(
    evaluated: Evaluated, mood: Any, cause: str
):
    def finishes_with_another(link: Link) -> None:
        link.parameter_version = 7
        finishes(link)

    notes, evaluations = evaluated(mood, finishes_with_another)
    assert [text.partition(":")[0] for _, text in notes] == [
        *("step 1 has no score", "step 7 has no score"),
    ]
    assert evaluations == []


JUDGED = "wild_environments:Judged"


def evaluations_of(evaluated: Evaluated, baselines: str, **arguments: Any) -> tuple[Any, Any]:
    env_args = {"baselines": baselines, **arguments}
    return evaluated(3.0, recovers, finishes, env=JUDGED, env_args=env_args)


def test_slow_baselines_are_played_elsewhere_while_the_evaluator_stays_in_touch(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    polled = tmp_path / "polled"
    monkeypatch.setattr(Link, "waited", lambda _: polled.touch())
    notes, evaluations = evaluations_of(evaluated, "waits", path=str(polled))
    assert [e["baselines"] for e in evaluations] == [{"standing still": 0.5}] * 2
    assert notes == []


def check_told(notes: Any, words: str) -> None:
    ((kind, text),) = notes
    assert kind == "baselines"
    assert text.startswith(f"the baselines of environment {JUDGED} cannot be played: ")
    assert words in text
    assert text.endswith("; evaluations go on without them")


@pytest.mark.parametrize(
    ("baselines", "words"),
    [("ends", "ended with exit code 3"), ("hangs", "no answer for 2 s")],
)
def test_baselines_that_end_or_hang_are_told_once_and_evaluations_go_on_without(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, baselines: str, words: str
):
    monkeypatch.setattr("actors.baselines._SECONDS", 2.0 if baselines == "hangs" else 60.0)
    notes, evaluations = evaluations_of(evaluated, baselines)
    assert [e["baselines"] for e in evaluations] == [{}, {}]
    check_told(notes, words)


@pytest.mark.parametrize(
    ("baselines", "words"),
    [
        ("raises", "ZeroDivisionError: of nothing"),
        ("quits", "EnvironmentQuitError: SystemExit: 3"),
        ("list", "baselines(seeds) gave [0.5, 0.5, 0.5]; a dict of names and scores is needed"),
        ("words", "'half']}; a dict of names and scores is needed, one score for each of the 3"),
        ("few", "[0.5]}; a dict of names and scores is needed, one score for each of the 3 seeds"),
        ("nan", "standing still gave [nan, nan, nan], not a score"),
        ("property", "KeyError: 'baselines'"),
    ],
)
def test_baselines_that_fail_cost_no_evaluation(baselines: str, words: str):
    spec, telemetry = describe_environment(JUDGED, {}), Telemetry()
    arguments = {"baselines": baselines}
    played = Baselines(spec, arguments, range(3), telemetry, run_seed=0, give_up=lambda: False)
    with closing(played), closing(VectorEnvironment(spec, arguments, 1)) as env:
        for _ in range(2):
            played.begin(env)
            assert played.wait()
    assert played.scores == {}
    check_told(telemetry.report().notes, words)


@pytest.mark.parametrize("fails", [False, True])
def test_no_evaluation_waits_for_bounds_and_searches_and_later_ones_have_them_or_a_note(
    tmp_path: Path, fails: bool
):
    path = tmp_path / "fails"
    if fails:
        path.touch()
    spec, telemetry = describe_environment(JUDGED, {}), Telemetry()
    arguments = {"baselines": "bounded", "path": str(path)}
    played = Baselines(spec, arguments, range(3), telemetry, run_seed=0, give_up=lambda: False)
    notes: list[Any] = []

    def is_over() -> bool:
        assert played.wait()
        notes.extend(telemetry.report().notes)
        return "annealing_1s" in played.scores

    with closing(played), closing(VectorEnvironment(spec, arguments, 1)) as env:
        played.begin(env)
        assert played.wait()
        assert played.scores.keys() == {"standing still"}
        wait_until(is_over)
        assert ("dual_bound" in played.scores) is not fails
        assert played.scores["annealing_1s"].tolist() == [19.0] * 3, "it has the lowest priority"
        assert played.wait()
    if fails:
        check_told(notes, "ZeroDivisionError: of no bound")
    else:
        assert notes == []


def test_an_environment_without_baselines_is_played_at_random_from_the_second_evaluation_on():
    spec, telemetry = describe_environment("CartPole-v1", {}), Telemetry()
    played = Baselines(spec, {}, range(3), telemetry, run_seed=0, give_up=lambda: False)
    with closing(played), closing(VectorEnvironment(spec, {}, 1)) as env:
        played.begin(env)
        assert played.wait()
        assert played._random is None, "the first evaluation is in a run's first seconds"
        wait_until(lambda: played.wait() and played.scores)
    (name,) = played.scores
    assert name == "random"
    assert played.scores[name].shape == (3,)
    assert (played.scores[name] >= 8).all()
    assert telemetry.report().notes == ()


@pytest.mark.parametrize("kind", ["alarm", "loop"])
def test_an_environment_for_a_main_thread_is_evaluated_and_costs_no_process(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr("actors.baselines.Apart", lambda *_: pytest.fail("it has no baselines"))
    before = signal.getsignal(signal.SIGALRM)
    # A test before this one may have used asyncio.run, after which a main thread has no loop.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        args = {"kind": kind}
        notes, evaluations = evaluated(
            3.0, finishes, env="wild_environments:Watchdog", env_args=args
        )
    finally:
        signal.signal(signal.SIGALRM, before)
        asyncio.set_event_loop(None)
        loop.close()
    assert [e["episodes"] for e in evaluations] == [3]
    assert notes == []
    assert (tmp_path / BEST_MODEL).is_file()


def test_an_evaluation_is_given_up_when_the_run_ends_and_the_last_policy_has_its_own(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
):
    def ends(link: Link) -> None:
        if link.pulse.command == "run":
            link.parameter_version = 7
            finishes(link)

    monkeypatch.setattr(Link, "waited", ends)
    _, evaluations = evaluated(3.0)
    assert [e["parameter_version"] for e in evaluations] == [7]


def test_held_out_episodes_without_a_score_are_told(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
):
    moods = iter([1.0, math.nan])
    monkeypatch.setattr(Moody, "step", lambda self, _: (
        self.reset()[0], next(moods, 2.0), True, False, {}
    ))  # fmt: skip
    notes, evaluations = evaluated(3.0, finishes)
    assert notes == [("evaluation", "1 of 3 held-out episodes have no score")]
    assert [e["episodes"] for e in evaluations] == [2]


@pytest.mark.parametrize("cut", [1, 3])
def test_episodes_cut_before_their_headline_are_told_and_no_policy_of_theirs_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
):
    spec = describe_environment(MOODY, {"headline": "calm"})
    ends = iter([True] * (3 - cut))
    monkeypatch.setattr(Moody, "step", lambda self, _: (
        (self.reset()[0], 2.0, True, False, {"calm": 0.5}) if next(ends, False)
        else (self.reset()[0], 2.0, False, False, {})
    ))  # fmt: skip
    config, telemetry = config_of(max_episode_steps=4), Telemetry()
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, env_args={"headline": "calm"})
    )
    evaluation = GreedyEvaluation(
        config, spec, build_network(spec, config.network), tmp_path, telemetry,
        give_up=lambda: False, failed=lambda text, _: pytest.fail(text),
    )  # fmt: skip
    assert evaluation.evaluate(7)
    report = telemetry.report()
    found = report.evaluation
    assert found is not None
    assert (found.episodes, found.dropped, found.cut, found.unscored) == (3, 0, cut, cut)
    assert found.return_mean == 2.0 * (3 - cut + 4 * cut) / 3
    assert found.metrics == ({} if cut == 3 else {"calm": 0.5})
    assert found.best is None
    assert not (tmp_path / BEST_MODEL).exists()
    [(kind, text)] = report.notes
    assert kind == "evaluation"
    assert text.startswith(f"{cut} of 3 held-out episodes were cut before")


def test_evaluations_come_by_learner_steps_where_they_are_to(evaluated: Evaluated):
    def learns(steps: int) -> Callable[[Link], None]:
        return lambda link: setattr(link, "parameter_version", link.parameter_version + steps)

    by_steps = {"period_seconds": 1e6, "period_steps": 10}
    happens = [learns(9), time_passes, learns(1), learns(25), time_passes, finishes]
    _, evaluations = evaluated(3.0, *happens, **by_steps)
    assert [e["parameter_version"] for e in evaluations] == [1, 11, 36]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_not_kept_and_opens_no_door_to_worse_ones(
    tmp_path: Path, score: float
):
    config, spec = config_of(), describe_environment(MOODY, {})
    network, path = build_network(spec, config.network), tmp_path / BEST_MODEL
    keeper = BestKeeper(path, config, spec)
    kept = [
        keeper.offer({"return_mean": mean}, np.full(3, mean), network, version)
        for version, mean in enumerate([score, 3.0, score, 2.0, 4.0])
    ]
    assert kept == [False, True, False, False, True]


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_file_of_no_number_is_replaced_by_the_next_best(tmp_path: Path, score: float):
    config, spec = config_of(), describe_environment(MOODY, {})
    network, path = build_network(spec, config.network), tmp_path / BEST_MODEL
    save_model(path, config, spec, network, 1, score)
    keeper = BestKeeper(path, config, spec)
    assert keeper.score is None
    assert keeper.offer({"return_mean": -5.0}, np.full(3, -5.0), network, 2)


# ---- what a run is refused to evaluate on ----


def prepare(env_args: dict[str, Any], run: dict[str, Any]) -> None:
    layer = {"run": run, "evaluation": {"env_args": env_args}}
    preparation.prepare(build(("test", layer)))


@pytest.mark.parametrize(
    ("env_args", "trained", "words"),
    [
        ({"sizes": 4}, {}, ["unexpected keyword argument 'sizes'"]),
        ({"actions": 3}, {}, ["and 3 actions", "in training", "and 2 actions", "does not fit"]),
        ({"size": 4}, {}, ["observation [4]", "observation [3]", "does not fit"]),
        ({"dtype": "float64"}, {}, ["observation float64", "observation float32"]),
        ({"first": 1}, {}, ["the first action 1", "the first action 0"]),
        ({"headline": "won"}, {}, ["metric won", "metric None"]),
        ({"categories": 9}, {"categories": 4}, ["of [9] categories", "of [4] categories"]),
        ({"categories": 9}, {}, ["observation int64 of [9]", "observation float32"]),
    ],
)
def test_evaluations_on_something_else_are_refused_before_anything_starts(
    env_args: dict[str, Any], trained: dict[str, Any], words: list[str]
):
    with pytest.raises(UsageError) as caught:
        prepare(env_args, {"env": MOODY, "env_args": trained})
    text = str(caught.value)
    assert text.startswith("evaluation.env_args: ")
    assert "\n" not in text
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("env_args", "run"),
    [
        ({"size": 3}, {"env": MOODY}),
        ({"map_size": 32}, {"env": CIRCLES, "env_args": {"map_size": 16, "radii": [2, 1]}}),
        ({"places": 20}, {"env": MOODY, "env_args": {"places": 16}, "frame_stack": 2}),
        ({"max_episode_steps": 9}, {"env": "CartPole-v1", "frame_stack": 2}),
    ],
    ids=["the same", "a larger map", "more places", "shorter episodes"],
)
def test_evaluations_on_what_the_network_can_take_are_not(
    env_args: dict[str, Any], run: dict[str, Any]
):
    prepare(env_args, run)


def test_an_evaluation_is_reported_although_no_parameters_can_be_kept(tmp_path: Path):
    config = build(("test", {"evaluation": {"episodes": 2, "max_episode_steps": 5}}))
    spec, telemetry = describe_environment("CartPole-v1", {}), Telemetry()
    network = build_network(spec, config.network)
    evaluation = GreedyEvaluation(
        dataclasses.replace(config, run=dataclasses.replace(config.run, env="CartPole-v1")),
        spec, network, tmp_path / "not there", telemetry,
        give_up=lambda: False, failed=lambda text, _: pytest.fail(text),
    )  # fmt: skip
    assert evaluation.evaluate(7)
    reported = telemetry.report().evaluation
    assert reported is not None
    assert (reported.parameter_version, reported.episodes, reported.best) == (7, 2, None)
