"""Batches on their way to the device: on a GPU the next one is copied while the last one trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from learner.objective import TensorBatch
from replay.samples import Sample

_GPU_AHEAD = 1


class Stager:
    """A short queue of batches that are on the device, or being copied there.

    On a GPU the copies run on a stream of their own, from pinned memory, beside the computation.
    On a CPU there is nothing to copy, and a batch is taken as soon as it is there.

    Args:
        to_device: makes tensors of a sample; with a GPU it must copy without waiting.
        device: where the learner computes.
        ahead: batches that may be staged beside the one that trains; by default one on a GPU and
            none elsewhere.
    """

    def __init__(
        self,
        to_device: Callable[[Sample], TensorBatch],
        device: torch.device,
        ahead: int | None = None,
    ) -> None:
        cuda = device.type == "cuda"
        self._to_device = to_device
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._staged: deque[tuple[Sample, TensorBatch]] = deque()
        self.ahead = ahead if ahead is not None else _GPU_AHEAD * cuda

    def __len__(self) -> int:
        """Batches that are staged."""
        return len(self._staged)

    def put(self, sample: Sample) -> None:
        """Begin to bring a sample to the device; its memory must stay until its step is done."""
        with torch.cuda.stream(self._stream):  # of None: does nothing
            self._staged.append((sample, self._to_device(sample)))

    def take(self) -> tuple[Sample, TensorBatch]:
        """The batch that was put first, and what it was made of.

        Raises:
            IndexError: nothing is staged.
        """
        sample, batch = self._staged.popleft()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for tensor in batch.tensors():
                if tensor.is_cuda:  # not where the GPU had no memory for the batch
                    # Allocated on the other stream: not to be reused there while this one computes.
                    tensor.record_stream(current)
        return sample, batch
