"""The benchmark of a whole run: its parts, and the report that is made of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from click.testing import CliRunner
from test_machine import CART_POLE, PLACEMENT, configured, machine

from actors.environments.describe import describe_environment
from launcher.bench.replay import Load
from launcher.bench.whole import overview, stages
from launcher.bench.whole.calibration import (
    CROWD,
    Calibration,
    Run,
    calibrate,
    edge_configs,
    fit,
)
from launcher.bench.whole.costs import (
    Pieces,
    Serving,
    costs_of,
    factors_of,
    layout_of,
    median_of,
    rows,
    serving_of,
    with_gpu,
)
from launcher.bench.whole.measured import Measured
from launcher.bench.whole.stages import Acting, Learning, Replaying
from launcher.bench.whole.trial import Trial, summarize
from launcher.cli.commands import cli
from launcher.plan.plan import plan
from launcher.prediction.model import COOLING_SECONDS, predict
from launcher.terminal import terminal
from pdqn.config import Config
from pdqn.errors import RunError, UsageError
from pdqn.layers import build

ACTING = Acting(
    environment_seconds=20e-6,
    wait_seconds=0.0,
    values_seconds=30e-6,
    seconds=90e-6,
    wire_bytes=40.0,
    episode_steps=25.0,
    batches=[],
)
PIECES = Pieces(
    acting={8: ACTING, 16: ACTING, 32: ACTING},
    replaying=Replaying(intake=1e-6, journal=0.5e-6, sampling=0.4e-6, priority=0.1e-6),
    serving=Serving(send=10e-6, insert=4e-6, sample=2e-6, client=3e-6),
    learning=Learning(cpu_seconds=12e-6, wall_seconds=12e-6, sample_bytes=60.0),
    scaling={
        (64, 1): Learning(10e-6, 10e-6, 60.0),
        (64, 2): Learning(11e-6, 6e-6, 60.0),
        (256, 1): Learning(8e-6, 8e-6, 60.0),
        (256, 2): Learning(8e-6, 5e-6, 60.0),
    },
    upkeep=0.001,
)
TRIAL = Trial(
    seconds=10.0,
    environment_steps=1000.0,
    episodes=20.0,
    samples=16_000.0,
    wire_bytes=40_000.0,
    cpu={"actor": 0.201, "replay": 0.018, "learner": 0.48, "evaluator": 0.0, "launcher": 0.03},
    actor_waits=0.5,
    learner_waits=0.1,
)


CALIBRATION = Calibration(
    actor=1.1, crowding=1.5, inserting_seconds=8e-6, sampling_seconds=3e-6,
    learning_seconds=20e-6, cold_factor=2.5,
)  # fmt: skip


def planned(cores: int = 2) -> Config:
    return plan(
        machine(cores), configured(run={"mode": "parallel"}, actor={"count": 1}), CART_POLE
    ).config


# ---- from pieces to costs ----


def test_the_costs_of_busy_roles_add_up_from_their_pieces():
    config = planned()
    costs = costs_of(PIECES, config, TRIAL)
    assert costs.actor_seconds == pytest.approx(100e-6)  # 90 us, and 10 to send
    assert costs.replay_seconds(0.0) == pytest.approx(4e-6)
    assert costs.replay_seconds(16.0) == pytest.approx(36e-6)
    assert costs.learning_seconds == pytest.approx(15e-6)
    assert costs.parallel_share == pytest.approx(0.8)  # 10 us, and 6 on two threads
    assert costs.episode_steps == 50.0, "the run knows better than an untrained policy"
    # Ten episodes of 50 steps, 50 us each, every 20 s; and the launcher.
    assert costs.fixed_cores == pytest.approx(0.03 + 10 * 50 * 50e-6 / 20)
    parts = list(rows(PIECES, config, costs))
    whole = sum(each * times for *_, each, times in parts)
    assert whole == pytest.approx(100e-6 + 36e-6 + 16 * 15e-6)


def test_replay_costs_what_it_takes_for_single_messages_and_less_while_it_is_busy():
    # Alone, replay takes 10 us of an insert and 5 us of a sample; together half of both.
    found = serving_of(
        {"writer": Load(1000.0, 0.02), "replay": Load(0.0, 0.01)},
        {"client": Load(2000.0, 0.01), "replay": Load(0.0, 0.01)},
        {
            "writer": Load(1000.0, 0.018),
            "client": Load(1000.0, 0.004),
            "replay": Load(0.0, 0.0075),
        },
        encoding_seconds=12e-6,
    )
    assert found.insert == pytest.approx(10e-6)
    assert found.sample == pytest.approx(5e-6)
    assert found.replay_busy == pytest.approx(0.5)
    assert found.send == pytest.approx(6e-6)
    assert found.client == pytest.approx(5e-6)


def test_a_phase_in_which_a_process_was_held_up_does_not_count():
    good, held_up = Serving(1.0, 2.0, 3.0, 4.0, 0.5), Serving(9e9, 9e9, 9e9, 9e9, 0.0)
    assert median_of([good, held_up, good]) == good


def test_a_run_tells_by_which_factor_each_role_took_more():
    config = planned()
    costs, layout = costs_of(PIECES, config, TRIAL), layout_of(config, 2)
    found = factors_of(costs, layout, TRIAL)
    assert layout.actors == 1
    assert found.actor == pytest.approx(2.0)  # 0.2 s for 1000 steps of 100 us
    assert found.replay == pytest.approx(0.018 / 0.036)
    assert found.learner == pytest.approx(2.0)  # 30 us a sample
    agreeing = found.applied_to(costs)
    assert agreeing.actor_seconds == pytest.approx(200e-6)
    assert agreeing.learning_seconds == pytest.approx(30e-6)


def test_a_gpu_that_was_measured_here_is_not_replaced_by_one_that_is_told():
    told = with_gpu(PIECES, 5e-6)
    assert (told.gpu_seconds, told.gpu_is_told) == (5e-6, True)
    measured = dataclasses.replace(PIECES, gpu_seconds=7e-6)
    assert with_gpu(measured, 5e-6).gpu_seconds == 7e-6
    assert with_gpu(PIECES, None).gpu_seconds is None


# ---- from real runs to costs ----


def run_of(steps: float, samples: float, actors: int, **cpu: float) -> Run:
    """Make a run on two cores, in which every unit of 8 environments' actors took this CPU time."""
    chosen = configured(run={"mode": "parallel"}, actor={"count": actors, "envs_per_actor": 8})
    config = plan(machine(2), chosen, CART_POLE).config
    own = {**TRIAL.cpu, **cpu, "actor": cpu["actor"] + actors * PIECES.upkeep}
    trial = dataclasses.replace(TRIAL, environment_steps=steps, samples=samples, cpu=own)
    return Run(config, 2, trial)


