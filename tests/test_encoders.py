"""Encoders of later papers against their formulas, in numbers worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.learner import Learner
from pdqn.config import Config, NetworkConfig
from pdqn.layers import build
from pdqn.model import load_model, save_model
from pdqn.networks import build_network
from pdqn.networks.encoders import ImpalaResNet
from pdqn.networks.hadamax import Hadamax
from pdqn.networks.images import Image, as_image
from pdqn.networks.spectral import SpectralConv2d
from pdqn.policy import action_values
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.samples import Sample

SCREEN = FieldSpec("observation", (84, 84), "uint8", stack=4)
BOARD = FieldSpec("observation", (10, 10, 4), "bool", binary=True)


def image_of(field: FieldSpec) -> Image:
    image = as_image(field)
    assert image is not None
    return image


def gelu(value: float) -> float:
    """Return value x Phi(value)."""
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


# ---- Hadamax ----


def hadamax(field: FieldSpec, **changes: Any) -> Hadamax:
    given = {"channels": 1, "small": True, **changes}
    return Hadamax(image_of(field), **given)


def test_a_block_pools_the_product_of_its_branches():
    """Two channels that are normalised to 1 and -1, where the image is 1, else to 0."""
    encoder = hadamax(FieldSpec("observation", (8, 8), "float32"), channels=2)
    with torch.no_grad():
        for branch in ("first", "second"):
            weight = encoder.get_parameter(f"blocks.0.{branch}.layer.weight")
            weight.zero_()
            weight[:, 0, 0, 0] = torch.tensor([9.0, -9.0])
            encoder.get_parameter(f"blocks.0.{branch}.layer.bias").zero_()
        encoder.get_parameter("blocks.0.second.norm.weight")[0] = 2.0
        encoder.get_parameter("blocks.0.second.norm.bias")[0] = 1.0
    images = torch.zeros(1, 1, 8, 8)
    images[0, 0, 0, 0] = 1.0
    found = encoder(images).reshape(2, 3, 3)
    # Channel 0 is gelu(1) gelu(2 + 1) = 0.8413 x 2.9960, above its neighbours' gelu(0) gelu(1) = 0.
    assert found[0, 0, 0].item() == pytest.approx(gelu(1) * gelu(3), rel=1e-4)
    assert found[0, 0, 0].item() == pytest.approx(2.5206, abs=1e-3)
    # Channel 1 is gelu(-1) gelu(-1) = 0.1587 x 0.1587, above the 0 beside it.
    assert found[1, 0, 0].item() == pytest.approx(0.02517, abs=1e-4)
    assert found[:, 1:].abs().max() == 0


def test_a_branch_is_normalised_over_the_channels_of_each_pixel():
    encoder = hadamax(BOARD, channels=3)
    seen: dict[str, Tensor] = {}
    for name in ("first", "second"):
        layer = encoder.get_submodule(f"blocks.0.{name}.layer")
        layer.register_forward_hook(lambda *given, name=name: seen.update({name: given[2]}))
    with torch.no_grad():
        found = encoder(torch.randn(2, 4, 10, 10)).reshape(2, 3, 4, 4)
        scaled = []
        for branch in seen.values():
            spread = branch.var(dim=1, correction=0, keepdim=True)
            unit = (branch - branch.mean(dim=1, keepdim=True)) / (spread + 1e-5).sqrt()
            scaled.append(torch.nn.functional.gelu(unit))
        wanted = torch.nn.functional.max_pool2d(scaled[0] * scaled[1], 2)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_large_encoder_has_the_papers_shapes():
    # Pooled by 4, by 2, and without a stride: 84 -> 21 -> 11 -> 11, with 64 channels.
    encoder = hadamax(SCREEN, channels=32, small=False)
    assert encoder.features == 64 * 11 * 11
    for branch in ("first", "second"):
        weights = (encoder.get_parameter(f"blocks.{k}.{branch}.layer.weight") for k in range(3))
        assert [tuple(weight.shape) for weight in weights] == [
            (32, 4, 8, 8),
            (64, 32, 4, 4),
            (64, 64, 3, 3),
        ]
    assert encoder(torch.zeros(1, 4, 84, 84)).shape == (1, encoder.features)


@pytest.mark.parametrize("sides", [(36, 37), (50, 61), (87, 210)])
def test_it_takes_images_of_any_sides(sides: tuple[int, int]):
    encoder = hadamax(FieldSpec("observation", sides, "uint8"), channels=4, small=False)
    assert encoder(torch.randn(1, 1, *sides)).shape == (1, encoder.features)


def test_products_do_not_vanish_in_deep_blocks():
    torch.manual_seed(0)
    encoder = hadamax(SCREEN, channels=32, small=False)
    assert encoder(torch.rand(2, 4, 84, 84)).abs().mean() > 1e-3


# ---- spectral normalisation ----


def test_weights_are_divided_by_their_largest_singular_value():
    layer = SpectralConv2d(2, 2)
    with torch.no_grad():
        layer.weight.zero_()
        # As a matrix of 2 x 18 it has the rows (3, 4, 0 ...) and (0, 0, 1, 0 ...): norms 5 and 1.
        layer.weight[0, 0, 1, 1], layer.weight[0, 1, 1, 1], layer.weight[1, 0, 0, 0] = 3.0, 4.0, 1.0
        for _ in range(30):
            layer.turn()
        layer.get_parameter("bias").zero_()
        found = layer.eval()(torch.ones(1, 2, 3, 3))
    assert layer.norm().item() == pytest.approx(5.0, rel=1e-5)
    assert found[0, 0, 1, 1].item() == pytest.approx(7 / 5, rel=1e-5)
    assert found[0, 1, 1, 1].item() == pytest.approx(1 / 5, rel=1e-5)


def test_the_norm_follows_the_weights_in_passes_that_learn_and_only_there():
    torch.manual_seed(0)
    layer = SpectralConv2d(8, 8).train()
    images = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        layer.weight.normal_()
    before = layer.direction.clone()
    with torch.no_grad():
        layer(images)
    layer.eval()(images)
    assert torch.equal(layer.direction, before)
    layer.train()
    for _ in range(50):
        layer(images)
    exact = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    torch.testing.assert_close(layer.norm(), exact, rtol=1e-3, atol=0)


def test_its_gradient_is_that_of_the_weights_over_their_norm():
    torch.manual_seed(0)
    layer = SpectralConv2d(3, 4)
    images, slopes = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    for _ in range(200):
        layer.turn()
    layer(images).backward(slopes)
    exact = layer.weight.detach().clone().requires_grad_(True)
    scaled = exact / torch.linalg.matrix_norm(exact.flatten(1), 2)
    torch.nn.functional.conv2d(images, scaled, layer.bias, padding=1).backward(slopes)
    torch.testing.assert_close(layer.weight.grad, exact.grad, rtol=1e-3, atol=1e-4)


def test_two_passes_before_one_gradient_are_possible():
    layer = SpectralConv2d(3, 3).train()
    images = torch.randn(1, 3, 5, 5)
    first = layer(images)
    layer(images)
    first.sum().backward()
    assert layer.weight.grad is not None


# ---- the network of Beyond the Rainbow ----


def test_the_spectral_impala_network_has_the_papers_parts():
    network = ImpalaResNet(image_of(SCREEN), 32, spectral=True)
    assert network.features == 64 * 6 * 6
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == 15
    assert sum(isinstance(layer, SpectralConv2d) for layer in layers) == 12
    first = [network.get_submodule(f"stages.{k}.first") for k in range(3)]
    assert not any(isinstance(layer, SpectralConv2d) for layer in first)


def test_a_feature_is_the_largest_in_its_part_of_the_image():
    """An image of 96 x 96 leaves 12 x 12 features, of which each window of 2 x 2 leaves one."""
    field = FieldSpec("observation", (96, 96), "uint8")
    network = ImpalaResNet(image_of(field), 4, spectral=True)
    pooled: list[Tensor] = []
    network.stages[-1].register_forward_hook(lambda *given: pooled.append(given[2]))
    found = network(torch.rand(1, 1, 96, 96)).reshape(8, 6, 6)
    windows = pooled[0][0].unfold(1, 2, 2).unfold(2, 2, 2)
    torch.testing.assert_close(found, windows.amax(dim=(3, 4)).relu())


@pytest.mark.parametrize("sides", [(84, 84), (60, 100), (210, 160), (49, 49)])
def test_an_exported_network_pools_the_same_windows(
    monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]
):
    network = ImpalaResNet(image_of(FieldSpec("observation", sides, "uint8")), 4, spectral=True)
    images = torch.rand(2, 1, *sides)
    with torch.no_grad():
        wanted = network.eval()(images)
        monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
        assert torch.equal(network(images), wanted)


def test_a_small_board_keeps_its_few_features():
    network = ImpalaResNet(image_of(BOARD), 4, spectral=True)
    assert network.features == 8 * 2 * 2
    assert network(torch.zeros(1, 4, 10, 10)).shape == (1, 32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["network", "last_layer", "none"])
def test_a_learner_step_turns_each_direction_once(
    monkeypatch: pytest.MonkeyPatch, precision: str, target: str
):
    spec = EnvironmentSpec("test/Board-v0", (FieldSpec("observation", (8, 8), "float32"),), 3)
    settings = {"device": "cpu", "precision": precision, "learning_rate": 1e-3, "target": target}
    network = {"kind": "impala_spectral", "channels": 4, "hidden": 8}
    learner = Learner(build(("test", {"learner": settings, "network": network})), spec)
    turned, turn = [], SpectralConv2d.turn
    monkeypatch.setattr(SpectralConv2d, "turn", lambda layer: (turned.append(layer), turn(layer)))
    rng = np.random.default_rng(0)
    boards = [{"observation": rng.normal(size=(4, 8, 8)).astype("f4")} for _ in range(2)]
    sample = Sample(
        keys=np.arange(4),
        observation=boards[0],
        bootstrap_observation=boards[1],
        action=np.zeros(4, np.int32),
        n_step_return=np.ones(4, np.float32),
        discount=np.full(4, 0.9, np.float32),
        sampling_priority=np.ones(4),
        parameter_version=np.zeros(4, np.int64),
    )
    assert not learner.step(learner.tensors(sample)).skipped
    assert len(turned) == len(set(turned)) == 12
    published = learner.online.state_dict()
    assert sum(name.endswith("direction") for name in published) == 12


# ---- model files ----


@pytest.mark.parametrize("kind", ["impala_spectral", "hadamax_small"])
@pytest.mark.parametrize("distribution", ["none", "hl_gauss"])
def test_a_model_file_gives_the_values_of_the_network_that_was_saved(
    tmp_path: Path, kind: str, distribution: Any
):
    spec = EnvironmentSpec("test/Board-v0", (BOARD,), 3)
    config = NetworkConfig(kind=kind, distribution=distribution, layer_norm=True, channels=8)
    network = build_network(spec, config).train()
    boards = (torch.rand(5, 10, 10, 4) < 0.5).numpy()
    for _ in range(3):  # turns the directions of the spectral norm
        network(*network.prepare({"observation": torch.from_numpy(boards)}))
    network.eval()
    save_model(tmp_path / "model.pt", Config(network=config), spec, network, 3)
    loaded = load_model(tmp_path / "model.pt")
    wanted = action_values(network, {"observation": boards})
    assert (action_values(loaded.network, {"observation": boards}) == wanted).all()
