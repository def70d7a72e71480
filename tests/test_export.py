"""ONNX files give the same values as their networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from test_load_policy import offset, saved

from launcher.results.export import example_fields, export_onnx
from pdqn.config import Config, NetworkConfig
from pdqn.errors import UsageError
from pdqn.model import load_model, save_model
from pdqn.networks import build_network
from pdqn.policy import action_values
from pdqn.specs import EnvironmentSpec, FieldSpec

__all__ = ["offset"]

pytest.importorskip("onnxscript")
runtime: Any = pytest.importorskip("onnxruntime")


class Places(gymnasium.Env[Any, Any]):
    """An action for each pixel of an image that is larger than a network's field of view."""

    observation_space = gymnasium.spaces.Box(0, 255, (33, 34, 2), np.uint8)
    action_space = gymnasium.spaces.Discrete(33 * 34)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros((33, 34, 2), np.uint8), {}

    def step(self, action: Any) -> Any:
        return np.zeros((33, 34, 2), np.uint8), 0.0, True, False, {}


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "nested_environment:offset", "nested_environment:Places"]
)
def test_the_file_gives_the_networks_values_for_any_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: str
):
    monkeypatch.setitem(sys.modules, "nested_environment", sys.modules[__name__])
    spec = saved(tmp_path / "m.pth", env)
    path = tmp_path / "policy.onnx"
    names = export_onnx(tmp_path / "m.pth", path)
    assert names == [field.name for field in spec.fields]
    network = load_model(tmp_path / "m.pth").network
    session = runtime.InferenceSession(str(path))
    rng = np.random.default_rng(0)
    for batch in (1, 2, 5):
        fields = {
            name: rng.integers(1, 4, (batch, *zeros.shape[1:])).astype(zeros.numpy().dtype)
            for name, zeros in example_fields(spec).items()
        }
        (found,) = session.run(["values"], fields)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in fields.items()}
            expected = network(*network.prepare(tensors)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_pooling_that_onnx_does_not_have_is_written_in_other_words(tmp_path: Path):
    side = 84
    config = NetworkConfig(kind="impala_spectral", channels=4, distribution="hl_gauss")
    fields = (FieldSpec("observation", (side, side, 2), "uint8"),)
    spec = EnvironmentSpec("test/Images-v0", fields, 3)
    network = build_network(spec, config)
    save_model(tmp_path / "m.pth", Config(network=config), spec, network, 1)
    export_onnx(tmp_path / "m.pth", tmp_path / "policy.onnx")
    session = runtime.InferenceSession(str(tmp_path / "policy.onnx"))
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 2), np.uint8)
    (found,) = session.run(["values"], {"observation": images})
    np.testing.assert_allclose(
        found, action_values(network, {"observation": images}), rtol=1e-4, atol=1e-5
    )


def test_the_q_map_is_refused_with_what_to_use(tmp_path: Path):
    saved(tmp_path / "m.pth", "pdqn/CirclePlacement-v0", map_size=16)
    with pytest.raises(UsageError, match=r"ONNX has no operator for; use pdqn\.load_policy"):
        export_onnx(tmp_path / "m.pth", tmp_path / "policy.onnx")


def test_a_map_of_placements_is_written_where_its_network_can_be(tmp_path: Path):
    spec = saved(tmp_path / "m.pth", "pdqn/CirclePlacement-v0", kind="mlp", map_size=16)
    names = export_onnx(tmp_path / "m.pth", tmp_path / "policy.onnx")
    assert names == [field.name for field in spec.fields]


def test_a_file_that_could_not_be_written_is_refused_before_the_network_is_read(tmp_path: Path):
    with pytest.raises(UsageError, match=r"policy\.onnx: there is no folder .*nowhere"):
        export_onnx(tmp_path / "none.pth", tmp_path / "nowhere" / "policy.onnx")
    with pytest.raises(UsageError, match=r"policy\.foo: expected a name that ends in \.onnx"):
        export_onnx(tmp_path / "none.pth", tmp_path / "policy.foo")


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"export needs onnx and onnxscript: .*pdqn\[onnx\]"):
        export_onnx(tmp_path, tmp_path / "policy.onnx")
