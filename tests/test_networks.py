"""Networks: shapes, exact computations, and the file of a trained network."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.circle_placement.baselines import random_valid_actions
from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from pdqn import discs
from pdqn.config import Config, NetworkConfig, RunConfig
from pdqn.errors import UsageError
from pdqn.model import load_model, save_model
from pdqn.networks import QNetwork, build_network, network_sizes, qmap_inputs
from pdqn.networks.fused import FusedNetwork
from pdqn.networks.qmap import QMap
from pdqn.networks.qmap_inputs import interpolation_matrix, transformed_disc_sums
from pdqn.specs import ALLOWED_DTYPES, EnvironmentSpec, FieldSpec, Observation
from pdqn.trust import EVERYTHING

CIRCLES = "pdqn/CirclePlacement-v0"
VECTOR = EnvironmentSpec(
    "test/Vector-v0",
    (
        FieldSpec("action_mask", (5,), "int8", binary=True),
        FieldSpec("flags", (3,), "int8", binary=True),
        FieldSpec("observation", (2, 3), "float64"),
        FieldSpec("steps_left", (), "int32"),
    ),
    num_actions=5,
)

FOUR = EnvironmentSpec("test/Four-v0", (FieldSpec("observation", (4,), "float32"),), 3)


@pytest.fixture(autouse=True)
def _same_random_parameters():
    torch.manual_seed(0)


def map_spec(size: int) -> EnvironmentSpec:
    """Describe circle placement on a map of this size."""
    shapes: dict[str, tuple[tuple[int, ...], str, bool]] = {
        "action_mask": ((size * size,), "int8", True),
        "map": ((size, size), "float16", False),
        "placed": ((20,), "int8", True),
        "progress": ((2,), "float32", False),
        "radii": ((20,), "float32", False),
        "radius": ((1,), "float32", False),
    }
    fields = (FieldSpec(name, *rest) for name, rest in shapes.items())
    return EnvironmentSpec("test/Maps-v0", tuple(fields), size * size, circle_placement=True)


def observations(size: int, batch: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    arrays = {
        "action_mask": rng.integers(0, 2, (batch, size * size), np.int8),
        "map": rng.random((batch, size, size)).astype(np.float16),
        "placed": rng.integers(0, 2, (batch, 20), np.int8),
        "progress": rng.random((batch, 2)).astype(np.float32),
        "radii": rng.integers(0, 6, (batch, 20)).astype(np.float32),
        "radius": rng.integers(1, 6, (batch, 1)).astype(np.float32),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def trained(network: QNetwork) -> QNetwork:
    """Make the last layers differ from zero, as after training."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def values_of(network: QNetwork, observation: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return network(*network.prepare(observation))


