"""A run that a program starts, changes, reads and ends, with the real launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import pdqn

SMALL = {
    "mode": "single",
    "learner": {"batch_size": 16},
    "network": {"hidden": 16},
    "replay": {"capacity": 5000, "min_size": 64},
    "evaluation": {"episodes": 1, "period_seconds": 0.1},
    "system": {"pictures": False, "metrics_seconds": 0.2},
}
MODULE = """
import gymnasium
def make(): return gymnasium.make("CartPole-v1")
"""


def test_a_run_is_paused_saved_evaluated_and_ended_by_the_program_that_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own_cart_pole.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import own_cart_pole  # pyright: ignore[reportMissingImports]

    run = pdqn.launch(own_cart_pole.make, time=60, run_dir=tmp_path / "run", config=SMALL)
    assert run.path == tmp_path / "run"
    learned = next(s["learner_steps"] for s in run if s["learner_steps"] > 0)
    run.pause()
    assert run.snapshot.stage == "paused"
    # The run saves as it is now, and another program may use it.
    assert run.policy().model.parameter_version >= learned
    run.resume()
    assert next(s for s in run if s["eval/return_mean"] > 0).stage == "running"
    assert run.stop()["exit_reason"] == "interrupted"
    steps = run.metrics(frame=False)["environment_steps"]
    assert (np.diff(steps) >= 0).all()
    assert steps[-1] > 64
    assert (run.evaluations(frame=False)["eval/return_mean"] > 0).all()
    sys.modules.pop("own_cart_pole")
