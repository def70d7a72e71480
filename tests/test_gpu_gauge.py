"""The GPU's figures, with a fake management library."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from learner.gpu import GpuGauge


class FakeError(Exception):
    pass


def install(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    module = ModuleType("pynvml")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    standard = {
        "NVMLError": FakeError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=83),
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=3 * 10**9),
    }
    for name, value in {**standard, **functions}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = SimpleNamespace(uuid="1-2-3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_what_the_library_says_of_the_device_is_read(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def utilization(handle: str) -> Any:
        asked.append(handle)
        return SimpleNamespace(gpu=83)

    install(monkeypatch, nvmlDeviceGetUtilizationRates=utilization)
    gauge = GpuGauge(torch.device("cuda"))
    assert gauge.read() == {"gpu_percent": 83.0, "gpu_memory_bytes": 3e9}
    gauge.read()
    assert asked == ["GPU-1-2-3"], "once a second is enough"


def fail(*_: Any) -> Any:
    raise FakeError("no driver")


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetMemoryInfo"])
def test_a_library_that_fails_says_nothing(monkeypatch: pytest.MonkeyPatch, function: str):
    install(monkeypatch, **{function: fail})
    assert GpuGauge(torch.device("cuda")).read() == {}


def test_a_processor_is_no_gpu():
    assert GpuGauge(torch.device("cpu")).read() == {}
