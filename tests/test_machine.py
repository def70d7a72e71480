"""The machine's resources, and the plan that fits them."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from launcher.plan import machine as hardware
from launcher.plan.disk import describe_journal
from launcher.plan.machine import (
    CgroupLimits,
    Gpu,
    Machine,
    cgroup_limits,
    detect,
    raise_open_file_limit,
    usable_cores,
    visible_gpus,
)
from launcher.plan.plan import (
    GB,
    Plan,
    frame_stack,
    learner_settings,
    measures_frames,
    plan,
)
from launcher.plan.report import as_json, report
from launcher.plan.storage import COMPRESSED_SAFETY, Storage
from launcher.prediction.model import PARALLEL_SHARE, actors_for, threads_worth
from pdqn.config import ActorConfig, Config, NetworkConfig
from pdqn.errors import RunError, UsageError
from pdqn.layers import build
from pdqn.networks import network_sizes
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.samples import SampleLayout
from replay.sizes import compressed_bytes, dense_bytes

LookAtGpus = Callable[..., tuple[Gpu, ...]]

H200 = Gpu("NVIDIA H200", 150 * GB, 149 * GB, (9, 0))
PLACEMENT = EnvironmentSpec(
    "pdqn/CirclePlacement-v0",
    (
        FieldSpec("action_mask", (16_384,), "bool", binary=True),
        FieldSpec("map", (128, 128), "float16"),
        FieldSpec("radii", (20,), "float32"),
    ),
    16_384,
    "coverage",
    circle_placement=True,
)
ATARI = EnvironmentSpec("ALE/Pong-v5", (FieldSpec("observation", (84, 84), "uint8", stack=4),), 6)
CART_POLE = EnvironmentSpec("CartPole-v1", (FieldSpec("observation", (4,), "float32"),), 2)


def machine(cores: int = 16, *, gpus: tuple[Gpu, ...] = (), **changes: Any) -> Machine:
    values: dict[str, Any] = {
        "hostname": "workstation",
        "system": "Linux",
        "cores": cores,
        "physical_cores": cores,
        "logical_cores": cores,
        "ram_total_bytes": 4 * GB * cores + 16 * GB,
        "ram_available_bytes": 4 * GB * cores + 12 * GB,
        "gpus": gpus,
        "open_files_soft": 1024,
        "open_files_hard": 1_048_576,
        "shm_free_bytes": 8 * GB,
        "versions": {"python": "3.12.0", "torch": "2.9.0"},
    }
    return Machine(**values | changes)


def configured(**sections: Mapping[str, Any]) -> Config:
    return build(("test", sections))


# ---- the plan ----


@pytest.mark.parametrize(
    ("cores", "mode", "mode_with_gpu", "actors"),
    [
        (1, "single", "single", 1),
        (2, "parallel", "parallel", 2),
        (4, "parallel", "parallel", 4),
        (16, "parallel", "parallel", 15),
        (64, "parallel", "ultra", 60),
        (128, "parallel", "ultra", 120),
        (256, "parallel", "ultra", 240),
    ],
)
@pytest.mark.parametrize("spec", [PLACEMENT, ATARI, CART_POLE])
def test_the_plan_fits_the_cores(
    spec: EnvironmentSpec, cores: int, mode: str, mode_with_gpu: str, actors: int
) -> None:
    for gpus, expected, device in (((), mode, "cpu"), ((H200,), mode_with_gpu, "cuda")):
        sized = plan(machine(cores, gpus=gpus), Config(), spec)
        assert sized.mode == expected
        assert sized.config.actor.count == actors
        assert sized.config.learner.device == device
        assert sized.errors == []
        assert sized.warnings == []
        assert sized.advises_against is None


def test_every_auto_setting_is_filled_in() -> None:
    # What is left goes without: limits, and a decay over the whole run.
    limits = {"episodes", "steps", "time_seconds", "stop_at", "learning_rate_decay_steps"}
    for spec in (PLACEMENT, ATARI, CART_POLE):
        sized = plan(machine(), Config(), spec)
        network = dataclasses.asdict(network_sizes(spec, NetworkConfig()))
        sizeless = {key for key, value in network.items() if value is None}
        for section, values in dataclasses.asdict(sized.config).items():
            left = {key for key, value in values.items() if value in (None, "auto")}
            by_field = {"channels_axis"}  # each field of an observation has its own
            assert left <= limits | sizeless | by_field | {"transport", "journal_dir"}, section


def test_the_plan_says_how_observations_are_read_and_warns_of_a_guess() -> None:
    sized = plan(machine(), Config(), ATARI)
    assert "an image of 84 x 84" in sized.readings["observation"]
    assert as_json(machine(), sized)["plan"]["readings"] == sized.readings
    text = io.StringIO()
    Console(width=200, file=text).print(report(machine(), sized))
    assert re.search(
        rf"^observation +{re.escape(sized.readings['observation'])}", text.getvalue(), re.M
    )
    board = FieldSpec("board", (8, 10, 20), "uint8")
    (warning,) = plan(machine(), Config(), dataclasses.replace(ATARI, fields=(board,))).warnings
    assert re.match(
        r"board uint8\[8, 10, 20\]: .*: that is a guess; network\.channels_axis", warning
    )


def test_the_layer_gives_the_planned_configuration() -> None:
    given = configured(actor={"n_step": 5}, run={"episodes": 10})
    sized = plan(machine(64, gpus=(H200,)), given, PLACEMENT)
    file = {section: values for section, values in given.to_map().items() if section != "run"}
    file["learner"] = {}
    layers = (("plan", sized.layer), ("file", {"actor": {"n_step": 5}, "run": {"episodes": 10}}))
    assert build(*layers) == sized.config


def test_large_observations_and_vectors_are_sized_differently() -> None:
    large = plan(machine(), Config(), PLACEMENT).config
    small = plan(machine(), Config(), CART_POLE).config
    assert (large.actor.segment_length, small.actor.segment_length) == (16, 16)
    assert (large.actor.batch_transitions, small.actor.batch_transitions) == (16, 64)
    assert (large.actor.discount, small.actor.discount) == (1.0, 0.99)
    assert (large.replay.capacity, small.replay.capacity) == (200_000, 1_000_000)
    assert (large.learner.learning_rate, small.learner.learning_rate) == (3e-4, 1e-3)
    assert (large.evaluation.episodes, small.evaluation.episodes) == (32, 10)
    assert (large.replay.min_size, small.replay.min_size) == (2000, 2000)


def test_ultra_gives_an_actor_more_environments() -> None:
    ultra = machine(128, gpus=(H200,))
    assert plan(ultra, Config(), PLACEMENT).config.actor.envs_per_actor == 16
    assert plan(ultra, Config(), CART_POLE).config.actor.envs_per_actor == 32


def test_the_tolerance_lets_the_learner_prefetch() -> None:
    sized = plan(machine(), Config(), PLACEMENT).config
    assert sized.replay.samples_per_insert_tolerance == 2 * 64 * 3


def test_segments_are_long_enough_for_the_n_steps_they_end_with() -> None:
    sized = plan(machine(), configured(actor={"n_step": 10}), PLACEMENT)
    assert sized.config.actor.segment_length == 40


def test_lambda_returns_have_segments_of_their_own_and_batches_by_the_number_of_environments():
    def sized(spec: EnvironmentSpec = CART_POLE, **actor: Any) -> ActorConfig:
        given = configured(actor={"returns": "lambda", "n_step": 9, **actor})
        return plan(machine(), given, spec).config.actor

    assert (sized().segment_length, sized().batch_transitions) == (32, 64)
    many = sized(envs_per_actor=128)
    assert (many.segment_length, many.batch_transitions) == (32, 512)
    replay = {
        "all": plan(machine(), configured(actor={"returns": "lambda"}), CART_POLE),
        "aged": plan(
            machine(), configured(actor={"returns": "lambda"}, replay={"max_age": 9}), CART_POLE
        ),
        "many": plan(
            machine(), configured(actor={"returns": "lambda", "envs_per_actor": 128}), CART_POLE
        ),
    }
    assert replay["all"].config.actor.count == 15
    capacities = {name: sized.config.replay.capacity for name, sized in replay.items()}
    assert capacities == {"all": 8192, "aged": 1_000_000, "many": 122_000}  # 2 x 15 x 128 x 32
    # Of deep stacks, frames are repeated in front of each segment.
    assert sized(CART_POLE.stacked(17)).segment_length == 64
    assert sized(segment_length=8).segment_length == 8


@pytest.mark.parametrize(
    ("shape", "dtype", "frames"),
    [
        ((84, 84), "uint8", 4),
        ((84, 84, 1), "uint8", 4),
        ((1, 84, 84), "uint8", 4),
        ((84, 84), "float32", 1),
        ((84, 84, 3), "uint8", 1),
        ((4, 84, 84), "uint8", 1),
        ((10, 10), "uint8", 1),
        ((20, 100), "uint8", 1),
        ((36, 36), "uint8", 4),
        ((1, 1296), "uint8", 1),
    ],
)
def test_a_single_grayscale_screen_is_stacked(
    shape: tuple[int, ...], dtype: str, frames: int
) -> None:
    screen = FieldSpec("observation", shape, dtype)
    mask = FieldSpec("action_mask", (6,), "bool", binary=True)
    assert frame_stack(EnvironmentSpec("test/Screen-v0", (mask, screen), 6)) == frames


def test_configured_values_are_kept_and_planned_around() -> None:
    given = configured(
        actor={"count": 8, "discount": 0.5},
        replay={"capacity": 1000},
        learner={"threads": 3, "device": "cpu"},
        run={"mode": "parallel"},
    )
    sized = plan(machine(gpus=(H200,)), given, CART_POLE)
    assert sized.why == "asked for"
    assert sized.config.actor.count == 8
    assert sized.config.actor.discount == 0.5
    assert sized.config.learner.device == "cpu"
    assert sized.config.learner.precision == "float32"
    assert sized.config.replay.min_size == 64
    assert "count" not in sized.layer["actor"]
    assert "capacity" not in sized.layer["replay"]
    assert sized.layer["run"] == {"frame_stack": 1}


def test_the_learner_takes_of_the_cores_that_actors_leave_what_speeds_it_up() -> None:
    def threads(
        count: int | None, gpus: tuple[Gpu, ...] = (), spec: EnvironmentSpec = PLACEMENT
    ) -> int | None:
        given = configured(actor={"count": count})
        return plan(machine(gpus=gpus), given, spec).config.learner.threads

    worth = threads_worth(PARALLEL_SHARE["large"], 16)
    assert 2 < worth < 16
    assert threads(None) == 1
    assert threads(14) == 2
    assert threads(0) == worth
    assert threads(0, (H200,)) == 4
    assert threads(0, spec=CART_POLE) == 1, "steps on compiled arrays have one thread"


def test_what_depends_on_a_learners_host_is_left_to_that_host() -> None:
    here, config = machine(), configured(learner={"threads": 3})
    draft = plan(here, config, CART_POLE, elsewhere={"learner"})
    left = draft.config.learner
    assert (left.device, left.precision, left.threads) == ("auto", "auto", 3)
    assert "learner" not in dict(draft.memory)
    assert left.learning_rate is not None
    assert learner_settings(machine(gpus=(H200,)), draft.config, CART_POLE) == {
        "learner": {"device": "cuda", "precision": "bfloat16"}
    }
    assert learner_settings(here, Config(), CART_POLE) == {
        "learner": {"device": "cpu", "precision": "float32", "threads": 1}
    }


def test_a_gpu_that_is_asked_for_is_looked_for_where_the_learner_is() -> None:
    config = configured(learner={"device": "cuda"})
    assert plan(machine(), config, CART_POLE).errors
    assert not plan(machine(), config, CART_POLE, elsewhere={"learner"}).errors
    with pytest.raises(UsageError, match="there is no GPU that torch can use"):
        learner_settings(machine(), config, CART_POLE)


def test_a_replay_elsewhere_should_be_given_its_memory() -> None:
    warned = plan(machine(), Config(), CART_POLE, elsewhere={"replay"}).warnings
    assert any("set replay.memory to what that host has" in warning for warning in warned)
    given = configured(replay={"memory": "1GB"})
    assert not plan(machine(), given, CART_POLE, elsewhere={"replay"}).warnings


def test_a_replay_elsewhere_may_be_larger_than_this_hosts_memory() -> None:
    here = machine(ram_available_bytes=8 * GB)
    given = configured(replay={"memory": "64GB", "store": "dense", "capacity": 500_000_000})
    mine, others = (plan(here, given, CART_POLE, elsewhere=where) for where in ((), {"replay"}))
    assert any("at most 62085000 fit" in error for error in mine.errors)
    assert not others.errors
    assert not others.warnings
    assert not {"buffer", "buffers"} & dict(others.memory).keys()


def test_old_gpus_compute_in_float32() -> None:
    old = dataclasses.replace(H200, compute_capability=(7, 0))
    assert plan(machine(gpus=(old,)), Config(), CART_POLE).config.learner.precision == "float32"
    assert plan(machine(gpus=(H200,)), Config(), CART_POLE).config.learner.precision == "bfloat16"


def test_a_shard_that_could_not_hold_what_is_sent_at_once_is_refused() -> None:
    config = configured(replay={"capacity": 200, "shards": 4})
    sized = plan(machine(), config, CART_POLE)
    assert any(
        re.match(r"replay\.capacity = 200 in 4 shards: actors send up to 82 .* 328 are", error)
        for error in sized.errors
    )
    fits = configured(replay={"capacity": 328, "shards": 4}, learner={"batch_size": 16})
    assert plan(machine(), fits, CART_POLE).errors == []


@pytest.mark.parametrize(("mode", "most"), [("single", 19), ("parallel", 82)])
def test_an_episode_that_ends_with_its_segment_fits_with_its_last_steps(
    mode: str, most: int
) -> None:
    def errors(capacity: int) -> list[str]:
        config = configured(
            run={"mode": mode}, replay={"capacity": capacity}, learner={"batch_size": 8}
        )
        return [e for e in plan(machine(), config, CART_POLE).errors if "at once" in e]

    assert errors(most) == []
    assert len(errors(most - 1)) == 1


def test_segments_that_no_message_can_hold_are_refused() -> None:
    camera = FieldSpec("observation", (2000, 2000), "uint8")
    sized = plan(machine(), Config(), EnvironmentSpec("test/Camera-v0", (camera,), 2))
    assert any(re.match(r"actor\.segment_length = 16: 20 frames", e) for e in sized.errors)
    fits = configured(actor={"segment_length": 12})
    assert plan(machine(), fits, EnvironmentSpec("test/Camera-v0", (camera,), 2)).errors == []


def test_compiling_needs_a_compiler_on_the_learners_host() -> None:
    config = configured(learner={"compile": True})
    words = r"learner\.compile = true, but no C\+\+ compiler"
    assert re.match(words, plan(machine(), config, CART_POLE).errors[0])
    assert not plan(machine(compiler="/usr/bin/c++"), config, CART_POLE).errors
    assert not plan(machine(), config, CART_POLE, elsewhere={"learner"}).errors
    with pytest.raises(UsageError, match=words):
        learner_settings(machine(), config, CART_POLE)


def test_ultra_is_advised_against_without_cores_or_gpu() -> None:
    given = configured(run={"mode": "ultra"})
    for unfit in (machine(16, gpus=(H200,)), machine(64)):
        advice = plan(unfit, given, PLACEMENT).advises_against
        assert advice is not None
        assert "--mode parallel" in advice
    assert plan(machine(64, gpus=(H200,)), given, PLACEMENT).advises_against is None


def test_single_has_one_actor() -> None:
    given = configured(run={"mode": "single"})
    assert plan(machine(), given, CART_POLE).config.actor.count == 1
    given = configured(run={"mode": "single"}, actor={"count": 4})
    assert "actor.count = 4" in plan(machine(), given, CART_POLE).errors[0]


def test_more_actors_than_cores_are_warned_about() -> None:
    sized = plan(machine(4), configured(actor={"count": 50}), CART_POLE)
    assert "--actors 4" in sized.warnings[0]
    assert sized.errors == []


def test_too_few_open_files_are_an_error_with_both_numbers() -> None:
    sized = plan(machine(128, open_files_hard=512), Config(), CART_POLE)
    assert sized.open_files == 684
    assert "684" in sized.errors[0]
    assert "512" in sized.errors[0]


def test_little_memory_shrinks_the_buffer_and_the_actors() -> None:
    sized = plan(machine(64, ram_available_bytes=8 * GB), Config(), PLACEMENT)
    assert sized.errors == []
    assert "memory has room for" in sized.warnings[0]
    assert sized.memory_bytes <= 8 * GB
    count, capacity = sized.config.actor.count, sized.config.replay.capacity
    assert count is not None
    assert capacity is not None
    assert 1 < count < 60
    assert 1000 < capacity < 60_000


def test_too_little_memory_for_the_roles_is_an_error() -> None:
    sized = plan(machine(2, ram_available_bytes=GB), Config(), PLACEMENT)
    assert "too little memory" in sized.errors[0]
    json.dumps(as_json(machine(2), sized))


def test_settings_that_would_stand_still_are_errors() -> None:
    too_small = configured(replay={"capacity": 100, "min_size": 200})
    assert "min_size" in plan(machine(), too_small, CART_POLE).errors[0]
    too_strict = configured(replay={"samples_per_insert_tolerance": 1.0})
    assert "tolerance" in plan(machine(), too_strict, CART_POLE).errors[0]


def test_a_gpu_that_torch_cannot_use_is_warned_about_and_left_alone() -> None:
    cpu_only = machine(gpus=(H200,), versions={"torch": "2.9.0+cpu"})
    sized = plan(cpu_only, Config(), CART_POLE)
    assert sized.config.learner.device == "cpu"
    assert "install a build of torch with CUDA" in sized.warnings[0]
    wanted = configured(learner={"device": "cuda"})
    assert "learner.device = cuda" in plan(cpu_only, wanted, CART_POLE).errors[0]


def test_what_else_is_wrong_is_said_with_its_fix() -> None:
    full = dataclasses.replace(H200, memory_free_bytes=GB)
    sized = plan(
        machine(gpus=(full,), shm_free_bytes=0, versions={"torch": "2.9.0", "rich": ""}),
        Config(),
        CART_POLE,
    )
    assert "CUDA_VISIBLE_DEVICES" in sized.warnings[0]
    assert "--shm-size" in sized.warnings[1]
    assert sized.errors == ["missing Python packages: python -m pip install rich"]


def test_actors_leave_one_core_in_sixteen_to_the_other_roles() -> None:
    assert [actors_for(cores) for cores in (1, 2, 3, 32, 33, 96)] == [1, 2, 3, 30, 31, 90]


# ---- the buffer ----


def replay_of(
    spec: EnvironmentSpec,
    cores: int = 16,
    measured: float | None = None,
    available: int | None = None,
    **replay: Any,
) -> Plan:
    """Plan the replay with these settings."""
    here = machine(cores) if available is None else machine(cores, ram_available_bytes=available)
    return plan(here, configured(replay=replay), spec, measured)


def largest_in(error: str) -> int:
    """Extract the capacity that an error recommends."""
    return int(error.split("at most ")[1].split()[0])


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("store", ["dense", "compressed"])
@pytest.mark.parametrize("room", [0, 10_000, 1_000_000, 12_345_678_901])
def test_the_largest_capacity_fits_and_one_more_does_not(
    room: int, store: Any, shards: int
) -> None:
    storage = Storage(PLACEMENT, shards, 2750.0)
    largest = storage.largest(store, room)
    assert largest == 0 or storage.bytes_of(store, largest) <= room
    assert storage.bytes_of(store, largest + 1) > room


def test_every_shard_has_its_even_part_of_the_capacity() -> None:
    assert Storage(PLACEMENT, 1).bytes_of("dense", 1000) == dense_bytes(PLACEMENT, 1000)
    assert Storage(PLACEMENT, 3).bytes_of("dense", 1000) == 3 * dense_bytes(PLACEMENT, 334)
    compressed = Storage(PLACEMENT, 3, 2000.0).bytes_of("compressed", 1000)
    assert compressed == 3 * compressed_bytes(PLACEMENT, 334, COMPRESSED_SAFETY * 2000.0)


def test_a_quarter_of_the_available_memory_is_for_the_buffer() -> None:
    assert " of 10.0 GB" in replay_of(PLACEMENT, available=40 * GB).replay
    assert " of 20.0 GB" in replay_of(PLACEMENT, available=40 * GB, memory="50%").replay
    assert " of 500 MB" in replay_of(PLACEMENT, memory="500MB").replay


def test_the_planned_memory_is_what_the_buffers_take_in_plain_digits() -> None:
    dense = replay_of(PLACEMENT, available=40 * GB, memory="80%", shards=3).config.replay
    assert dense.memory == str(3 * dense_bytes(PLACEMENT, 66_667))
    needed = compressed_bytes(PLACEMENT, 200_000, COMPRESSED_SAFETY * 2750.0)
    for available, expected in ((20 * GB, 2 * needed), (5 * GB, 5 * GB // 4)):
        compressed = replay_of(PLACEMENT, 1, 2750.0, available, store="compressed").config.replay
        assert compressed.capacity == 200_000
        assert compressed.memory == str(expected)


def test_a_plan_that_is_read_back_is_the_same_plan() -> None:
    for spec, measured in ((PLACEMENT, 2750.0), (CART_POLE, None)):
        for available in (8 * GB, 20 * GB, 200 * GB):
            first = replay_of(spec, measured=measured, available=available, memory="25%")
            here = machine(ram_available_bytes=available)
            again = plan(here, first.config, spec, measured)
            assert again.config == first.config
            assert again.errors == []


def test_dense_frames_are_preferred_where_they_fit() -> None:
    sized = replay_of(PLACEMENT, measured=2750.0, available=100 * GB)
    replay = sized.config.replay
    assert (replay.store, replay.capacity, replay.decode_threads) == ("dense", 200_000, 1)


def test_frames_are_compressed_where_dense_ones_do_not_fit() -> None:
    sized = replay_of(PLACEMENT, measured=2750.0, available=20 * GB)
    replay = sized.config.replay
    assert (replay.store, replay.capacity) == ("compressed", 200_000)
    needed = compressed_bytes(PLACEMENT, 200_000, COMPRESSED_SAFETY * 2750.0)
    assert dict(sized.memory)["buffer"] == 2 * needed < 5 * GB < dense_bytes(PLACEMENT, 200_000)


def test_without_a_measurement_compression_is_taken_to_gain_nothing() -> None:
    replay = replay_of(PLACEMENT, available=20 * GB).config.replay
    assert replay.store == "dense"
    assert replay.capacity == Storage(PLACEMENT, 1).largest("dense", 5 * GB) // 1000 * 1000


def test_where_neither_holds_what_is_wanted_the_better_one_is_as_large_as_it_can_be() -> None:
    sized = replay_of(PLACEMENT, measured=20_000.0, available=8 * GB)
    budget = 2 * GB
    storage = Storage(PLACEMENT, 1, 20_000.0)
    assert sized.config.replay.store == "compressed"
    assert sized.config.replay.capacity == storage.largest("compressed", budget) // 1000 * 1000
    sized = replay_of(PLACEMENT, measured=60_000.0, available=8 * GB)
    assert sized.config.replay.store == "dense"
    assert sized.config.replay.capacity == storage.largest("dense", budget) // 1000 * 1000


def test_a_store_that_is_asked_for_is_used() -> None:
    dense = replay_of(PLACEMENT, measured=2750.0, available=20 * GB, store="dense").config.replay
    assert (dense.store, dense.decode_threads) == ("dense", 1)
    assert dense.capacity is not None
    assert dense.capacity < 200_000
    for spec in (PLACEMENT, CART_POLE):
        sized = replay_of(spec, measured=2750.0, available=100 * GB, store="compressed")
        assert sized.config.replay.store == "compressed"
        assert sized.errors == []


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, 1), (2, 1), (16, 2), (64, 8), (128, 8), (256, 8)]
)
def test_threads_that_decode_follow_the_cores(cores: int, threads: int) -> None:
    sized = replay_of(PLACEMENT, cores, 2750.0, store="compressed")
    assert sized.config.replay.decode_threads == threads
    assert replay_of(CART_POLE, cores).config.replay.decode_threads == 1


@pytest.mark.parametrize("store", ["auto", "dense", "compressed"])
def test_a_capacity_that_does_not_fit_is_an_error_with_the_largest_that_does(store: str) -> None:
    def wanting(capacity: int) -> Plan:
        return replay_of(PLACEMENT, 2, 2750.0, capacity=capacity, store=store)

    sized = wanting(50_000_000)
    (error,) = sized.errors
    assert "replay.capacity = 50000000 needs" in error
    assert "5.00 GB" in error, "the budget"
    assert "replay.memory higher" in error
    assert ("(dense)" if store == "dense" else "(compressed)") in error
    largest = largest_in(error)
    assert wanting(largest).errors == []
    assert wanting(largest + 1000).errors != []


def test_a_configured_capacity_is_kept_and_compressed_only_where_it_must_be() -> None:
    for capacity, store in ((50_000, "dense"), (500_000, "compressed")):
        replay = replay_of(PLACEMENT, 2, 2750.0, capacity=capacity).config.replay
        assert (replay.capacity, replay.store) == (capacity, store)


def test_more_memory_than_there_is_is_cut_with_a_warning() -> None:
    sized = replay_of(CART_POLE, available=10 * GB, memory="50GB")
    assert "replay.memory = 50GB, but" in sized.warnings[0]
    assert sized.memory_bytes <= 10 * GB


@pytest.mark.parametrize("cores", [1, 2, 16, 128])
@pytest.mark.parametrize("available", [6 * GB, 24 * GB, 500 * GB])
@pytest.mark.parametrize("measured", [None, 2750.0])
@pytest.mark.parametrize("spec", [PLACEMENT, ATARI, CART_POLE])
def test_what_is_planned_fits_the_memory(
    spec: EnvironmentSpec, measured: float | None, available: int, cores: int
) -> None:
    sized = replay_of(spec, cores, measured, available)
    replay = sized.config.replay
    assert sized.errors == []
    assert sized.memory_bytes <= available
    assert dict(sized.memory)["buffer"] == int(replay.memory or 0) <= available // 4
    assert 1000 <= (replay.capacity or 0) <= 1_000_000
    assert 64 <= (replay.min_size or 0) <= (replay.capacity or 0)


def test_several_replays_share_the_capacity_and_each_has_a_process() -> None:
    sized = replay_of(PLACEMENT, measured=2750.0, available=20 * GB, shards=3)
    assert sized.config.replay.capacity == 200_000
    assert dict(sized.memory)["3 replays"] == 3 * dict(replay_of(PLACEMENT).memory)["replay"]
    needed = Storage(PLACEMENT, 3, 2750.0).bytes_of("compressed", 200_000)
    assert dict(sized.memory)["buffers"] == 2 * needed
    assert "200,000 transitions in 3 shards, compressed" in sized.replay


def test_single_has_one_replay() -> None:
    sized = plan(machine(), configured(run={"mode": "single"}, replay={"shards": 2}), CART_POLE)
    assert "replay.shards = 2, but mode single has one replay" in sized.errors[0]


def test_the_buffer_is_told_in_a_sentence() -> None:
    sized = replay_of(PLACEMENT, 2, 2750.0, capacity=1_000_000)
    needed = Storage(PLACEMENT, 1, 2750.0).bytes_of("compressed", 1_000_000) / 1e9
    assert sized.replay == (
        f"replay: 1,000,000 transitions, compressed, {needed:.2f} GB of 5.00 GB "
        "(measured 2,750 B a transition)"
    )
    assert "measured" not in replay_of(CART_POLE).replay


def test_frames_are_measured_only_where_that_decides() -> None:
    small, large = machine(ram_available_bytes=20 * GB), machine(ram_available_bytes=100 * GB)
    assert measures_frames(small, Config(), PLACEMENT)
    assert not measures_frames(large, Config(), PLACEMENT), "dense frames fit"
    assert not measures_frames(small, Config(), CART_POLE), "vectors are taken as they are"
    for store, here, expected in (("dense", small, False), ("compressed", large, True)):
        given = configured(replay={"store": store})
        assert measures_frames(here, given, PLACEMENT) == expected
    assert not measures_frames(small, configured(replay={"capacity": 1000}), PLACEMENT)
    assert measures_frames(large, configured(replay={"capacity": 5_000_000}), PLACEMENT)


def test_sample_batches_are_counted_and_warned_about_where_dev_shm_is_too_small() -> None:
    needed = 5 * SampleLayout(PLACEMENT, 64).nbytes
    assert dict(plan(machine(), Config(), PLACEMENT).memory)["sample batches"] == needed
    small = machine(shm_free_bytes=needed - 1)
    (warning,) = plan(small, Config(), PLACEMENT).warnings
    assert "SampleBatches will go over sockets" in warning
    by_socket = configured(replay={"transport": "socket"})
    assert plan(small, by_socket, PLACEMENT).warnings == []
    single = plan(small, configured(run={"mode": "single"}), PLACEMENT)
    assert "sample batches" not in dict(single.memory)
    assert single.warnings == []


def test_stacked_frames_make_longer_segments() -> None:
    sized = plan(machine(), Config(), ATARI).config
    # 3 + 4 - 1 frames of every segment are also in another segment: 6 of 48 are 12.5%.
    assert sized.actor.segment_length == 48
    # 36 frames are a quarter of a megabyte: a segment is a TransitionBatch.
    assert sized.actor.batch_transitions == 36
    assert sized.actor.envs_per_actor == 8
    for n_step in (1, 3, 5, 64):
        for stack in (2, 4, 32):
            given = configured(actor={"n_step": n_step})
            length = plan(machine(), given, CART_POLE.stacked(stack)).config.actor.segment_length
            assert length is not None
            assert 0.15 * (length - 16) <= n_step + stack - 1 < 0.15 * length


# ---- the report ----


def reported(sized: Plan) -> str:
    console = Console(file=io.StringIO(), width=100, color_system=None)
    with console.capture() as capture:
        console.print(report(machine(gpus=(H200,)), sized))
    return capture.get()


def test_the_report_shows_machine_plan_memory_and_verdict() -> None:
    text = reported(plan(machine(gpus=(H200,)), configured(actor={"count": 9}), PLACEMENT))
    for words in ("NVIDIA H200", "16 usable", "parallel (16 cores", "9  (configured)", "buffer",
                  "sum", "ready", "replay.store", "replay.memory", "replay.shards",
                  "200,000 transitions, dense"):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 100
    text = reported(plan(machine(open_files_hard=10), Config(), PLACEMENT))
    assert "error" in text
    assert "ready" not in text


def test_the_report_as_data_is_json() -> None:
    sized = plan(machine(gpus=(H200,)), Config(), PLACEMENT)
    values = json.loads(json.dumps(as_json(machine(gpus=(H200,)), sized)))
    assert values["ok"] is True
    assert values["plan"]["mode"] == "parallel"
    assert values["plan"]["memory_bytes"] == sum(values["plan"]["memory"].values())
    assert values["machine"]["gpus"][0]["name"] == "NVIDIA H200"


# ---- detection ----


def test_cgroup_v2_takes_the_tightest_limit_of_all_levels() -> None:
    root = "/sys/fs/cgroup"
    files = {
        "/proc/self/cgroup": "0::/user.slice/run.scope\n",
        f"{root}/user.slice/run.scope/cpu.max": "max 100000\n",
        f"{root}/user.slice/cpu.max": "350000 100000\n",
        f"{root}/user.slice/run.scope/memory.max": "8000\n",
        f"{root}/user.slice/run.scope/memory.current": "5000\n",
        f"{root}/user.slice/run.scope/memory.stat": "anon 4000\ninactive_file 1000\n",
        f"{root}/user.slice/memory.max": "max\n",
    }
    assert cgroup_limits(files.get) == CgroupLimits(3.5, 8000, 4000)


def test_cgroup_v1_with_controllers_of_their_own() -> None:
    root = "/sys/fs/cgroup"
    files = {
        "/proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
        # In a container the group's path on the host does not exist: its root is the group.
        f"{root}/cpu/cpu.cfs_quota_us": "200000",
        f"{root}/cpu/cpu.cfs_period_us": "100000",
        f"{root}/memory/memory.limit_in_bytes": "9000",
        f"{root}/memory/memory.usage_in_bytes": "2000",
        f"{root}/memory/memory.stat": "cache 7\ntotal_inactive_file 500\n",
        f"{root}/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712",
    }
    assert cgroup_limits(files.get) == CgroupLimits(2.0, 9000, 7500)


def test_no_cgroup_and_no_limit_are_the_same() -> None:
    files = {
        "/proc/self/cgroup": "4:cpu:/\n0::/\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "/sys/fs/cgroup/cpu.max": "max 100000",
        "/sys/fs/cgroup/memory.max": "max",
    }
    assert cgroup_limits(files.get) == cgroup_limits({}.get) == CgroupLimits()


def test_usable_cores_are_whole_and_at_least_one() -> None:
    assert usable_cores(16, None) == 16
    assert usable_cores(16, 3.5) == 3
    assert usable_cores(2, 8.0) == 2
    assert usable_cores(16, 0.5) == 1


def test_visible_devices_are_chosen_as_cuda_does() -> None:
    first, second = Gpu("a", 1, 1), Gpu("b", 1, 1)
    both = [("GPU-aa11", first), ("GPU-bb22", second)]
    assert visible_gpus(both, None) == (first, second)
    assert visible_gpus(both, "") == ()
    assert visible_gpus(both, "-1") == ()
    assert visible_gpus(both, "1, 0") == (second, first)
    assert visible_gpus(both, "GPU-bb") == (second,)
    assert visible_gpus(both, "0,7,1") == (first,)


class FakeError(Exception):
    pass


def refuse(*_: Any) -> Any:
    raise FakeError("Insufficient Permissions")


PROBED_TORCH = """
from types import SimpleNamespace
part = SimpleNamespace(name="H100 MIG 1g.10gb", total_memory=10, major=9, minor=0)
cuda = SimpleNamespace(
    device_count=lambda: 1,
    get_device_properties=lambda index: part,
    mem_get_info=lambda index: (8, 10),
)
"""
PART = Gpu("H100 MIG 1g.10gb", 10, 8, (9, 0))


@pytest.fixture
def look_at_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LookAtGpus:
    """Look at a fake machine with a driver, two GPUs in NVML, and a part of one in torch."""
    (tmp_path / "torch.py").write_text(PROBED_TORCH, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(hardware, "_NVIDIA_DRIVER_FILES", (str(tmp_path),))

    def look(visible: str | None, **functions: Any) -> tuple[Gpu, ...]:
        nvml = ModuleType("pynvml")
        nvml.__spec__ = SimpleNamespace()  # type: ignore[assignment]
        standard = {
            "NVMLError": FakeError,
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80, free=79),
            "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
            "nvmlDeviceGetName": lambda index: f"H100 {index}",
            "nvmlDeviceGetUUID": lambda index: f"GPU-{index}{index}",
        }
        for name, value in {**standard, **functions}.items():
            setattr(nvml, name, value)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return detect().gpus

    return look


def test_whole_gpus_are_told_by_the_management_library(look_at_gpus: LookAtGpus) -> None:
    first, second = Gpu("H100 0", 80, 79, (9, 0)), Gpu("H100 1", 80, 79, (9, 0))
    assert look_at_gpus(None) == (first, second)
    assert look_at_gpus("GPU-11") == (second,)
    assert look_at_gpus("") == ()


@pytest.mark.parametrize("visible", ["MIG-7a1b-22", "0, MIG-7a1b-22", "MIG-GPU-00/1/0"])
def test_parts_of_gpus_are_told_by_torch(look_at_gpus: LookAtGpus, visible: str) -> None:
    assert look_at_gpus(visible) == (PART,)


@pytest.mark.parametrize(
    "function", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUUID"]
)
def test_torch_is_asked_where_the_management_library_refuses_to_tell(
    look_at_gpus: LookAtGpus, function: str
) -> None:
    assert look_at_gpus(None, **{function: refuse}) == (PART,)


def test_without_a_driver_torch_is_not_asked(
    look_at_gpus: LookAtGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_NVIDIA_DRIVER_FILES", ())
    assert look_at_gpus("MIG-7a1b-22") == ()
    assert look_at_gpus(None, nvmlInit=refuse) == ()


def test_this_machine_can_be_looked_at() -> None:
    here = detect()
    assert 1 <= here.cores <= here.logical_cores
    assert 0 < here.ram_available_bytes <= here.ram_total_bytes
    assert here.versions["torch"]
    assert plan(here, Config(), CART_POLE).config.actor.count


def test_looking_does_not_import_torch() -> None:
    check = "import sys, launcher.plan.machine as m; m.detect(); print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", check], check=True, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == "False"


@pytest.fixture
def file_limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_open_file_limit_is_raised_only_as_far_as_needed(file_limits: tuple[int, int]) -> None:
    _, hard = file_limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    raise_open_file_limit(300)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
    raise_open_file_limit(100)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)


def test_a_hard_limit_that_is_too_low_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    with pytest.raises(RunError, match=r"600 open files, the hard limit is 512"):
        raise_open_file_limit(600)


# ---- the disk ----


def test_the_journal_is_planned_against_the_free_space_of_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = plan(machine(), Config(), CART_POLE).config
    config = build(("plan", config.to_map()), ("test", {"replay": {"capacity": 1_000_000}}))
    needed = 1_000_000 * (24 + 16) + 32 * 1024**2
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr("psutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        line, warning = describe_journal(config, 16.0, tmp_path / "runs" / "new")
        assert line == (f"journal: up to 73.6 MB in {tmp_path}/runs/new, where 73.6 MB are free")
        assert bool(warning) != fits
    assert warning == (
        f"replay's journal may take 73.6 MB, and {tmp_path}/runs/new has 73.6 MB free: name "
        "another folder with --run-dir, lower replay.capacity, or set replay.journal to off"
    )
    off = build(("plan", config.to_map()), ("test", {"replay": {"journal": "off"}}))
    assert describe_journal(off, 16.0, tmp_path) == ("", "")