class TestMLP:
    def test_values_have_one_column_for_every_action(self):
        network = build_network(VECTOR, NetworkConfig(hidden=16, layers=3))
        assert isinstance(network, FusedNetwork)
        assert len(network.trunk) == 3
        observation = {
            "action_mask": torch.ones(4, 5, dtype=torch.bool),
            "flags": torch.ones(4, 3, dtype=torch.bool),
            "observation": torch.randn(4, 2, 3, dtype=torch.float64),
            "steps_left": torch.arange(4, dtype=torch.int32),
        }
        values = values_of(network, observation)
        assert values.shape == (4, 5)
        assert values.dtype == torch.float32

    def test_fields_are_concatenated_by_name_whatever_their_order(self):
        network = build_network(VECTOR, NetworkConfig(hidden=8))
        observation = {
            "steps_left": torch.tensor([9]),
            "observation": torch.arange(6.0).reshape(1, 2, 3),
            "action_mask": torch.zeros(1, 5),
            "flags": torch.tensor([[True, False, True]]),
        }
        (inputs,) = network.prepare(observation)
        assert inputs.tolist() == [[1, 0, 1, 0, 1, 2, 3, 4, 5, 9]]

    def test_stacked_fields_are_flattened_oldest_frame_first(self):
        spec = VECTOR.stacked(2)
        network = build_network(spec, NetworkConfig(hidden=8))
        observation = {
            "action_mask": torch.zeros(1, 5),
            "flags": torch.tensor([[[True, False, False], [False, True, True]]]),
            "observation": torch.arange(12.0).reshape(1, 2, 2, 3),
            "steps_left": torch.tensor([[8, 9]]),
        }
        (inputs,) = network.prepare(observation)
        assert inputs.tolist() == [[1, 0, 0, 0, 1, 1, *range(12), 8, 9]]
        assert values_of(network, observation).shape == (1, 5)

    @pytest.mark.parametrize("dtype", ALLOWED_DTYPES)
    def test_fields_of_any_dtype_are_taken_as_numbers(self, dtype):
        spec = EnvironmentSpec("test/Any-v0", (FieldSpec("observation", (2,), dtype),), 3)
        network = build_network(spec, NetworkConfig(hidden=4))
        seen = {"observation": np.array([[0, 1]]).astype(dtype)}
        (inputs,) = network.prepare(tensors(seen))
        assert inputs.dtype == torch.float32
        assert inputs.tolist() == [[0, 1]]

    def test_dueling_takes_the_mean_off_the_advantage(self):
        network = build_network(FOUR, NetworkConfig(hidden=8, layers=1))
        assert isinstance(network, FusedNetwork)
        inputs = torch.randn(6, 4)
        assert network.head.value is not None
        with torch.no_grad():
            hidden = torch.relu(network.trunk[0](inputs))
            advantage, value = network.head.advantage(hidden), network.head.value(hidden)
            values = network(inputs)
        torch.testing.assert_close(values.mean(dim=1), value[:, 0])
        torch.testing.assert_close(values - value, advantage - advantage.mean(1, keepdim=True))

    def test_with_layer_norm_the_scale_of_a_hidden_layer_does_not_matter(self):
        network = build_network(FOUR, NetworkConfig(hidden=8, layers=2, layer_norm=True))
        assert isinstance(network, FusedNetwork)
        inputs = torch.randn(6, 4)
        with torch.no_grad():
            values = network(inputs)
            for parameter in network.trunk[1].parameters():
                parameter.mul_(7.0)
            torch.testing.assert_close(network(inputs), values, rtol=1e-3, atol=1e-4)
        plain = build_network(FOUR, NetworkConfig(hidden=8, layers=2))
        assert not any("norms" in name for name in plain.state_dict())

    def test_without_dueling_there_is_no_value_stream(self):
        network = build_network(FOUR, NetworkConfig(hidden=8, layers=1, dueling=False))
        assert not any("value" in name for name in network.state_dict())
        assert network(torch.randn(2, 4)).shape == (2, 3)


