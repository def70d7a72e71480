"""Tests that a learner loads its compiled loops before its first step, changing nothing else."""

from __future__ import annotations

import pytest
import torch

from learner import warming
from learner.learner import Learner, StepResult
from pdqn.layers import build
from pdqn.specs import ACTION_MASK, EnvironmentSpec, FieldSpec

VECTOR = EnvironmentSpec(
    "v",
    (
        FieldSpec("position", (5,), "float32"),
        FieldSpec("weather", (2,), "int64", categories=(3, 4), start=(2, 1)),
        FieldSpec(ACTION_MASK, (6,), "bool"),
    ),
    6,
)
GRID = EnvironmentSpec("g", (FieldSpec("grid", (10, 10, 4), "bool"),), 6)
OTHER = EnvironmentSpec("s", (FieldSpec("screen", (50, 42), "uint8"),), 6).stacked(4)


BINARY = EnvironmentSpec("b", (FieldSpec("grid", (10, 10, 4), "bool"),), 6).stacked(2)
CONFIG = build(("test", {"learner": {"batch_size": 8, "device": "cpu", "learning_rate": 1e-3}}))


def warm_up(spec: EnvironmentSpec) -> None:
    warming.warm_up(Learner(CONFIG, spec), CONFIG, spec)


def parameters_of(learner: Learner) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in learner.online.state_dict().values()])


@pytest.mark.parametrize(("spec", "steps"), [(VECTOR, 1), (GRID, 1), (BINARY, 1), (OTHER, 0)])
def test_a_learner_of_compiled_loops_takes_its_first_step_on_nothing(
    monkeypatch: pytest.MonkeyPatch, spec: EnvironmentSpec, steps: int
):
    taken: list[StepResult] = []
    step = Learner.step
    monkeypatch.setattr(Learner, "step", lambda self, batch: taken.append(step(self, batch)))
    warm_up(spec)
    assert len(taken) == steps
    assert not any(result.skipped for result in taken), "a step is loaded whole"


def test_it_leaves_the_learner_and_torchs_random_numbers_alone():
    learner = Learner(CONFIG, VECTOR)
    before, expected = parameters_of(learner), torch.rand(3)
    learner = Learner(CONFIG, VECTOR)  # which seeds torch
    warming.warm_up(learner, CONFIG, VECTOR)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(parameters_of(learner), before)
