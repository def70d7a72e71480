"""Steps and passes without autograd, and Adam on one array, are those of torch."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from learner import learner as learner_module
from learner.adam import FlatAdam, TorchAdam
from learner.learner import Learner
from pdqn.config import Config, NetworkConfig
from pdqn.layers import build
from pdqn.networks import QNetwork, build_network
from pdqn.networks.array_network import acting_arrays, has_arrays
from pdqn.networks.products import dense, multiply
from pdqn.policy import action_values
from pdqn.specs import ACTION_MASK, EnvironmentSpec, FieldSpec, Observation
from replay.samples import Sample

BATCH, ACTIONS = 16, 3
MASK = FieldSpec(ACTION_MASK, (ACTIONS,), "int8", binary=True)
VECTOR = FieldSpec("observation", (5,), "float32")
BOARD = FieldSpec("board", (8, 9, 2), "bool", binary=True)
FRAMES = FieldSpec("frames", (3, 8, 8), "uint8", stack=2, scale=255.0)
KIND = FieldSpec("kind", (2,), "int64", categories=(3, 4), start=(0, 1))
SPECS = {
    "vector": EnvironmentSpec("test/Vector-v0", (VECTOR,), ACTIONS),
    "masked": EnvironmentSpec("test/Masked-v0", (MASK, VECTOR), ACTIONS),
    "board": EnvironmentSpec("test/Board-v0", (BOARD,), ACTIONS),
    "everything": EnvironmentSpec(
        "test/Everything-v0", (MASK, BOARD, FRAMES, KIND, VECTOR), ACTIONS
    ),
}
LEARNERS: dict[str, dict[str, Any]] = {
    "double": {},
    "not double": {"double": False},
    "soft target": {"target_update": "soft", "target_update_rate": 0.1},
    "narrow loss": {"huber_delta": 0.01},
    "tight clip": {"gradient_clip_norm": 1e-3},
    "other epsilon": {"adam_epsilon": 0.1},
    "no target": {"target": "none"},
    "last layer": {"target": "last_layer"},
    "last layer, soft, not double": {
        "target": "last_layer",
        "target_update": "soft",
        "target_update_rate": 0.1,
        "double": False,
    },
}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no dueling": {"dueling": False},
    "layer norm": {"layer_norm": True, "layers": 2},
    "no hidden layer": {"layers": 0},
    "all layers normalised": {"layer_norm": True, "layer_norm_convolutions": True},
    "hl_gauss": {"distribution": "hl_gauss", "atoms": 9, "value_min": -2.0, "value_max": 3.0},
    "hl_gauss, no dueling": {"distribution": "hl_gauss", "atoms": 9, "dueling": False},
}
GATED: dict[str, dict[str, Any]] = {
    "hadamax": {"kind": "hadamax_small"},
    "hadamax, layer norm": {"kind": "hadamax_small", "layer_norm": True, "channels": 5},
}
ACTING: dict[str, dict[str, Any]] = {
    **NETWORKS,
    "categorical": {"distribution": "categorical", "atoms": 7},
    "quantile": {"distribution": "quantile", "atoms": 7, "dueling": False},
}


def config_of(learner: dict[str, Any] | None = None, **network: Any) -> Config:
    fixed = {"learning_rate": 1e-2, "device": "cpu", "batch_size": BATCH}
    often = {"target_update_period": 5, "precision": "float32"}
    layer = {"learner": {**fixed, **often, **(learner or {})}, "network": {"hidden": 24, **network}}
    return build(("test", layer))


def observations(spec: EnvironmentSpec, rng: np.random.Generator, count: int) -> Observation:
    found = {}
    for field in spec.fields:
        shape = (count, *field.stacked_shape)
        if field.categories:
            found[field.name] = rng.integers((0, 1), (3, 5), shape)
        elif field.dtype == "float32":
            found[field.name] = rng.normal(size=shape).astype(np.float32)
        else:
            found[field.name] = rng.integers(0, 2 if field.binary else 256, shape, np.uint8)
    return found


def sample_of(spec: EnvironmentSpec, seed: int) -> Sample:
    rng = np.random.default_rng(seed)

    def packed() -> Observation:
        found = observations(spec, rng, BATCH)
        if ACTION_MASK in found:
            found[ACTION_MASK][0] = 0  # no action is valid
        fields = {field.name: field for field in spec.fields}
        return {
            name: fields[name].pack(values) if fields[name].binary else values
            for name, values in found.items()
        }

    return Sample(
        keys=np.arange(BATCH),
        observation=packed(),
        bootstrap_observation=packed(),
        action=rng.integers(0, ACTIONS, BATCH, np.int32),
        n_step_return=rng.normal(size=BATCH).astype(np.float32),
        discount=rng.choice(np.array([0.0, 0.9], np.float32), BATCH),
        sampling_priority=rng.random(BATCH) + 0.1,
        parameter_version=np.zeros(BATCH, np.int64),
    )


@pytest.fixture
def with_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a learner that takes its steps with torch, as on a GPU."""

    def make(config: Config, spec: EnvironmentSpec) -> Learner:
        with monkeypatch.context() as patch:
            patch.setattr(learner_module, "suits_flat", lambda _: False)
            return Learner(config, spec)

    return make


