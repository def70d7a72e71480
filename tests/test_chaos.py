"""The driver of faults: what a seed chooses, what a witness remembers, and what the checks find."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.checks import check_ledger, takeovers
from benchmarks.chaos.kinds import kinds
from benchmarks.chaos.scenario import make_plan
from benchmarks.chaos.soak import by_minute, slope_of
from benchmarks.chaos.witness import Witness


def wrote(folder: Path, name: str, began: tuple[int, int, float], streams: dict) -> Witness:
    witness = Witness(folder / name)
    witness.begin(began, streams)
    return witness


def test_there_are_at_least_sixty_kinds_each_with_a_name_of_its_own_and_words():
    found = kinds()
    assert len({kind.name for kind in found}) == len(found) >= 60
    assert all(kind.words for kind in found)


def test_a_seed_and_a_number_choose_the_same_scenario_again():
    for number in (3, 250):
        plan = make_plan(kinds(), number, seed=7)
        again = make_plan(kinds(), number, seed=7)
        assert (plan.name, plan.seed, plan.env, plan.actors, plan.journal) == (
            again.name, again.seed, again.env, again.actors, again.journal
        )  # fmt: skip


def test_the_first_round_tries_every_kind_by_itself_and_later_ones_combine_them():
    found = kinds()
    first = [make_plan(found, number, seed=1).name for number in range(len(found))]
    assert sorted(first) == sorted(kind.name for kind in found)
    later = [make_plan(found, number, seed=1) for number in range(len(found), 2 * len(found))]
    assert any(plan.extras for plan in later)
    assert all(extra.combines for plan in later for extra in plan.extras)


def test_a_replay_that_has_all_that_was_acknowledged_follows_exactly(tmp_path: Path):
    before = wrote(tmp_path, "0-1-100", (0, 0, 0.0), {})
    before.note((10, 10, 5.5))
    before.acknowledge((1, 0), 4)
    # The kill came before this turn was in the journal.
    before.note((12, 12, 7.5))
    wrote(tmp_path, "0-2-101", (10, 10, 5.5), {(1, 0): 4})
    (found,) = takeovers(tmp_path)
    assert found.is_exact
    assert (found.size_before, found.size_after, found.sum_before) == (10, 10, 5.5)


@pytest.mark.parametrize(
    ("began", "expected"),
    [((8, 8, 5.5), 4), ((10, 10, 5.0), 4), ((10, 10, 5.5), 3)],
    ids=["a transition", "a priority", "an acknowledged batch"],
)
def test_a_loss_is_found_of(tmp_path: Path, began: tuple[int, int, float], expected: int):
    before = wrote(tmp_path, "0-1-100", (0, 0, 0.0), {})
    for _ in range(2):
        before.note((10, 10, 5.5))
    before.acknowledge((1, 0), 4)
    wrote(tmp_path, "0-2-101", began, {(1, 0): expected})
    assert not takeovers(tmp_path)[0].is_exact


def test_shards_follow_each_other_and_not_their_neighbours(tmp_path: Path):
    for name in ("0-1-100", "1-2-101"):
        wrote(tmp_path, name, (0, 0, 0.0), {})
    assert takeovers(tmp_path) == []


def test_a_ledger_must_add_up_and_may_lose_only_what_a_fault_takes():
    good = {"made": 12, "sent": 11, "received": 7, "refused": 3, "waiting": 0, "lost": 0, "died": 2}
    assert list(check_ledger({"transitions": good}, may_lose=False)) == []
    lost = {**good, "received": 5, "lost": 2}
    assert list(check_ledger({"transitions": lost}, may_lose=True)) == []
    assert list(check_ledger({"transitions": lost}, may_lose=False)) == ["2 transitions are lost"]
    wrong = {**good, "received": 9}
    (failure,) = check_ledger({"transitions": wrong}, may_lose=False)
    assert "does not add up" in failure


def test_a_slope_is_that_of_a_line_and_its_interval_grows_with_the_noise():
    mean, slope, error = slope_of([(0, 1), (1, 3), (2, 5), (3, 7)])
    assert (mean, slope, error) == (4, 2, pytest.approx(0))
    assert slope_of([(0, 1), (1, 2), (2, 5), (3, 7)])[2] > 0
    assert by_minute([(0.2, 1.0), (0.6, 3.0), (1.5, 5.0)]) == [(0.4, 2.0), (1.5, 5.0)]