def test_three_runs_tell_what_company_costs():
    # The planned run learns 50,000 samples of 20 us: its learner never waits. The other one's
    # steps are 200 ms apart. By then caches are cold, and a sample takes 2.5 times as much. Replay
    # takes 8 us of a transition and 3 us of a sample. Actors take 110 us, in the crowd 165 us.
    many = run_of(5000.0, 50_000.0, 1, actor=0.55, replay=0.19, learner=1.0)
    waits = 0.2 - 64 * 50e-6
    factor = 1.0 + 1.5 * waits / (waits + COOLING_SECONDS)
    replay = 4000.0 * 8e-6 + 320.0 * factor * 3e-6
    few = run_of(4000.0, 320.0, 2, actor=0.44, replay=replay, learner=320.0 * factor * 20e-6)
    # The crowd learns as rarely.
    replay, learner = 3000.0 * 8e-6 + 320.0 * factor * 3e-6, few.trial.cpu["learner"]
    crowd = run_of(3000.0, 320.0, 2 * CROWD, actor=0.495, replay=replay, learner=learner)
    found = calibrate(PIECES, many, few, crowd)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(CALIBRATION), rel=0.01)
    costs = found.applied_to(costs_of(PIECES, many.config, many.trial))
    assert costs.actor_seconds == pytest.approx(110e-6)
    assert costs.replay_seconds(2.0) == pytest.approx(14e-6)
    assert costs.journal_seconds / costs.intake_seconds == pytest.approx(0.5 / 3.5), "as measured"


