"""Numbers of actors that saturate each part, in worked numbers."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.bench.saturation import Costs, limits

COSTS = Costs(
    actor_rate=1000.0,
    wire_bytes=100.0,
    sample_bytes=200.0,
    insert_seconds=4e-6,
    sample_seconds=1e-6,
    learner_rate=40_000.0,
    parameter_bytes=1e6,
    publish_seconds=2.0,
    host_actors=30,
    samples_per_insert=4.0,
    crypt_seconds_per_byte=1e-9,
    report_seconds=1e-4,
    telemetry_seconds=1.0,
)


def actors(costs: Costs = COSTS) -> dict[str, float]:
    return {limit.what: limit.actors for limit in limits(costs)}


def test_worked_numbers():
    found = actors()
    # 4 us, 0.1 us to decrypt, and four times 1 us and 0.2 us to encrypt: 8.9 us a transition.
    assert found["a replay process"] == pytest.approx(1 / 8.9e-6 / 1000)
    assert found["this learner"] == pytest.approx(40_000 / 4 / 1000)
    assert found["the coordinator"] == pytest.approx(10_000)
    # A megabyte in 1 ms, every two seconds: 2000 hosts of 30 actors.
    assert found["encrypting parameters"] == pytest.approx(60_000)
    # 0.94 of 125 MB/s.
    assert found["1 Gbit/s to replay"] == pytest.approx(117.5e6 / 100 / 1000)
    assert found["10 Gbit/s to replay"] == pytest.approx(1175e6 / 100 / 1000)
    assert found["1 Gbit/s from the learner"] == pytest.approx(117.5e6 / 0.5e6 * 30)


def test_the_first_to_be_reached_comes_first():
    ordered = [limit.actors for limit in limits(COSTS)]
    assert ordered == sorted(ordered)
    assert limits(COSTS)[0].what == "this learner"


def test_publishing_less_often_and_sampling_less_makes_room():
    rarely = actors(dataclasses.replace(COSTS, publish_seconds=20.0))
    assert rarely["1 Gbit/s from the learner"] == pytest.approx(70_500)
    fewer = actors(dataclasses.replace(COSTS, samples_per_insert=0.5))
    assert fewer["this learner"] == pytest.approx(80)
    assert fewer["a replay process"] == pytest.approx(1 / 4.7e-6 / 1000)


def test_every_limit_says_why():
    assert all(limit.why for limit in limits(COSTS))