def assert_alike(one: Learner, other: Learner, tolerance: float) -> None:
    ours, theirs = one.get_state(), other.get_state()
    for part in ("online", "target"):
        for name, tensor in ours[part].items():
            torch.testing.assert_close(tensor, theirs[part][name], atol=tolerance, rtol=tolerance)
    for state, twin in zip(
        ours["optimizer"]["state"].values(), theirs["optimizer"]["state"].values(), strict=True
    ):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(state[name], twin[name], atol=tolerance, rtol=1e-3)


def step(learner: Learner, sample: Sample) -> Any:
    return learner.step(learner.tensors(sample))


# ---- a step ----


@pytest.mark.parametrize(
    ("spec", "network", "settings"),
    [
        *itertools.product(["masked"], list(NETWORKS)[:4], LEARNERS),
        *itertools.product(
            ["masked"],
            ["hl_gauss", "hl_gauss, no dueling"],
            ["double", "no target", "last layer, soft, not double"],
        ),
        *itertools.product(["vector", "board", "everything"], ["plain", "layer norm"], ["double"]),
        ("everything", "no hidden layer", "not double"),
        ("everything", "plain", "last layer"),
        *itertools.product(["board", "everything"], ["all layers normalised"], ["not double"]),
        ("board", "all layers normalised", "last layer"),
        ("board", "no hidden layer", "last layer"),
        ("everything", "layer norm", "no target"),
        *itertools.product(["board", "everything"], GATED, ["double", "no target", "last layer"]),
    ],
)
def test_twelve_steps_are_those_of_torch(with_torch: Any, spec: str, network: str, settings: str):
    config = config_of(LEARNERS[settings], **{**NETWORKS, **GATED}[network])
    ours, theirs = Learner(config, SPECS[spec]), with_torch(config, SPECS[spec])
    assert ours._arrays is not None
    assert isinstance(theirs._optimizer, TorchAdam)
    for seed in range(12):
        sample = sample_of(SPECS[spec], seed)
        found, wanted = step(ours, sample), step(theirs, sample)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-3, abs=1e-6)
        assert found.q_mean == pytest.approx(wanted.q_mean, rel=1e-3, abs=1e-4)
        assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-3, abs=1e-6)
        np.testing.assert_allclose(found.priorities, wanted.priorities, rtol=1e-3, atol=1e-4)
    # Where a gradient is about zero, Adam's first steps make a step size of a rounding error.
    assert_alike(ours, theirs, 2e-3)


