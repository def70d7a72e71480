"""Load and memory of the learner's GPU, if NVIDIA's management library is present."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import torch

_PERIOD_SECONDS = 1.0


class GpuGauge:
    """Utilisation and memory of one GPU; empty without ``nvidia-ml-py`` or without a GPU.

    Args:
        device: device of the learner.
    """

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        self._next = 0.0
        self._known: dict[str, float] = {}
        if device.type != "cuda" or importlib.util.find_spec("pynvml") is None:
            return
        import pynvml  # pyright: ignore[reportMissingImports]

        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            # The library counts all GPUs, but torch only those that are visible to it.
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:
            self._handle = None  # a container may have the package without the library

    def read(self) -> dict[str, float]:
        """Read ``gpu_percent``, the share of time that it was busy, and ``gpu_memory_bytes``."""
        now = time.monotonic()
        if self._handle is None or now < self._next:
            return self._known
        self._next = now + _PERIOD_SECONDS
        try:
            busy = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
            used = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        except self._nvml.NVMLError:
            return self._known
        self._known = {"gpu_percent": float(busy), "gpu_memory_bytes": float(used)}
        return self._known
