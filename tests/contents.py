"""The whole contents of a buffer, for comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np

from replay.buffer import PrioritizedBuffer
from replay.samples import Sample, SampleLayout
from replay.stores import read_ring


def all_of(buffer: PrioritizedBuffer) -> Sample:
    """Return every live transition once, oldest first, as a sample."""
    count = buffer.size
    layout = SampleLayout(buffer._spec, count)
    out = layout.view(np.empty(layout.nbytes, np.uint8))
    rows = read_ring(buffer._rows, buffer.evicted, count)
    out.keys[:] = np.arange(count) + buffer.evicted
    for name in ("action", "n_step_return", "discount", "parameter_version"):
        getattr(out, name)[:] = rows[name]
    out.sampling_priority[:] = buffer._tree.get(out.keys % buffer.capacity)
    for frames, observation in (
        (rows["observation_frame"], out.observation),
        (rows["bootstrap_frame"], out.bootstrap_observation),
    ):
        if count:
            buffer.store.gather([*buffer._wanted(frames, observation)])
    return out


def rows_in(buffer: PrioritizedBuffer) -> list[tuple[Any, ...]]:
    """Return what was inserted as plain values, one tuple for each live transition."""
    sample = all_of(buffer)
    columns: list[list[Any]] = [
        getattr(sample, name).tolist()
        for name in ("action", "n_step_return", "discount", "parameter_version")
    ]
    for observation in (sample.observation, sample.bootstrap_observation):
        columns += [[row.tobytes() for row in np.asarray(part)] for part in observation.values()]
    return list(zip(*columns, strict=True))
