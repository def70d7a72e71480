"""The assignment of roles to a cluster's workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.hosts.dask.assignment import ClusterWorker, place_servers, share_actors
from pdqn.errors import UsageError

NO_PINS: dict[str, str] = {}


def worker(name: str, slots: int = 4, gpus: int = 0) -> ClusterWorker:
    return ClusterWorker(f"tcp://{name}:1", name, slots, gpus)


def test_the_learner_goes_where_the_gpu_is_and_replay_elsewhere():
    workers = [worker("a", 64), worker("b", 8, gpus=1), worker("c", 4)]
    placed = place_servers(workers, 2, NO_PINS)
    assert placed["learner", 0] == "tcp://b:1"
    assert {placed["replay", 0], placed["replay", 1]} == {"tcp://a:1", "tcp://c:1"}


def test_without_a_gpu_the_learner_goes_where_most_slots_are():
    placed = place_servers([worker("a", 4), worker("b", 16)], 1, NO_PINS)
    assert placed == {("learner", 0): "tcp://b:1", ("replay", 0): "tcp://a:1"}


def test_a_single_worker_gets_everything():
    placed = place_servers([worker("a")], 3, NO_PINS)
    assert set(placed.values()) == {"tcp://a:1"}


def test_pins_go_before_everything_and_name_hosts_or_workers():
    workers = [worker("a", gpus=1), worker("b"), worker("c")]
    placed = place_servers(workers, 2, {"learner": "c", "replay": "tcp://a:1"})
    assert placed["learner", 0] == "tcp://c:1"
    assert {placed["replay", k] for k in (0, 1)} == {"tcp://a:1"}


def test_a_pin_that_nobody_fits_is_refused_with_the_hosts_that_there_are():
    with pytest.raises(UsageError, match=r"--dask-pin replay=z: no worker is there; .* a, b"):
        place_servers([worker("a"), worker("b")], 1, {"replay": "z"})


def test_actors_are_shared_in_proportion_to_slots():
    assert share_actors([worker(n) for n in "abcd"], 120) == {
        f"tcp://{name}:1": 30 for name in "abcd"
    }
    assert share_actors([worker("a", 3), worker("b", 1)], 10) == {"tcp://a:1": 8, "tcp://b:1": 2}
    assert share_actors([worker("a"), worker("b")], 1) == {"tcp://a:1": 1}
    assert share_actors([], 5) == {}


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=20),
    st.integers(1, 2000),
)
def test_every_actor_has_a_place_and_shares_are_fair(slots: list[int], total: int):
    workers = [worker(f"w{index}", count) for index, count in enumerate(slots)]
    shares = share_actors(workers, total)
    assert sum(shares.values()) == total
    for one in workers:
        exact = total * one.slots / sum(slots)
        assert abs(shares.get(one.address, 0) - exact) < 1
