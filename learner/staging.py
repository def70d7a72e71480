"""Batches on their way to the device: a GPU receives the next one while it trains on the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext

import torch

from learner.objective import TensorBatch
from replay.samples import Sample

_GPU_AHEAD = 1


class Stager:
    """A short queue of batches that are on the device, or being copied there.

    On a GPU, the copies run on a separate stream, from pinned memory, in parallel with the
    computation. On a CPU there is nothing to copy, and each batch is taken as soon as it arrives.

    Args:
        to_device: function that makes tensors of a sample; with a GPU it must copy asynchronously.
        device: device of the learner.
        ahead: number of batches staged in addition to the one that trains; by default one on a GPU
            and none elsewhere.
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
        """Return the number of staged batches."""
        return len(self._staged)

    def put(self, sample: Sample) -> None:
        """Begin to bring a sample to the device; its memory must stay until its step is done."""
        # Without a GPU, torch would look for one at every step.
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with stream:
            self._staged.append((sample, self._to_device(sample)))

    def take(self) -> tuple[Sample, TensorBatch]:
        """Take the oldest staged sample and its batch.

        Raises:
            IndexError: nothing is staged.
        """
        sample, batch = self._staged.popleft()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for tensor in batch.tensors():
                if tensor.is_cuda:  # on the host if the GPU had no memory for the batch
                    # Allocated on the other stream, which must not reuse it while this one
                    # computes.
                    tensor.record_stream(current)
        return sample, batch
