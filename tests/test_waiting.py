"""The bytes of batches that may wait between actors and replay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from test_machine import CART_POLE, GB, configured, machine

from actors.segments import Segment, SegmentRecorder
from actors.shipper import Shipper
from launcher.plan.memory import Estimates, window_for
from launcher.plan.plan import Plan, plan
from pdqn import wire
from pdqn.config import Config, resolved
from pdqn.messages import Pulse, Welcome
from pdqn.specs import EnvironmentSpec, FieldSpec, Observation
from pdqn.telemetry import Telemetry
from replay.waiting import (
    largest_batch_bytes,
    shared_window,
    window_batches,
    window_bytes,
)

MB = 10**6
LARGE = EnvironmentSpec("test/Large-v0", (FieldSpec("observation", (1000, 1000), "uint8"),), 4)


def actor_config(window_bytes: int, **actor: int) -> Config:
    return configured(actor={"window_bytes": window_bytes, **actor})


def shipped(
    config: Config, spec: EnvironmentSpec, steps: int, rng: np.random.Generator, ends: float
) -> list[int]:
    """Record random steps as an actor does; return the sizes of its messages."""
    welcome = Welcome("r" * 80, 2**20 - 1, 2**31, config, spec, "", "")
    link: Any = SimpleNamespace(
        telemetry=Telemetry(), pulse=Pulse(), stopping=False, silent_seconds=0.0
    )
    sizes: list[int] = []
    with zmq.Context() as context:
        shipper = Shipper(context, link, welcome)
        sender = shipper._sender
        sender._sequence = 2**61
        sender.send = lambda data, _: not sizes.append(len(data))  # type: ignore[method-assign]
        for segments in recorded(config, spec, steps, rng, ends):
            shipper.add(segments, 2**61)
        shipper.send()
    return sizes


def recorded(
    config: Config, spec: EnvironmentSpec, steps: int, rng: np.random.Generator, ends: float
) -> list[list[Segment]]:
    """Record steps with noise for frames, which no codec makes smaller, and with random ends."""
    recorder = SegmentRecorder(
        spec,
        1,
        n_step=config.actor.n_step,
        discount=0.9,
        segment_length=resolved(config.actor.segment_length),
    )

    def frame() -> Observation:
        return {f.name: rng.integers(0, 256, (1, *f.shape), np.uint8) for f in spec.fields}

    def numbers() -> np.ndarray:
        return rng.normal(size=1).astype(np.float32)

    segments: list[list[Segment]] = []
    for _ in range(steps):
        recorder.record(frame(), rng.integers(0, 4, 1), numbers(), numbers())
        ended, terminated = rng.random() < ends, rng.random() < 0.3
        truncated = ended and not terminated
        final, values = (frame(), numbers()) if truncated else ({}, np.empty(0, np.float32))
        flags = np.array([ended and terminated]), np.array([truncated])
        segments.append(recorder.finish(rng.normal(size=1), *flags, final, values))
    return [*segments, recorder.flush()]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 40),
    n_step=st.integers(1, 8),
    batch=st.integers(1, 60),
    stack=st.integers(1, 6),
    frame_bytes=st.sampled_from([1, 7, 100, 5000, 70_000]),
    ends=st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0]),
    window=st.sampled_from([1, 10_000, 1_000_000, 10**9]),
)
def test_no_batch_is_larger_than_replay_expects(
    seed: int,
    length: int,
    n_step: int,
    batch: int,
    stack: int,
    frame_bytes: int,
    ends: float,
    window: int,
):
    field = FieldSpec("observation", (frame_bytes,), "uint8")
    spec = EnvironmentSpec("test/Noise-v0", (field,), 4).stacked(stack)
    config = actor_config(
        window, segment_length=length, n_step=n_step, batch_transitions=batch, count=1
    )
    sizes = shipped(config, spec, 3 * (length + batch), np.random.default_rng(seed), ends)
    assert sizes
    assert max(sizes) <= largest_batch_bytes(spec, config)


def test_the_largest_batch_is_not_much_larger_than_those_that_are_sent():
    config = actor_config(10**9, segment_length=16, batch_transitions=16, count=1)
    field = FieldSpec("observation", (30_000,), "uint8")
    spec = EnvironmentSpec("test/Noise-v0", (field,), 4)
    sizes = shipped(config, spec, 200, np.random.default_rng(0), 1.0)
    assert max(sizes) > 0.3 * largest_batch_bytes(spec, config)


def test_the_largest_batch_is_at_most_what_a_message_may_be():
    config = actor_config(10**9, segment_length=4096, batch_transitions=65_536, count=1)
    assert largest_batch_bytes(LARGE, config) == wire.MAX_TRANSITION_BYTES
    assert largest_batch_bytes(CART_POLE, config) < 4 * MB


def waiting_of(sized: Plan) -> int:
    """Compute the most that all actors of a plan can have unread in replay's sockets."""
    config = sized.config
    largest = largest_batch_bytes(LARGE, config)
    each = max(largest, min(config.actor.window * largest, resolved(config.actor.window_bytes)))
    return resolved(config.actor.count) * each