def test_costs_that_no_two_terms_explain_get_one_and_none_below_zero():
    assert fit([0.0, 1.0, 2.0], [3.0, 5.0, 7.0]) == pytest.approx((3.0, 2.0))
    assert fit([1.0, 2.0, 3.0], [1.0, 3.0, 5.0])[0] == 0.0
    assert fit([1.0, 2.0], [5.0, 4.0]) == (pytest.approx(180 / 41), 0.0)


def test_a_learner_is_not_taken_to_be_quicker_than_it_is_by_itself():
    # Both runs wait, so that a line through them says little of a learner that is always busy.
    slow = run_of(5000.0, 500.0, 1, actor=0.55, replay=0.05, learner=500.0 * 40e-6)
    slower = run_of(5000.0, 400.0, 2, actor=0.55, replay=0.05, learner=400.0 * 41e-6)
    found = calibrate(PIECES, slow, slower, slower)
    assert found.learning_seconds == pytest.approx(15e-6)  # a step of 12 us, and 3 of sockets


def test_a_planned_run_on_several_threads_does_not_tell_what_one_thread_takes():
    many = run_of(5000.0, 50_000.0, 1, actor=0.55, replay=0.19, learner=4.0)
    threads = build(("test", many.config.to_map()), ("test", {"learner": {"threads": 4}}))
    few = run_of(4000.0, 320.0, 2, actor=0.44, replay=0.03, learner=320.0 * 45e-6)
    found = calibrate(PIECES, dataclasses.replace(many, config=threads), few, few)
    assert found.learning_seconds == pytest.approx(15e-6)


def test_the_other_runs_have_an_actor_on_each_core_and_a_crowd_on_at_most_two():
    chosen = configured(replay={"samples_per_insert": 8.0})
    alone, crowd = edge_configs(chosen, machine(16), CART_POLE)
    assert (alone.actor.count, crowd.actor.count) == (2, 2 * CROWD)
    assert (alone.replay.samples_per_insert, crowd.replay.samples_per_insert) == (0.1, 1.0)
    chosen = configured(replay={"samples_per_insert": 0.1})
    alone, crowd = edge_configs(chosen, machine(1), CART_POLE)
    assert (alone.actor.count, crowd.actor.count) == (1, CROWD)
    # Two ratios are told apart, and none is higher than the planned one.
    assert (alone.replay.samples_per_insert, crowd.replay.samples_per_insert) == (0.05, 0.1)


# ---- a real run's figures ----


def line(seconds: float, steps: float, learner_steps: int, **more: float) -> dict[str, Any]:
    return {
        "time_seconds": seconds, "environment_steps": steps, "learner_steps": learner_steps,
        "episodes": steps / 10, "replay/size": 1, "actor/wait_share": 0.5,
        "learner/wait_share": 0.25, "replay/bytes_per_second": 7.0, **more,
    }  # fmt: skip


def test_rates_are_of_the_time_after_learning_has_settled_and_before_the_end():
    lines = [line(1.0, 9e9, 0), line(2.0, 9e9, 1)]
    lines += [
        line(t, 100.0 * t, int(10 * t), **{"actor/cpu_seconds": 0.3 * t}) for t in range(5, 11)
    ]
    lines += [line(11.0, 0.0, 0)]
    found = summarize(lines, [0.1 * i for i in range(9)], batch=64)
    assert found.seconds == 5.0
    assert found.environment_steps == pytest.approx(100.0)
    assert found.samples == pytest.approx(640.0)
    assert found.episode_steps == pytest.approx(10.0)
    assert found.cpu["actor"] == pytest.approx(0.3)
    assert found.cpu["launcher"] == pytest.approx(0.1)
    assert (found.actor_waits, found.learner_waits, found.wire_bytes) == (0.5, 0.25, 7.0)


def test_a_run_that_ends_before_it_has_settled_is_refused():
    with pytest.raises(RunError, match="soon after its first learner step"):
        summarize([line(1.0, 1.0, 0), line(2.0, 2.0, 1), line(3.0, 3.0, 2)], [0.0], 64)


# ---- other machines, and the report ----


