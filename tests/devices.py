"""The device of the learner's tests: PDQN_TEST_DEVICE, which ``benchmarks/gpu.py`` sets to cuda."""

from __future__ import annotations

import os

import pytest

DEVICE = os.environ.get("PDQN_TEST_DEVICE", "cpu")
on_the_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="only the CPU does it")
