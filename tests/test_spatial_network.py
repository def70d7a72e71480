"""Actions that are places: a value for every pixel of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_image_networks import spec_of, zeros
from torch import Tensor

from learner.learner import Learner
from pdqn.config import NetworkConfig
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.networks import build_network, network_sizes, resample_noise, set_noise
from pdqn.networks.spatial import SpatialNetwork
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.samples import Sample

BOARD = FieldSpec("observation", (10, 12, 3), "uint8")
LEVEL = FieldSpec("level", (2,), "float32")


def spatial(spec: EnvironmentSpec, **changes: Any) -> SpatialNetwork:
    network = build_network(spec, NetworkConfig(**{"channels": 8, "hidden": 16, **changes}))
    assert isinstance(network, SpatialNetwork)
    return network


def values_of(network: SpatialNetwork, **observation: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(*network.prepare(observation))


class TestChoice:
    @pytest.mark.parametrize(
        ("fields", "actions", "kind"),
        [
            ((BOARD,), 120, "spatial"),
            ((BOARD, LEVEL), 120, "spatial"),
            ((BOARD, FieldSpec("other", (10, 12), "float32")), 120, "spatial"),
            ((BOARD, FieldSpec("action_mask", (120,), "bool")), 120, "spatial"),
            ((BOARD,), 121, "conv"),
            ((BOARD, FieldSpec("other", (12, 10), "float32")), 120, "conv"),
            ((LEVEL,), 2, "mlp"),
            # A board with more planes than rows.
            ((FieldSpec("observation", (8, 8, 12), "bool", binary=True),), 64, "spatial"),
            ((FieldSpec("observation", (12, 8, 8), "bool", binary=True),), 64, "spatial"),
        ],
    )
    def test_it_is_chosen_where_every_action_is_a_pixel(self, fields: Any, actions: int, kind: str):
        assert network_sizes(spec_of(*fields, actions=actions), NetworkConfig()).kind == kind

    def test_what_it_cannot_see_as_places_is_refused(self):
        with pytest.raises(UsageError, match=r"a pixel for each of 7 actions; .*\[10, 12, 3\]"):
            build_network(spec_of(BOARD, actions=7), NetworkConfig(kind="spatial"))


@pytest.mark.parametrize("shape", [(8, 9), (33, 40), (65, 70, 2), (2, 66, 64)])
@pytest.mark.parametrize("distribution", ["none", "categorical", "quantile", "hl_gauss"])
@pytest.mark.parametrize("dueling", [True, False])
def test_images_of_any_sides_have_a_value_for_every_pixel(
    shape: tuple[int, ...], distribution: str, dueling: bool
):
    image = FieldSpec("observation", shape, "float32", stack=2)
    height, width = shape[:2] if shape[0] > 2 else shape[1:]
    spec = spec_of(image, LEVEL, actions=height * width)
    network = spatial(spec, distribution=distribution, atoms=5, dueling=dueling)
    values = network(*network.prepare(zeros(spec)))
    assert values.shape == (2, height * width)
    values.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("height", "width"), [(24, 20), (44, 40), (80, 72)])
def test_an_action_is_a_row_and_a_column_and_means_the_same_everywhere(height: int, width: int):
    # Neither place is in the field of view of the edges, nor the other way round.
    torch.manual_seed(0)
    spec = spec_of(FieldSpec("observation", (height, width), "float32"), actions=height * width)
    network = spatial(spec, layers=1)
    images = torch.zeros(2, height, width)
    images[0, 8:11, 8:10] = images[1, 12:15, 12:14] = torch.randn(3, 2)
    first, second = values_of(network, observation=images).unflatten(1, (height, width))
    torch.testing.assert_close(second[12:16, 12:16], first[8:12, 8:12], rtol=0, atol=1e-5)
    assert (first[8:12, 8:12] - second[8:12, 8:12]).abs().max() > 1e-3


def test_what_is_no_image_changes_what_places_differ_by():
    spec = spec_of(BOARD, LEVEL, actions=120)
    network = spatial(spec)
    board = torch.randint(0, 256, (1, 10, 12, 3), dtype=torch.uint8)
    low = values_of(network, observation=board, level=torch.tensor([[0.0, 0.0]]))
    high = values_of(network, observation=board, level=torch.tensor([[0.0, 5.0]]))
    assert (high - high.mean() - low + low.mean()).abs().max() > 1e-3


def test_noise_moves_values_until_it_is_switched_off():
    spec = spec_of(BOARD, actions=120)
    network = spatial(spec, noisy=True, layer_norm=True)
    board = torch.randint(0, 256, (1, 10, 12, 3), dtype=torch.uint8)
    plain = values_of(network, observation=board)
    resample_noise(network)
    assert not torch.equal(values_of(network, observation=board), plain)
    set_noise(network, False)
    assert torch.equal(values_of(network, observation=board), plain)


@pytest.mark.parametrize("dueling", [True, False])
def test_low_precision_keeps_what_places_differ_by(dueling: bool):
    torch.manual_seed(0)
    network = spatial(spec_of(BOARD, actions=120), dueling=dueling)
    common = network.value if dueling else network.advantage
    assert isinstance(common, torch.nn.Linear)
    boards = {"observation": torch.randint(0, 256, (4, 10, 12, 3), dtype=torch.uint8)}
    with torch.no_grad():
        common.bias.add_(100.0)
        exact = values_of(network, **boards)
        with torch.autocast("cpu", torch.bfloat16):
            rough = values_of(network, **boards)
    differences = [values - values.mean(dim=1, keepdim=True) for values in (exact, rough)]
    errors = (differences[0] - differences[1]).std(dim=1)
    assert (errors < 0.03 * exact.std(dim=1)).all()


def test_what_is_learned_in_one_half_holds_in_the_other():
    # One pixel is brighter than all others, and choosing it returns 1.
    side, batch, rng = 12, 64, np.random.default_rng(0)
    spec = spec_of(FieldSpec("observation", (side, side), "float32"), actions=side * side)

    def images(columns: range) -> tuple[Any, Any]:
        found = rng.uniform(0, 0.6, (batch, side, side)).astype(np.float32)
        where = rng.integers(side, size=batch) * side + rng.choice(columns, size=batch)
        found.reshape(batch, -1)[np.arange(batch), where] = 1.0
        return found, where

    network = {"channels": 16, "hidden": 32, "layers": 2}
    settings = {"device": "cpu", "precision": "float32", "learning_rate": 3e-3}
    learner = Learner(build(("test", {"learner": settings, "network": network})), spec)
    for _ in range(150):
        left, where = images(range(side // 2))
        action = np.where(rng.random(batch) < 0.5, where, rng.integers(side * side, size=batch))
        sample = Sample(
            keys=np.arange(batch),
            observation={"observation": left},
            bootstrap_observation={"observation": left},
            action=action.astype(np.int32),
            n_step_return=(action == where).astype(np.float32),
            discount=np.zeros(batch, np.float32),
            sampling_priority=np.ones(batch),
            parameter_version=np.zeros(batch, np.int64),
        )
        learner.step(learner.tensors(sample))
    right, where = images(range(side // 2, side))
    online = learner.online
    assert isinstance(online, SpatialNetwork)
    chosen = values_of(online, observation=torch.from_numpy(right)).argmax(dim=1).numpy()
    assert (chosen == where).mean() > 0.9