@pytest.mark.parametrize("kind", ["auto", "hadamax_small"])
def test_the_first_gradient_differs_from_torchs_by_rounding_only(with_torch: Any, kind: str):
    config, spec = config_of({}, layer_norm=True, layers=2, kind=kind), SPECS["everything"]
    ours, theirs = Learner(config, spec), with_torch(config, spec)
    for learner in (ours, theirs):
        step(learner, sample_of(spec, 0))
    for one, other in zip(ours.online.parameters(), theirs.online.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_returns_that_are_known_need_no_second_pass_and_steps_go_on_from_them(with_torch: Any):
    config, spec = config_of(), SPECS["masked"]
    ours, theirs = Learner(config, spec), with_torch(config, spec)
    for share in (0.0, 1.0, 0.0):
        sample = sample_of(spec, 1)
        sample.discount[:] = 0.9 * share
        assert step(ours, sample).loss == pytest.approx(step(theirs, sample).loss, rel=1e-4)
    assert_alike(ours, theirs, 1e-5)


def test_steps_are_the_same_to_the_bit_in_another_run():
    config, spec = config_of(LEARNERS["soft target"], layer_norm=True), SPECS["everything"]
    one, other = Learner(config, spec), Learner(config, spec)
    for seed in range(8):
        step(one, sample_of(spec, seed))
        step(other, sample_of(spec, seed))
    for name, tensor in one.online.state_dict().items():
        assert torch.equal(tensor, other.online.state_dict()[name]), name


@pytest.mark.parametrize("torch_first", [True, False])
def test_a_run_goes_on_with_the_other_arithmetic(with_torch: Any, torch_first: bool):
    config, spec = config_of(), SPECS["masked"]
    first = with_torch(config, spec) if torch_first else Learner(config, spec)
    for seed in range(7):
        step(first, sample_of(spec, seed))
    second = Learner(config, spec) if torch_first else with_torch(config, spec)
    second.set_state(copy.deepcopy(first.get_state()))
    for seed in range(7, 14):
        step(first, sample_of(spec, seed))
        step(second, sample_of(spec, seed))
    assert_alike(first, second, 2e-3)


def test_a_state_that_was_taken_does_not_change_with_later_steps_once_it_is_copied():
    config, spec = config_of(), SPECS["vector"]
    learner = Learner(config, spec)
    step(learner, sample_of(spec, 0))
    before = copy.deepcopy(learner.get_state())
    results = [step(learner, sample_of(spec, seed)).loss for seed in range(1, 6)]
    learner.set_state(before)
    again = [step(learner, sample_of(spec, seed)).loss for seed in range(1, 6)]
    assert again == results


@pytest.mark.parametrize(
    ("settings", "network"),
    [
        ({"munchausen": True}, {}),
        ({"micro_batch_size": 4}, {}),
        ({"precision": "bfloat16"}, {}),
        ({}, {"noisy": True}),
        ({}, {"distribution": "quantile"}),
        ({}, {"distribution": "categorical"}),
        ({}, {"kind": "impala"}),
        ({"target": "none"}, {"kind": "impala_spectral"}),
        ({"target": "last_layer"}, {"kind": "impala"}),
    ],
)
def test_torch_takes_the_steps_that_are_not_for_arrays(
    settings: dict[str, Any], network: dict[str, Any]
):
    spec = SPECS["board" if "kind" in network else "vector"]
    learner = Learner(config_of(settings, **network), spec)
    assert learner._arrays is None
    assert isinstance(learner._optimizer, FlatAdam)
    assert not step(learner, sample_of(spec, 0)).skipped


@pytest.mark.parametrize("name", ["quantile", "munchausen"])
def test_one_pass_of_adam_takes_the_steps_of_torchs_after_any_backward_pass(
    with_torch: Any, name: str
):
    settings = {"munchausen": True} if name == "munchausen" else {}
    network = {"distribution": "quantile", "atoms": 8} if name == "quantile" else {}
    config = config_of({**LEARNERS["soft target"], **settings}, **network)
    ours, theirs = Learner(config, SPECS["masked"]), with_torch(config, SPECS["masked"])
    for seed in range(8):
        sample = sample_of(SPECS["masked"], seed)
        found, wanted = step(ours, sample), step(theirs, sample)
        assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-3)
    assert_alike(ours, theirs, 2e-3)


