"""Direct inserts are checked and counted as if they had come in a message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_replay_server import BATCH, SPEC, columns_of, config_of, frames_of

from pdqn.telemetry import Telemetry
from replay.buffer import PrioritizedBuffer, make_buffer
from replay.intake import Insertion


class Replay:
    """An intake with its buffer and its counters, and the warnings that it gave."""

    def __init__(self) -> None:
        self.buffer: PrioritizedBuffer = make_buffer(config_of(), SPEC)
        self.telemetry = Telemetry()
        self.warnings: list[str] = []
        self.insertion = Insertion(SPEC, self.buffer, self.telemetry, self.warnings.append)

    def insert(self, count: int = BATCH, version: int = 0, **changes: Any) -> int:
        columns, block = columns_of(count, **changes), frames_of(count)
        return self.insertion.check_and_insert(columns, [block], version)


def test_what_can_be_learned_from_is_inserted_and_its_policy_lag_is_counted():
    replay = Replay()
    replay.insertion.learner_steps = 12
    assert replay.insert(version=10) == BATCH
    assert replay.buffer.size == BATCH
    assert replay.telemetry.counters == {
        "transitions_received": BATCH,
        "policy_lag_sum": 2 * BATCH,
    }


@pytest.mark.parametrize(
    ("count", "changes", "reason"),
    [
        (BATCH, {"n_step_return": np.full(BATCH, np.nan, np.float32)}, "not finite"),
        (BATCH, {"action": np.full(BATCH, 3, np.int32)}, "action"),
        (100, {}, "too large"),
    ],
    ids=["not finite", "action", "too large"],
)
def test_what_cannot_is_refused_counted_each_time_and_noted_once(
    count: int, changes: dict[str, Any], reason: str
):
    replay = Replay()
    assert [replay.insert(count, **changes) for _ in range(2)] == [0, 0]
    assert replay.buffer.size == 0
    assert replay.telemetry.counters == {
        f"rejected/{reason}": 2,
        "transitions_rejected": 2 * count,
        "transitions_refused": 2 * count,
    }
    ((kind, text),) = replay.telemetry.report().notes
    assert kind == "rejected"
    assert text.startswith(f"the first of its kind: {reason}: ")
    assert [warning.partition(":")[0] for warning in replay.warnings] == [reason, reason]
