"""Predicted rates of runs, in worked numbers."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.bench.whole.costs import parallel_share_of
from launcher.prediction.model import (
    COOLING_SECONDS,
    CROWD,
    Costs,
    Layout,
    cold_part,
    predict,
    replays_worth,
    required_gpu_seconds,
    speed_up,
    threads_worth,
    useful_actors,
)

# An actor takes 100 us of a transition, replay 10 us and 2 us of each sample, the learner 40 us.
COSTS = Costs(
    environment_seconds=30e-6,
    acting_seconds=50e-6,
    recording_seconds=20e-6,
    intake_seconds=8e-6,
    journal_seconds=2e-6,
    sampling_seconds=1.5e-6,
    priority_seconds=0.5e-6,
    learning_seconds=40e-6,
)


def layout(cores: int = 64, **changes: object) -> Layout:
    made = Layout(cores, actors=1, replays=1, threads=1, samples_per_insert=1.0)
    return dataclasses.replace(made, **changes)  # pyright: ignore[reportArgumentType]


def test_one_actor_limits_a_run_whose_other_roles_have_cores_of_their_own():
    found = predict(COSTS, layout())
    assert found.rate == pytest.approx(10_000)
    assert found.limit == "actors"
    assert found.limits["replay"] == pytest.approx(1 / 12e-6)
    assert found.limits["learner"] == pytest.approx(25_000)


def test_one_core_gives_every_transition_the_sum_of_all_roles():
    found = predict(COSTS, layout(cores=1))
    assert found.limit == "cores"
    assert found.rate == pytest.approx(1 / 152e-6)  # 100 us, 12 us and 40 us


def test_two_cores_are_twice_one_until_a_single_process_is_full():
    shared = predict(COSTS, layout(cores=2, actors=4))
    assert shared.rate == pytest.approx(2 / 152e-6)
    # With 8 samples of 40 us, the learner's process takes 320 us of each transition: one core.
    learns = predict(COSTS, layout(cores=2, actors=4, samples_per_insert=8.0))
    assert learns.limit == "learner"
    assert learns.rate == pytest.approx(1 / 320e-6)


def test_each_doubling_of_the_actors_on_a_core_adds_the_same_to_their_costs():
    costs = dataclasses.replace(COSTS, crowding=1.6)
    found = [costs.crowded_seconds(layout(10, actors=n)) for n in (1, 10, 20, 80, 160)]
    assert found == pytest.approx([100e-6, 100e-6, 120e-6, 160e-6, 180e-6])
    alone, among = layout(cores=1), layout(cores=1, actors=CROWD)
    assert predict(costs, alone).rate == pytest.approx(1 / 152e-6)
    assert predict(costs, among).rate == pytest.approx(1 / 212e-6)


def test_a_learner_that_waits_takes_more_for_a_sample_and_one_that_limits_does_not():
    costs = dataclasses.replace(COSTS, cold_factor=2.5)
    busy = layout(actors=60, samples_per_insert=8.0)
    assert predict(costs, busy).limit == "learner"
    assert predict(costs, busy).rate == predict(COSTS, busy).rate
    # A sample for ten transitions: the learner steps ten times a second, and waits in between.
    # The 40 us of the learner's sample and the 2 us of replay's grow.
    found = predict(costs, layout(cores=1, samples_per_insert=0.1))
    waits = 64 * (1 / (0.1 * found.rate) - 40e-6)
    cold = waits / (waits + COOLING_SECONDS)
    assert cold > 0.9
    assert found.rate == pytest.approx(1 / (110e-6 + 0.1 * 42e-6 * (1 + 1.5 * cold)))
    assert cold_part(0.0, 64, 40e-6) == pytest.approx(1.0), "nothing was learned for long"


def test_the_ratio_of_samples_to_inserts_ties_the_learner_to_the_actors():
    few = predict(COSTS, layout(actors=60, samples_per_insert=0.1))
    assert few.limit == "replay"  # 10.2 us
    assert few.rate == pytest.approx(1 / 10.2e-6)
    many = predict(COSTS, layout(actors=60, samples_per_insert=8.0))
    assert many.limit == "learner"
    assert many.rate == pytest.approx(3125)


def test_several_replays_share_what_arrives_and_what_is_sampled():
    one = layout(cores=1000, actors=60, samples_per_insert=0.1)
    # The learner permits 250,000 transitions/s, of 10.2 us each.
    assert replays_worth(COSTS, one) == 3
    three = predict(COSTS, dataclasses.replace(one, replays=3))
    assert three.limit == "learner"
    assert replays_worth(COSTS, layout()) == 1
    assert replays_worth(COSTS, dataclasses.replace(one, cores=63)) == 2, "no core is left"


def test_a_replay_that_is_always_busy_takes_less_of_each_message():
    costs = dataclasses.replace(COSTS, replay_busy=0.5)
    many = layout(cores=1000, actors=60, samples_per_insert=0.1)
    assert predict(costs, many).limit == "replay"
    assert predict(costs, many).rate == pytest.approx(1 / 5.1e-6)
    shared = predict(costs, layout(cores=1))
    assert shared.rate == pytest.approx(1 / 152e-6), "one that waits takes all of it"


def test_only_a_part_of_a_step_is_faster_on_more_threads():
    costs = dataclasses.replace(COSTS, parallel_share=0.8)
    # 40 us of which 8 remain and 32 are shared by four: 16 us.
    assert costs.sample_seconds(4) == pytest.approx(16e-6)
    threaded = layout(actors=60, samples_per_insert=8.0, threads=4)
    assert predict(costs, threaded).rate == pytest.approx(1 / 128e-6)
    # On two cores, four threads take all of both: 4 x 16 us for each of 8 samples, and 126 us.
    tight = predict(costs, dataclasses.replace(threaded, cores=2))
    assert tight.limit == "cores"
    assert tight.rate == pytest.approx(2 / (512e-6 + 126e-6))


def test_the_shared_part_follows_from_one_and_two_threads():
    assert parallel_share_of(10.0, 6.0) == pytest.approx(0.8)
    assert speed_up(0.8, 2) == pytest.approx(10 / 6)
    assert parallel_share_of(10.0, 12.0) == 0.0, "two threads in each other's way share nothing"
    assert parallel_share_of(10.0, 4.0) == 1.0, "a lucky measurement is not more than perfect"


def test_learner_threads_end_where_another_gains_less_than_a_tenth():
    assert threads_worth(0.0, 8) == 1
    # Times 1, 0.6, 0.467, 0.4, 0.36, 0.333: the sixth gains 8%.
    assert threads_worth(0.8, 8) == 5
    assert threads_worth(0.8, 3) == 3
    assert threads_worth(1.0, 8) == 8


def test_a_gpu_that_nobody_has_measured_leaves_the_learner_out_and_has_a_time_to_keep():
    with_gpu = layout(cores=128, actors=120, samples_per_insert=0.5, gpu=True, replays=14)
    found = predict(COSTS, with_gpu)
    assert not found.known
    assert "learner" not in found.limits
    assert found.limit == "cores"
    assert found.rate == pytest.approx(128 / 111e-6)
    # Half a sample for each: two transitions' time.
    assert required_gpu_seconds(COSTS, with_gpu) == pytest.approx(2 * 111e-6 / 128)


def test_a_measured_gpu_limits_and_takes_a_core():
    costs = dataclasses.replace(COSTS, gpu_seconds=5e-6)
    found = predict(costs, layout(cores=128, actors=120, gpu=True, replays=14))
    assert found.known
    assert found.limit == "learner"
    assert found.rate == pytest.approx(200_000)
    small = predict(costs, layout(cores=1, gpu=True))
    assert small.rate == pytest.approx(1 / 117e-6)


def test_an_environment_that_waits_takes_no_core():
    costs = dataclasses.replace(COSTS, wait_seconds=4.9e-3)
    found = predict(costs, layout(cores=2, actors=20))
    assert found.limit == "actors"
    assert found.rate == pytest.approx(20 / 5e-3)
    assert useful_actors(costs, layout(cores=2, actors=20)) == 66  # 13,158/s of 200/s each


def test_upkeep_of_many_actors_and_of_launcher_and_evaluator_is_taken_off_the_cores():
    costs = dataclasses.replace(COSTS, upkeep_seconds=0.01, fixed_cores=0.2)
    found = predict(costs, layout(cores=1, actors=30))
    assert found.rate == pytest.approx((1 - 0.2 - 0.3) / 152e-6)
    assert predict(costs, layout(cores=1, actors=100)).rate == 0.0