class Double(QNetwork):
    """A person's network in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, ACTIONS).double()

    def prepare(self, observation: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (observation["observation"].double(),)

    def forward(self, *prepared: torch.Tensor) -> torch.Tensor:
        return self.layer(prepared[0]).float()


def make_double(_spec: EnvironmentSpec, _config: NetworkConfig) -> QNetwork:
    return Double()


def test_parameters_of_another_precision_keep_it():
    learner = Learner(config_of({}, kind=f"{__name__}:make_double"), SPECS["vector"])
    assert isinstance(learner._optimizer, TorchAdam)
    before = [parameter.clone() for parameter in learner.online.parameters()]
    step(learner, sample_of(SPECS["vector"], 0))
    for one, other in zip(learner.online.parameters(), before, strict=True):
        assert one.dtype == torch.float64
        assert not torch.equal(one, other)


def test_steps_with_large_layers_are_those_of_torch_and_the_same_in_another_run(with_torch: Any):
    settings = {"hidden": 512, "layers": 3, "layer_norm": True}
    config, spec = config_of({"batch_size": BATCH}, **settings), SPECS["masked"]
    ours, again = Learner(config, spec), Learner(config, spec)
    theirs = with_torch(config, spec)
    for seed in range(3):
        found, wanted = (step(learner, sample_of(spec, seed)) for learner in (ours, theirs))
        step(again, sample_of(spec, seed))
        assert found.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-3)
        np.testing.assert_allclose(found.priorities, wanted.priorities, rtol=1e-3, atol=1e-4)
    for name, tensor in ours.online.state_dict().items():
        assert torch.equal(tensor, again.online.state_dict()[name]), name


def test_a_bootstrap_observation_without_meaning_changes_nothing():
    config, spec = config_of(), SPECS["vector"]
    ours, twin = Learner(config, spec), Learner(config, spec)
    for few in (False, True):
        sample, other = sample_of(spec, 1), sample_of(spec, 1)
        for one in (sample, other):
            one.discount[:] = np.where(np.arange(BATCH) % 4 if few else np.arange(BATCH), 0.9, 0.0)
        other.bootstrap_observation["observation"][0] = np.nan
        assert step(ours, sample).loss == step(twin, other).loss
    for name, tensor in ours.online.state_dict().items():
        assert torch.equal(tensor, twin.online.state_dict()[name]), name


@pytest.mark.parametrize("shape", [(64, 256, 256), (7, 640, 512), (256, 64, 256), (3, 4, 5)])
def test_products_are_those_of_torch_for_any_strides(shape: tuple[int, int, int]):
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator)
    wanted = left.double() @ right.double()
    found = torch.empty(rows, columns)
    with torch.inference_mode():
        for a, b in itertools.product(
            (left, left.t().contiguous().t()), (right, right.t().contiguous().t())
        ):
            multiply(a, b, found)
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [2, 64])
def test_a_dense_layer_has_the_values_and_gradients_of_torchs(batch: int):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 256, 192, generator=generator)
    outer = torch.randn(batch, 256, 24, generator=generator)
    found = [torch.randn(24, 192, generator=generator), torch.randn(24, generator=generator)]
    wanted = [each.double() for each in found]
    for each in found + wanted:
        each.requires_grad_()
    result = dense(inputs, *found)
    torch.testing.assert_close(
        result.double(), torch.nn.functional.linear(inputs.double(), *wanted), rtol=1e-4, atol=1e-4
    )
    (result * outer).sum().backward()
    (torch.nn.functional.linear(inputs.double(), *wanted) * outer.double()).sum().backward()
    for one, other in zip(found, wanted, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-2)


# ---- acting ----


def network_of(name: str, **network: Any) -> QNetwork:
    return build_network(SPECS[name], config_of({}, **network).network)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(SPECS, ACTING), *itertools.product(["board", "everything"], GATED)],
)
def test_values_of_actions_are_those_of_torch(name: str, kind: str):
    network = network_of(name, **{**ACTING, **GATED}[kind])
    assert has_arrays(network)
    rng = np.random.default_rng(3)
    for count in (1, 8, 3, 40):
        observation = observations(SPECS[name], rng, count)
        tensors = {key: torch.from_numpy(values) for key, values in observation.items()}
        with torch.inference_mode():
            wanted = network(*network.prepare(tensors)).numpy()
        if ACTION_MASK in observation:
            wanted = np.where(observation[ACTION_MASK].astype(bool), wanted, -np.inf)
        found = action_values(network, observation)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_values_are_kept_when_others_are_computed():
    network, rng = network_of("vector"), np.random.default_rng(0)
    first = observations(SPECS["vector"], rng, 4)
    values = action_values(network, first)
    before = values.copy()
    action_values(network, observations(SPECS["vector"], rng, 4))
    assert np.array_equal(values, before)


def test_new_parameters_a_copy_and_a_converted_network_act_by_their_own_parameters():
    network, other = network_of("vector"), network_of("vector", layer_norm=False)
    observation = observations(SPECS["vector"], np.random.default_rng(0), 4)
    action_values(network, observation)
    twin = copy.deepcopy(network)
    network.load_state_dict(other.state_dict())
    assert np.array_equal(action_values(network, observation), action_values(other, observation))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not action_values(twin, observation).any()
    assert acting_arrays(network.double()) is None
    assert acting_arrays(network.float()) is not None
    assert np.array_equal(action_values(network, observation), action_values(other, observation))


def test_threads_that_share_a_network_do_not_share_its_buffers():
    network, found = network_of("vector"), []
    thread = threading.Thread(target=lambda: found.append(acting_arrays(network)))
    thread.start()
    thread.join()
    assert found[0] is not acting_arrays(network)
    assert acting_arrays(network) is acting_arrays(network)


def test_a_value_that_is_not_a_number_stays_one():
    network = network_of("vector", layer_norm=True)
    observation = {"observation": np.full((2, 5), np.nan, np.float32)}
    assert np.isnan(action_values(network, observation)).all()
