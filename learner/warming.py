"""The first step of a learner that is thrown away, taken while the real one waits for data.

It loads the compiled loops of a step from their cache, or compiles them, as on the first run on a
machine. The real learner, its parameters and its random numbers are as if nothing had happened.
"""

from __future__ import annotations

import torch

from learner.learner import Learner
from pdqn.config import Config
from pdqn.specs import EnvironmentSpec
from replay.samples import Sample, SampleLayout


def warm_up(learner: Learner, config: Config, spec: EnvironmentSpec) -> None:
    """Take a step on a blank SampleBatch with another learner, if this one has such loops."""
    if learner.computes_on_arrays:
        with torch.random.fork_rng(devices=[]):
            other = Learner(config, spec)
            other.step(other.tensors(_blank(spec, config.learner.batch_size)))


def _blank(spec: EnvironmentSpec, batch_size: int) -> Sample:
    layout = SampleLayout(spec, batch_size)
    sample = layout.view(bytearray(layout.nbytes))
    for field in spec.fields:
        if field.categories:  # zero may lie below the first
            for part in (sample.observation, sample.bootstrap_observation):
                part[field.name][:] = field.blank(batch_size)
    sample.sampling_priority[:] = 1.0
    return sample