def test_the_plan_counts_what_waits_for_120_actors_with_large_frames():
    given = configured(actor={"count": 120})
    sized = plan(machine(128, ram_available_bytes=1000 * GB), given, LARGE)
    assert not sized.errors
    memory = dict(sized.memory)
    assert memory["waiting batches"] >= waiting_of(sized) > 7 * GB
    # The actors have copies of the same batches.
    assert memory["120 actors"] >= waiting_of(sized) + 120 * 200 * 8 * MB


def test_a_machine_with_less_memory_gets_a_smaller_window_and_smaller_batches():
    given = configured(actor={"count": 120, "envs_per_actor": 1})
    rich, poor = (
        plan(machine(128, ram_available_bytes=memory * GB), given, LARGE) for memory in (1000, 64)
    )
    assert not rich.errors
    assert not poor.errors
    assert resolved(poor.config.actor.window_bytes) < resolved(rich.config.actor.window_bytes)
    assert resolved(poor.config.actor.window_bytes) == int(0.02 * 64 * GB / 120)
    # A segment of 20 frames is larger than that, and goes alone.
    assert dict(poor.memory)["waiting batches"] == waiting_of(poor) < 20.2 * 120 * MB
    assert waiting_of(rich) > 7 * GB
    assert poor.memory_bytes <= 64 * GB


def test_a_configured_window_is_planned_as_it_is():
    given = configured(actor={"count": 4, "window_bytes": 50 * MB})
    sized = plan(machine(), given, LARGE)
    assert resolved(sized.config.actor.window_bytes) == 50 * MB
    assert dict(sized.memory)["waiting batches"] == 4 * 50 * MB


def test_a_run_without_waiting_batches_plans_none():
    assert "waiting batches" not in dict(plan(machine(1), Config(), CART_POLE).memory)
    elsewhere = plan(machine(), Config(), CART_POLE, elsewhere={"replay"})
    assert "waiting batches" not in dict(elsewhere.memory)
    actors = plan(machine(), Config(), CART_POLE, elsewhere={"actor"})
    assert dict(actors.memory)["waiting batches"] > 0


def test_small_batches_may_fill_the_whole_window():
    config = plan(machine(128), Config(), CART_POLE).config
    largest = largest_batch_bytes(CART_POLE, config)
    assert config.actor.window_bytes == config.actor.window * largest
    assert window_bytes(CART_POLE, config) == config.actor.window_bytes


def test_an_actor_goes_on_while_the_disk_takes_what_it_sent():
    given = configured(replay={"journal": "sync"})
    written, synced = (plan(machine(128), c, CART_POLE).config for c in (Config(), given))
    assert window_batches(written) == written.actor.window == synced.actor.window
    assert window_batches(synced) == 4 * synced.actor.window
    bytes_of = [resolved(config.actor.window_bytes) for config in (written, synced)]
    assert bytes_of[1] == 4 * bytes_of[0]
    assert window_bytes(CART_POLE, synced) == bytes_of[1]


def test_a_batch_larger_than_the_window_is_planned_alone():
    config = actor_config(1, segment_length=16, batch_transitions=16, count=3)
    largest = largest_batch_bytes(LARGE, config)
    assert window_bytes(LARGE, config) == largest
    assert Estimates(config, LARGE).waiting == 3 * largest
    assert window_for(config, LARGE, 1) == 1


@pytest.mark.parametrize(
    ("planned", "present", "expected"),
    [(4, 1, 1000), (4, 4, 1000), (4, 8, 500), (0, 3, 333), (4, 10**9, 1)],
)
def test_actors_that_join_later_share_the_memory_of_those_planned(
    planned: int, present: int, expected: int
):
    assert shared_window(1000, planned, present) == expected
