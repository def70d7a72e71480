"""Batches that move to the device ahead of their step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.objective import TensorBatch
from learner.staging import Stager


def batch_of(number: Any) -> TensorBatch:
    one = torch.tensor([float(number)])
    return TensorBatch({"x": one}, {"x": one}, one.long(), one, one, one)


def test_batches_are_taken_in_the_order_in_which_they_were_put():
    stager = Stager(batch_of, torch.device("cpu"))
    samples: list[Any] = [1, 2, 3]
    for sample in samples:
        stager.put(sample)
    assert len(stager) == 3
    taken = [stager.take() for _ in samples]
    assert [sample for sample, _ in taken] == samples
    assert [float(batch.n_step_return) for _, batch in taken] == [1.0, 2.0, 3.0]
    assert len(stager) == 0


def test_nothing_staged_is_nothing_to_take():
    with pytest.raises(IndexError):
        Stager(batch_of, torch.device("cpu")).take()


def test_only_a_gpu_stages_ahead_unless_it_is_told():
    assert Stager(batch_of, torch.device("cpu")).ahead == 0
    assert Stager(batch_of, torch.device("cpu"), ahead=2).ahead == 2


def test_every_tensor_of_a_batch_is_named_once():
    tensors = list(batch_of(1).tensors())
    assert len(tensors) == 6