def test_other_machines_get_the_plan_of_their_own_size():
    chosen = configured(actor={"count": 3}, learner={"threads": 1, "device": "cpu"})
    with_gpu = overview.other_config(chosen, PLACEMENT, machine(2), 128, True)
    assert (with_gpu.actor.count, with_gpu.actor.envs_per_actor) == (120, 16)
    assert with_gpu.learner.device == "cuda"
    assert with_gpu.run.mode == "ultra"
    without = overview.other_config(chosen, PLACEMENT, machine(2), 128, False)
    assert (without.learner.device, without.run.mode) == ("cpu", "parallel")
    assert without.actor.envs_per_actor == 8


def test_the_report_says_what_is_measured_and_what_is_assumed():
    config, given = planned(), configured()
    measured = Measured(CART_POLE, machine(2), config, PIECES, TRIAL, CALIBRATION)
    costs = measured.costs()
    places = [
        overview._place(measured, overview.other_config(given, CART_POLE, machine(2), *m), *m)
        for m in overview._others()
    ]
    console = terminal(width=80, record=True, file=None)
    with console.capture() as capture:
        console.print(overview._cost_table(measured))
        for text in overview._here_lines(measured):
            console.print(text)
        console.print(overview._places_table(places))
        for note in overview._notes(measured, places):
            console.print(note)
    shown = capture.get()
    assert "…" not in shown, "80 columns have room for all"
    assert "learner is the bottleneck" in shown
    assert "1.10 times its parts" in shown
    assert "No GPU was measured" in shown
    known = [place for place in places if not place.layout.gpu]
    assert {place.prediction.limit for place in known} == {"learner"}
    data = overview.as_data(measured, places)
    json.dumps(data, allow_nan=False)
    assert [one["cores"] for one in data["predicted"]] == [16, 16, 64, 64, 128, 128, 1024, 1024]
    assert [one["known"] for one in data["predicted"]] == [True, False] * 4
    assert data["here"]["rate"] == pytest.approx(predict(costs, layout_of(config, 2)).rate)


def test_options_before_the_name_of_a_benchmark_are_refused_rather_than_ignored():
    asked = ["bench", "--run-seconds", "3", "replay", "--data", "cartpole"]
    done = CliRunner().invoke(cli, asked, standalone_mode=False)
    assert isinstance(done.exception, UsageError)
    assert "--run-seconds: give it after bench replay" in str(done.exception)


# ---- measuring ----


@pytest.mark.usefixtures("same_threads")
def test_every_piece_of_a_small_run_has_a_cost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "_WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(stages, "_SLICE_SECONDS", 0.005)
    monkeypatch.setattr(stages, "keep_little_free_memory", lambda *_: None)
    monkeypatch.setattr(stages, "keep_freed_memory", lambda: None)
    run = {"env": "pdqn/CirclePlacement-v0", "env_args": {"map_size": 16, "radii": [3, 2, 1]}}
    learner = {"batch_size": 16, "threads": 1, "device": "cpu"}
    given = build(("test", {"run": run, "learner": learner, "actor": {"count": 1}}))
    spec = describe_environment(run["env"], run["env_args"])
    config = plan(machine(2), given, spec).config
    acting = stages.measure_acting(config, spec, 0.05)
    assert 0 < acting.environment_seconds < acting.seconds
    assert acting.values_seconds > 0
    assert 20 < acting.wire_bytes < 2000
    replaying = stages.measure_replay(config, spec, acting.batches, 0.05)
    assert min(vars(replaying).values()) > 0
    learning = stages.measure_learning(config, spec, acting.batches, 1, 0.05)
    assert min(vars(learning).values()) > 0
    assert 0 < stages.measure_upkeep(config, spec, 0.05) < 1


@pytest.mark.slow
def test_a_whole_run_is_measured_and_predicted(capsys: pytest.CaptureFixture[str]):
    config = configured(run={"env": "CartPole-v1", "mode": "parallel"})
    assert overview.bench(config, 0.2, 3.0, 50e-6, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(part["seconds"] >= 0 for part in found["parts"])
    assert found["run"]["environment_steps"] > 0
    assert found["run"]["cpu"]["learner"] > 0
    assert found["calibration"]["crowding"] >= 1.0
    assert found["gpu_is_told"]
    assert all(one["known"] and one["rate"] > 0 for one in found["predicted"])
