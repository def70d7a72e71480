"""Tests that the launcher reads from a model file as much as it needs, and runs nothing of it."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.model import read_model, save_model, write_atomically
from pdqn.model_head import model_steps
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

SPEC = EnvironmentSpec("v", (FieldSpec("position", (5,), "float32"),), 3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config, path = Config(), tmp_path / "model.pth"
    save_model(path, config, SPEC, build_network(SPEC, config.network), 1234, 0.5)
    return path


def test_the_steps_of_a_model_are_read_without_its_parameters(model: Path):
    assert model_steps(model) == read_model(model).parameter_version == 1234


def test_types_of_any_precision_and_of_the_optimizer_are_passed_over(tmp_path: Path):
    path = tmp_path / "model.pth"
    kinds = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
    tensors = {str(kind): torch.zeros(3, dtype=kind) for kind in kinds}
    parameter = torch.nn.Parameter(torch.zeros(2))
    content = {"format": 3, "parameter_version": 7, "parameters": tensors, "more": parameter}
    write_atomically(path, content)
    assert model_steps(path) == 7


def test_a_damaged_file_and_one_of_another_format_are_refused_as_torch_would(model: Path):
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    damaged, short = model.with_name("damaged.pth"), model.with_name("short.pth")
    other, missing = model.with_name("other.pth"), model.with_name("missing.pth")
    damaged.write_bytes(data)
    short.write_bytes(data[:100])
    write_atomically(other, {"format": 2, "parameter_version": 1})
    for path in (damaged, short, other, missing, model.parent):
        with pytest.raises(UsageError) as expected:
            read_model(path)
        with pytest.raises(UsageError) as found:
            model_steps(path)
        assert str(found.value) == str(expected.value)


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


def test_nothing_that_a_file_names_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    content = {"format": 3, "parameter_version": 7, "parameters": Malicious()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
    with pytest.raises(UsageError, match="damaged, or another kind of file"):
        model_steps(path)
    assert not (tmp_path / "made").exists()
