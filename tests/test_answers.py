"""Answers of Dask workers, and the first line of a leash, checked on arrival."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.hosts.dask.answers import RoleEnd, WorkerDescription
from launcher.hosts.leash import Leash
from pdqn.errors import UsageError

ANSWER = {
    "hostname": "a", "pdqn": "0.1.0", "python": "3.11.7", "cores": 8,
    "memory_bytes": 10**9, "gpus": ["one"],
}  # fmt: skip


def test_a_worker_is_described_by_its_answer():
    described = WorkerDescription.of(ANSWER)
    assert described == WorkerDescription("a", "0.1.0", "3.11.7", 8, 10**9, ("one",))
    assert described.to_map() == ANSWER


def test_a_task_that_failed_says_why_the_worker_cannot_be_used():
    described = WorkerDescription.of((OSError, OSError("no such interpreter"), None))
    assert described.error == "no such interpreter"
    assert described.to_map() == {"error": "no such interpreter"}


@pytest.mark.parametrize(
    "answer",
    [
        None, 7, "text", [1], {"surprise": 1}, {**ANSWER, "cores": "many"},
        {**ANSWER, "gpus": "one"}, {**ANSWER, "gpus": [1]}, {**ANSWER, "memory_bytes": -1},
        {**ANSWER, "hostname": None}, {**ANSWER, "python": "x" * 100_000},
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_excludes_its_worker(answer: Any):
    assert WorkerDescription.of(answer).error == "the worker's answer cannot be read"


def test_the_end_of_a_role_is_read_or_refused():
    assert RoleEnd.of({"code": -9, "pid": 7, "tail": "killed"}) == RoleEnd(-9, 7, "killed")
    for answer in (None, {}, {"code": "x", "pid": 7, "tail": ""}, {"code": 0, "pid": 7}):
        assert RoleEnd.of(answer) is None


def test_the_first_line_of_a_leash_comes_over_whole():
    leash = Leash("pdqn-run-actor-1", "[keys]\n")
    assert Leash.from_line(leash.to_line() + "\n") == leash


@pytest.mark.parametrize("line", ["", "\n", "{}", "7", '{"agent": 7, "key": ""}', "garbage"])
def test_another_first_line_is_refused_in_one_line(line: str):
    with pytest.raises(UsageError, match=r"^--leash: standard input begins with another line"):
        Leash.from_line(line)