class TestQMap:
    @pytest.mark.parametrize("size", [16, 40, 128])
    @pytest.mark.parametrize("dueling", [True, False])
    def test_every_cell_of_a_map_has_a_value(self, size, dueling):
        network = build_network(map_spec(size), NetworkConfig(channels=8, dueling=dueling))
        assert isinstance(network, QMap)
        values = values_of(network, observations(size, 3))
        assert values.shape == (3, size * size)
        assert values.dtype == torch.float32
        assert values.isfinite().all()

    @pytest.mark.parametrize("size", [20, 17, 130])
    def test_a_map_that_patches_do_not_tile_is_refused_in_a_sentence(self, size):
        with pytest.raises(UsageError, match=rf"map_size = {size}: .* needs a multiple of 8"):
            build_network(map_spec(size), NetworkConfig())

    def test_the_kind_follows_from_the_observation_unless_it_is_told(self):
        assert network_sizes(map_spec(16), NetworkConfig()).kind == "qmap"
        assert network_sizes(VECTOR, NetworkConfig()).kind == "mlp"
        assert network_sizes(map_spec(16), NetworkConfig(kind="mlp")).kind == "mlp"
        assert isinstance(build_network(map_spec(20), NetworkConfig(kind="mlp")), FusedNetwork)

    @pytest.mark.parametrize(
        ("spec", "key", "sized"),
        [
            (map_spec(16), "hidden", "qmap does not use it; it is sized by network.channels"),
            (map_spec(16), "layers", "qmap does not use it; it is sized by network.channels"),
            (
                VECTOR,
                "channels",
                "mlp does not use it; it is sized by network.hidden, network.layers",
            ),
        ],
    )
    def test_a_size_that_the_kind_does_not_have_is_refused(self, spec, key, sized):
        with pytest.raises(UsageError, match=f"network.{key} = 8: a network of kind {sized}"):
            build_network(spec, dataclasses.replace(NetworkConfig(), **{key: 8}))

    @pytest.mark.parametrize(
        "option", [{"noisy": True}, {"layer_norm": True}, {"distribution": "quantile"}]
    )
    def test_options_that_a_qmap_cannot_honour_are_refused(self, option):
        (key,) = option
        with pytest.raises(UsageError, match=rf"network\.{key} = \w+: the Q-map network"):
            build_network(map_spec(16), NetworkConfig(**option))

    def test_a_qmap_for_vectors_is_refused_with_what_is_missing(self):
        with pytest.raises(
            UsageError, match=r"qmap needs the observation fields .*map.*has .*flags"
        ):
            build_network(VECTOR, NetworkConfig(kind="qmap"))

    def test_stacked_maps_are_refused_with_what_is_accepted(self):
        with pytest.raises(UsageError, match=r"run\.frame_stack = 4: .*accepted is 1, or .* = mlp"):
            build_network(map_spec(16).stacked(4), NetworkConfig())
        network = build_network(map_spec(16).stacked(4), NetworkConfig(kind="mlp"))
        assert isinstance(network, FusedNetwork)
        first = network.trunk[0]
        assert isinstance(first, torch.nn.Linear)
        assert first.in_features == 4 * (256 + 20 + 2 + 20 + 1)

    def test_values_are_the_same_alone_and_in_a_batch(self):
        network = build_network(map_spec(32), NetworkConfig(channels=8))
        batch = observations(32, 6)
        together = values_of(network, batch)
        for i in range(6):
            alone = values_of(network, {name: tensor[i : i + 1] for name, tensor in batch.items()})
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)

    def test_values_are_the_same_for_float16_and_float32_maps_and_int8_and_bool_masks(self):
        network = build_network(map_spec(32), NetworkConfig(channels=8))
        recorded = observations(32, 3)
        unpacked = dict(recorded)
        unpacked["map"] = recorded["map"].float()
        for name in ("action_mask", "placed"):
            unpacked[name] = recorded[name].bool()
        torch.testing.assert_close(
            values_of(network, recorded), values_of(network, unpacked), rtol=0, atol=0
        )

    def test_dueling_takes_the_mean_over_valid_actions_off_the_advantage(self):
        network, plain = (
            trained(build_network(map_spec(16), NetworkConfig(channels=8, dueling=dueling)))
            for dueling in (True, False)
        )
        plain.load_state_dict(network.state_dict())
        assert isinstance(network, QMap)
        assert isinstance(plain, QMap)
        observation = observations(16, 4)
        inputs = network.prepare(observation)
        reward = inputs.rewards / 10.0
        assert (inputs.heaviest > 0).all()
        valid = observation["action_mask"].bool()
        dueling = values_of(network, observation)
        advantage = values_of(plain, observation)
        for i in range(4):
            difference = dueling[i] - advantage[i]
            torch.testing.assert_close(difference, difference[:1].expand(256), rtol=0, atol=1e-5)
        # Without the mean, the value remains: it does not depend on a shift of the advantages.
        value = torch.stack([(dueling - reward)[i][valid[i]].mean() for i in range(4)])
        assert network.advantage.bias is not None
        with torch.no_grad():
            network.advantage.bias.add_(3.0)
        raised = values_of(network, observation)
        torch.testing.assert_close(raised, dueling, rtol=1e-4, atol=1e-5)
        means = torch.stack([(raised - reward)[i][valid[i]].mean() for i in range(4)])
        torch.testing.assert_close(means, value, rtol=1e-4, atol=1e-5)

    def test_a_final_observation_without_valid_actions_has_finite_values(self):
        network = build_network(map_spec(16), NetworkConfig(channels=8))
        observation = observations(16, 2)
        for name in ("action_mask", "map", "radius"):
            observation[name] = torch.zeros_like(observation[name])
        observation["progress"] = torch.ones(2, 2)
        assert values_of(network, observation).isfinite().all()

    @pytest.mark.parametrize("dueling", [True, False])
    def test_the_last_circle_is_worth_its_reward_whatever_was_learned(self, dueling):
        config = NetworkConfig(channels=8, dueling=dueling)
        network = trained(build_network(map_spec(16), config))
        observation = observations(16, 3)
        observation["placed"][:] = 1
        observation["placed"][:, 7] = 0
        observation["radii"][:, 7] = observation["radius"][:, 0]
        assert isinstance(network, QMap)
        reward = network.prepare(observation).rewards / 10.0
        torch.testing.assert_close(values_of(network, observation), reward, rtol=0, atol=0)

    @pytest.mark.parametrize("dueling", [True, False])
    def test_low_precision_keeps_what_placements_differ_by(self, dueling):
        """Check inputs of which the common part is a hundred times larger than the differences."""
        network = build_network(map_spec(32), NetworkConfig(channels=8, dueling=dueling))
        assert isinstance(network, QMap)
        with torch.no_grad():
            network.advantage.weight.normal_(0, 0.01)
        prepared = network.prepare(observations(32, 4))
        reward = prepared.rewards / 10.0
        with torch.no_grad():
            exact = network(*prepared) - reward
            with torch.autocast("cpu", torch.bfloat16):
                rough = network(*prepared) - reward
        spread = exact.std(dim=1)
        assert (spread < 0.05 * exact.mean(dim=1)).all()
        differences = [v - v.mean(dim=1, keepdim=True) for v in (exact, rough)]
        errors = (differences[0] - differences[1]).std(dim=1)
        assert (errors < 0.03 * spread).all()

    def test_what_is_left_is_measured_by_the_heaviest_cells(self):
        observation = observations(32, 2)
        observation["progress"][:, 1] = 0.25
        observation["placed"][:] = 1
        observation["placed"][:, 3:6] = 0
        observation["radii"][:, 3:6] = torch.tensor([5.0, 4.0, 2.0])
        observation["radius"][:, 0] = 5.0
        _, scalars, heaviest, *_ = build_network(map_spec(32), NetworkConfig()).prepare(observation)
        cells = np.sort(observation["map"].double().numpy().reshape(2, -1))[:, ::-1]
        shares = cells / cells.sum(axis=1, keepdims=True) * 0.75
        later = int(np.pi * (4.0**2 + 2.0**2))
        np.testing.assert_allclose(heaviest, shares[:, :later].sum(axis=1), rtol=1e-4)
        counts = [later, int(np.pi * 10), int(np.pi * 5)]
        densities = [shares[:, :count].mean(axis=1) * 32**2 - 2.0 for count in counts]
        np.testing.assert_allclose(scalars[:, -3:], np.stack(densities, 1), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(("size", "dueling"), [(16, True), (40, False), (128, True)])
    def test_values_are_those_of_a_twin_on_planes_of_full_resolution(self, size, dueling):
        config = NetworkConfig(channels=8, dueling=dueling)
        network = trained(build_network(map_spec(size), config))
        observation = observations(size, 3)
        observation["action_mask"][2] = 0  # no action is valid
        torch.testing.assert_close(
            values_of(network, observation),
            naive_values(network, observation),
            rtol=1e-4,
            atol=1e-5,
        )

    @pytest.mark.parametrize("dueling", [True, False])
    def test_one_action_has_the_value_and_the_gradient_that_it_has_among_all(self, dueling):
        network = trained(build_network(map_spec(32), NetworkConfig(channels=8, dueling=dueling)))
        prepared = network.prepare(observations(32, 5))
        actions = torch.tensor([0, 31, 500, 1023, 77])
        one = network.chosen(actions, *prepared)
        every = network(*prepared)[torch.arange(5), actions]
        torch.testing.assert_close(one, every, rtol=1e-5, atol=1e-6)
        parameters = [p for name, p in network.named_parameters() if dueling or "value" not in name]
        found = torch.autograd.grad(one.square().sum(), parameters)
        wanted = torch.autograd.grad(every.square().sum(), parameters)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)

    def test_maps_of_other_numbers_are_sorted_and_give_the_same_sums(self):
        observation = observations(32, 4)
        network = build_network(map_spec(32), NetworkConfig())
        assert isinstance(network, QMap)
        halves = network.prepare(observation).heaviest
        # No float16 has this value, so the bit patterns cannot be counted.
        odd = {**observation, "map": observation["map"].float() * (1.0 + 2**-20)}
        torch.testing.assert_close(network.prepare(odd).heaviest, halves, rtol=1e-5, atol=1e-7)
        below = {**observation, "map": observation["map"].clone()}
        below["map"][:, 0, 0] = -0.5
        cells = np.sort(below["map"].double().numpy().reshape(4, -1))[:, ::-1]
        shares = cells / cells.sum(axis=1, keepdims=True)
        shares *= 1.0 - observation["progress"][:, 1:].double().numpy()
        found = network.prepare(below)
        radii = (observation["radii"].double() * (1 - observation["placed"].double())).square()
        later = np.pi * (radii.sum(1) - observation["radius"][:, 0].double().square()).numpy()
        for k in range(4):
            assert found.heaviest[k] == pytest.approx(shares[k, : int(later[k])].sum(), rel=1e-3)

    @pytest.mark.parametrize(("size", "block"), [(8, 8), (16, 4), (128, 8)])
    def test_blocks_are_interpolated_as_torch_interpolates(self, size, block):
        blocks = torch.randn(2, 1, size // block, size // block)
        matrix = interpolation_matrix(size, block)
        wanted = torch.nn.functional.interpolate(blocks, scale_factor=block, mode="bilinear")
        torch.testing.assert_close(matrix @ blocks @ matrix.T, wanted, rtol=1e-5, atol=1e-6)

    def test_planes_are_the_same_in_compiled_loops_and_by_torch_as_on_a_gpu(self):
        observation = observations(32, 4)
        observation["radius"][0] = 0  # an episode has ended
        ours = qmap_inputs._compiled_planes(observation, 4, qmap_inputs.new_array)
        for found, wanted in zip(ours, qmap_inputs._planes(observation, 4), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    def test_preparing_involves_no_parameters(self):
        network = build_network(map_spec(16), NetworkConfig(channels=8))
        prepared = network.prepare(observations(16, 2))
        assert not any(tensor.requires_grad for tensor in prepared)
        other = build_network(map_spec(16), NetworkConfig(channels=8))
        for own, others in zip(prepared, other.prepare(observations(16, 2)), strict=True):
            torch.testing.assert_close(own, others, rtol=0, atol=0)

    def test_every_parameter_has_a_part_in_the_values(self):
        network = trained(build_network(map_spec(16), NetworkConfig(channels=8)))
        loss = network(*network.prepare(observations(16, 2))).square().sum()
        loss.backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def naive_values(network: Any, observation: dict[str, Tensor]) -> Tensor:
    """Compute a Q-map's values as its documentation says, with convolutions over whole planes."""
    functional, inputs = torch.nn.functional, network.prepare(observation)
    size = network.size
    planes = torch.stack([inputs.maps, inputs.rewards, inputs.valid], 1).unflatten(2, (size, size))
    with torch.no_grad():
        condition = network.condition(inputs.scalars)
        hidden = network.embed(planes) + network.shift(condition)[:, :, None, None]
        hidden = functional.relu(hidden)
        for layer in network.layers:
            hidden = hidden + functional.relu(layer(hidden))
        scale = 1.0 + network.fine_scale(condition)[:, :, None, None]
        fine = functional.relu(network.fine(planes) * scale + network.spread(hidden))
        fine = fine + functional.relu(network.mix(fine))
        blocks = network.advantage(fine)
        advantage = functional.interpolate(blocks, scale_factor=network.block, mode="bilinear")
        direct = (network.direct(condition)[:, :, None, None] * planes).sum(1)
        advantage = (advantage[:, 0] + direct).flatten(1)
        if network._dueling:
            pooled = torch.cat([hidden.mean(dim=(2, 3)), condition], dim=1)
            valid = inputs.valid
            count = valid.sum(1, keepdim=True).clamp_min(1)
            mean = (advantage * valid).sum(1, keepdim=True) / count
            advantage = advantage - mean + network.value(pooled)
        return inputs.rewards / 10.0 + inputs.heaviest[:, None] * (0.8 + advantage)


@pytest.mark.parametrize("radii", ["fixed", "random"])
def test_the_reward_plane_is_the_reward_that_the_environment_gives(radii):
    args = {"map_size": 32, "radii": radii}
    spec = describe_environment(CIRCLES, args)
    network = build_network(spec, NetworkConfig(channels=8))
    assert isinstance(network, QMap)
    env = VectorEnvironment(spec, args, 4)
    rng = np.random.default_rng(0)
    observation = env.reset([1, 2, 3, 4])
    compared = 0
    for _ in range(20):
        planes = network.prepare(tensors(observation)).rewards
        actions = random_valid_actions(observation["action_mask"], rng)
        rewards = planes.numpy()[np.arange(4), actions] / 10.0
        transition = env.step(actions)
        # Observations round maps to float16, an error of a small fraction of a percent.
        np.testing.assert_allclose(rewards, transition.rewards, rtol=2e-3, atol=2e-5)
        compared += np.count_nonzero(transition.rewards > 0.001)
        observation = transition.observation
    env.close()
    assert compared > 20


def tensors(observation: Observation) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in observation.items()}


def naive_disc_sums(grid: np.ndarray, radius: int) -> np.ndarray:
    size = len(grid)
    i, j = np.mgrid[:size, :size]
    sums = np.zeros((size, size))
    if radius > 0:
        for x, y in np.ndindex(size, size):
            sums[x, y] = grid[(i - x) ** 2 + (j - y) ** 2 <= radius**2].sum(dtype=np.float64)
    return sums


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 14),
    radii=st.lists(st.integers(-40, 40), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_ways_to_sum_discs_equal_the_definition(size, radii, seed):
    maps = np.random.default_rng(seed).random((len(radii), size, size)).astype(np.float32)
    expected = np.stack([naive_disc_sums(g, r) for g, r in zip(maps, radii, strict=True)])
    transformed = transformed_disc_sums(torch.from_numpy(maps), torch.tensor(radii).float())
    for sums in (transformed, torch.from_numpy(discs.disc_sums(maps, radii))):
        assert sums.shape == maps.shape
        assert sums.dtype == torch.float32
        np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_sums_by_transform_equal_running_sums_on_maps_of_the_real_sizes(size):
    rng = np.random.default_rng(0)
    maps = rng.random((5, size, size)).astype(np.float32)
    radii = np.array([1, 3, size // 6, size // 2 - 1, 0])
    sums = transformed_disc_sums(torch.from_numpy(maps), torch.from_numpy(radii))
    np.testing.assert_allclose(sums.numpy(), discs.disc_sums(maps, radii), rtol=1e-4, atol=1e-3)


SMALL = NetworkConfig(hidden=4, layers=1)
CONFIG = Config(run=RunConfig(env_args={"map_size": 16, "radii": "fixed"}), network=SMALL)


def saved(path: Path, spec: EnvironmentSpec = VECTOR, config: Config = CONFIG) -> QNetwork:
    network = build_network(spec, config.network)
    save_model(path, config, spec, network, 1234)
    return network


class TestModelFile:
    @pytest.mark.parametrize(
        ("spec", "network"),
        [
            (VECTOR, SMALL),
            (VECTOR.stacked(3), SMALL),
            (map_spec(16), NetworkConfig(channels=8, dueling=False)),
        ],
    )
    def test_a_network_comes_back_as_it_was(self, tmp_path, spec, network):
        config = dataclasses.replace(CONFIG, network=network)
        sent = saved(tmp_path / "model.pth", spec, config)
        model = load_model(tmp_path / "model.pth")
        assert model.spec == spec
        assert model.env_args == {"map_size": 16, "radii": "fixed"}
        assert model.parameter_version == 1234
        assert type(model.network) is type(sent)
        assert not model.network.training
        for name, tensor in sent.state_dict().items():
            torch.testing.assert_close(model.network.state_dict()[name], tensor, rtol=0, atol=0)

    def test_the_file_holds_no_code(self, tmp_path):
        saved(tmp_path / "model.pth")
        content = torch.load(tmp_path / "model.pth", weights_only=True)
        assert content["format"] == 3
        assert content["network"]["hidden"] == 4

    def test_saving_replaces_the_file_and_leaves_no_other(self, tmp_path):
        saved(tmp_path / "model.pth")
        saved(
            tmp_path / "model.pth",
            map_spec(16),
            dataclasses.replace(CONFIG, network=NetworkConfig()),
        )
        assert load_model(tmp_path / "model.pth").spec == map_spec(16)
        assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]

    def test_a_missing_file_is_refused_by_name(self, tmp_path):
        with pytest.raises(UsageError, match=r"model\.pth: not a model that this version reads"):
            load_model(tmp_path / "model.pth")

    def test_a_network_of_a_persons_own_is_looked_for_where_python_looks(
        self, tmp_path, monkeypatch
    ):
        path, kind = tmp_path / "model.pth", "a_network_of_mine:make"
        config = dataclasses.replace(CONFIG, network=NetworkConfig(kind=kind))
        save_model(path, config, map_spec(16), torch.nn.Linear(1, 1), 1)
        with pytest.raises(UsageError) as caught:
            load_model(path, EVERYTHING)
        assert str(caught.value) == (
            f"{path}: network.kind = {kind}: No module named 'a_network_of_mine'; its module must "
            "be importable: run this in its folder, or add that folder to PYTHONPATH"
        )

    @pytest.mark.parametrize("data", [b"", b"text, not a model\n" * 9, b"\x80\x02", b"PK\x03\x04"])
    def test_a_foreign_file_is_refused(self, tmp_path, data):
        path = tmp_path / "model.pth"
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"model\.pth: not a model that this version reads"):
            load_model(path)

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 1},
            {"format": None},
            {"spec": 3},
            {"spec": {}},
            {"spec": VECTOR.to_map() | {"num_actions": 6}},
            {"network": {"hidden": 4}},
            {"network": {"width": 4}},
            {"network": None},
            {"parameters": {}},
            {"parameters": None},
            {"env_args": 7},
            {"parameter_version": "new"},
            {"score": "good"},
            {"score": [1.0]},
        ],
    )
    def test_a_file_of_another_content_is_refused(self, tmp_path, change):
        path = tmp_path / "model.pth"
        saved(path)
        torch.save(torch.load(path, weights_only=True) | change, path)
        with pytest.raises(UsageError, match=r"not a model that this version reads"):
            load_model(path)

    @pytest.mark.parametrize(
        "part", ["spec", "env_args", "network", "parameter_version", "score", "parameters"]
    )
    def test_a_file_that_lacks_a_part_is_refused(self, tmp_path, part):
        path = tmp_path / "model.pth"
        saved(path)
        content = torch.load(path, weights_only=True)
        del content[part]
        torch.save(content, path)
        with pytest.raises(UsageError, match=rf"not a model that this version reads \('{part}'\)"):
            load_model(path)

    @pytest.mark.parametrize("content", [[1, 2], {}, torch.zeros(3), "text"])
    def test_another_programs_file_is_refused(self, tmp_path, content):
        path = tmp_path / "model.pth"
        torch.save(content, path)
        with pytest.raises(UsageError, match=r"not a model that this version reads"):
            load_model(path)

    def test_code_in_a_file_is_not_run(self, tmp_path):
        path = tmp_path / "model.pth"
        torch.save({"format": 2, "spec": Harmful(tmp_path / "harm")}, path)
        with pytest.raises(UsageError):
            load_model(path)
        assert not (tmp_path / "harm").exists()

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch warns of some damage
    def test_a_damaged_file_is_refused_or_whole_in_what_matters(self, tmp_path):
        path = tmp_path / "model.pth"
        saved(path)
        data = path.read_bytes()
        rng = random.Random(0)
        refused = 0
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 5)):
                damaged[rng.randrange(len(data))] = rng.randrange(256)
            length = rng.choice([len(data), rng.randrange(len(data))])
            path.write_bytes(damaged[:length])
            refused += is_refused(path)
        assert refused > 75


class Harmful:
    """An object that would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def is_refused(path: Path) -> bool:
    try:
        load_model(path)
    except UsageError:
        return True
    return False
