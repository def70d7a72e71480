"""Networks chosen by the observation: images, categories, both together, and a user's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from actors.environments.fields import fields_of
from learner.learner import Learner
from pdqn.config import NetworkConfig
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.networks import QNetwork, build_network, network_sizes
from pdqn.networks.encoders import Convolutions, FlatFields, ImpalaResNet, NatureCNN
from pdqn.networks.fused import FusedNetwork
from pdqn.networks.images import as_image
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.samples import Sample

SCREEN = FieldSpec("observation", (84, 84), "uint8", stack=4)
GRID = FieldSpec("observation", (10, 10, 4), "bool", binary=True)
SPEED = FieldSpec("speed", (2,), "float32")


def spec_of(*fields: FieldSpec, actions: int = 4) -> EnvironmentSpec:
    return EnvironmentSpec("test/Images-v0", fields, actions)


def zeros(spec: EnvironmentSpec, batch: int = 2) -> dict[str, Tensor]:
    return {
        f.name: torch.from_numpy(
            np.zeros((batch, *f.stacked_shape), "bool" if f.binary else f.dtype)
        )
        for f in spec.fields
    }


def fused(spec: EnvironmentSpec, **changes: Any) -> FusedNetwork:
    network = build_network(spec, NetworkConfig(**changes))
    assert isinstance(network, FusedNetwork)
    return network


def parameters(network: QNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class TestChoice:
    @pytest.mark.parametrize(
        ("fields", "kind", "encoder"),
        [
            ((SCREEN,), "nature", NatureCNN),
            ((GRID,), "conv", Convolutions),
            ((GRID, SPEED), "conv", Convolutions),
            ((SPEED,), "mlp", None),
        ],
    )
    def test_the_kind_follows_from_the_observation(self, fields: Any, kind: str, encoder: Any):
        spec = spec_of(*fields)
        assert network_sizes(spec, NetworkConfig()).kind == kind
        encoders = list(fused(spec).encoders)
        assert [type(e) for e in encoders] == ([] if encoder is None else [encoder])

    def test_a_small_image_beside_a_large_one_gets_what_fits_it(self):
        network = fused(spec_of(GRID, FieldSpec("screen", (84, 84), "uint8")))
        assert [type(e) for e in network.encoders] == [Convolutions, NatureCNN]

    def test_the_kind_that_is_asked_for_is_taken(self):
        assert isinstance(fused(spec_of(SCREEN), kind="impala").encoders[0], ImpalaResNet)
        assert len(fused(spec_of(GRID), kind="mlp").encoders) == 0

    @pytest.mark.parametrize(
        ("fields", "kind", "words"),
        [
            ((SPEED,), "conv", r"kind = conv needs an image of at least 8 x 8; .*speed \[2\]"),
            ((GRID,), "nature", r"kind = nature needs an image of at least 36 x 36"),
        ],
    )
    def test_a_kind_that_does_not_fit_is_refused(self, fields: Any, kind: str, words: str):
        with pytest.raises(UsageError, match=words):
            build_network(spec_of(*fields), NetworkConfig(kind=kind))

    def test_another_name_is_refused_by_the_configuration(self):
        with pytest.raises(UsageError, match=r"network\.kind = 'cnn'; expected auto, mlp, conv"):
            build(("test", {"network": {"kind": "cnn"}}))

    def test_sizes_that_are_told_are_kept(self):
        sizes = network_sizes(spec_of(SCREEN), NetworkConfig(hidden=64))
        assert (sizes.hidden, sizes.layers, sizes.channels) == (64, 1, 32)


class TestImages:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((84, 84), (1, 84, 84, True)),
            ((10, 10, 4), (4, 10, 10, True)),
            ((3, 64, 48), (3, 64, 48, False)),
            # Two of three sides that are equal are height and width, however many planes there are.
            ((8, 8, 20), (20, 8, 8, True)),
            ((20, 8, 8), (20, 8, 8, False)),
            ((17, 9, 9), (17, 9, 9, False)),
            ((10, 10, 27), (27, 10, 10, True)),
            ((19, 19, 17), (17, 19, 19, True)),
            ((1, 84, 84), (1, 84, 84, False)),
            ((4, 84, 84), (4, 84, 84, False)),
            ((8, 8, 8), (8, 8, 8, True)),
            ((84, 3, 84), None),
            ((3, 3, 84), None),
            ((8, 8, 0), None),
            ((4, 10), None),
            ((9,), None),
            ((20, 20, 20, 3), None),
        ],
    )
    def test_which_axes_are_what(self, shape: tuple[int, ...], expected: Any):
        image = as_image(FieldSpec("x", shape, "uint8"))
        found = image and (image.channels, image.height, image.width, image.channels_last)
        assert found == expected

    def test_bytes_are_scaled_to_one_and_other_numbers_are_not(self):
        for dtype, largest in (("uint8", 1.0), ("float32", 255.0)):
            network = fused(spec_of(FieldSpec("observation", (8, 8), dtype)))
            full = torch.full((1, 8, 8), 255, dtype=getattr(torch, dtype))
            (prepared,) = network.prepare({"observation": full})
            assert prepared.max().item() == pytest.approx(largest)

    @pytest.mark.parametrize(
        ("low", "high", "dtype", "scale"),
        [
            (0, 255, "uint8", 255.0),
            (0, 1, "uint8", 1.0),
            (0, 15, "uint8", 15.0),
            (-128, 127, "int8", 128.0),
            (0, 65535, "uint16", 65535.0),
            (0, 255, "int64", 255.0),
            (0.0, 255.0, "float32", 255.0),
            (-1.0, 1.0, "float32", 1.0),
            (0.0, 0.5, "float32", 1.0),
            (0.0, np.inf, "float32", 1.0),
            (-np.inf, np.inf, "int32", 1.0),
            (0, 10**6, "int32", 1.0),
            (np.zeros((8, 8)), np.eye(8) * 255, "uint8", 255.0),
            (0, 1, "bool", 1.0),
        ],
    )
    def test_pictures_are_divided_by_what_their_space_allows(
        self, low: Any, high: Any, dtype: str, scale: float
    ):
        box = spaces.Box(low, high, (8, 8), np.dtype(dtype).type)
        (field,) = fields_of("x", box)
        network = fused(spec_of(field))
        full = torch.from_numpy(box.high.astype(float).clip(max=1000).astype(dtype)[None])
        (prepared,) = network.prepare({"observation": full})
        assert prepared.max().item() == pytest.approx(full.double().max().item() / scale)
        # A network without convolutions, for which a picture is a vector, gets the same numbers.
        (flat,) = fused(spec_of(field), kind="mlp").prepare({"observation": full})
        assert torch.equal(flat, prepared.flatten(1))

    def test_vectors_and_numbers_stay_as_they_are(self):
        for shape in ((128,), ()):
            (field,) = fields_of("x", spaces.Box(0, 255, shape, np.uint8))
            full = torch.full((1, *shape), 200, dtype=torch.uint8)
            (prepared,) = fused(spec_of(field)).prepare({"observation": full})
            assert prepared.max() == 200

    def test_models_of_earlier_versions_are_read_as_before(self):
        (field,) = fields_of("x", spaces.Box(0, 1, (20, 8, 8), np.uint8))
        (before,) = fused(spec_of(field), images="dtype").prepare(
            {"observation": torch.ones(1, 20, 8, 8, dtype=torch.uint8)}
        )
        assert before.shape == (1, 8, 20, 8)
        assert before.max().item() == pytest.approx(1 / 255)
        (flat,) = fused(spec_of(field), images="dtype", kind="mlp").prepare(
            {"observation": torch.full((1, 20, 8, 8), 7, dtype=torch.uint8)}
        )
        assert flat.max() == 7

    def test_boards_with_more_planes_than_fields_a_side_have_a_value_for_every_place(self):
        for shape in ((8, 8, 20), (20, 8, 8)):
            field = FieldSpec("observation", shape, "float32")
            assert network_sizes(spec_of(field, actions=64), NetworkConfig()).kind == "spatial"
            assert network_sizes(spec_of(field, actions=65), NetworkConfig()).kind == "conv"

    def test_channels_and_frames_of_a_stack_become_channels_oldest_first(self):
        field = FieldSpec("observation", (8, 9, 2), "float32", stack=3)
        values = torch.arange(3 * 8 * 9 * 2.0).reshape(1, 3, 8, 9, 2)
        (prepared,) = fused(spec_of(field)).prepare({"observation": values})
        assert prepared.shape == (1, 6, 8, 9)
        for frame in range(3):
            for channel in range(2):
                wanted = values[0, frame, :, :, channel]
                assert torch.equal(prepared[0, 2 * frame + channel], wanted)

    def test_channels_first_stay_where_they_are(self):
        field = FieldSpec("observation", (3, 12, 10), "float32")
        values = torch.randn(2, 3, 12, 10)
        (prepared,) = fused(spec_of(field)).prepare({"observation": values})
        assert torch.equal(prepared, values)

    def test_the_nature_network_has_the_papers_size(self):
        # Without dueling: 8224 + 32832 + 36928 + 1606144 + 2052 for four actions.
        assert parameters(fused(spec_of(SCREEN), dueling=False)) == 1_686_180

    def test_the_impala_network_has_the_papers_features(self):
        # Fifteen convolutions, and 32 x 11 x 11 features of an 84 x 84 screen.
        network = fused(spec_of(SCREEN), kind="impala")
        first = network.trunk[0]
        assert isinstance(first, torch.nn.Linear)
        assert first.in_features == 32 * 11 * 11
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert len(convolutions) == 15

    @pytest.mark.parametrize("kind", ["conv", "nature", "impala", "mlp"])
    @pytest.mark.parametrize("distribution", ["none", "categorical", "quantile"])
    def test_every_kind_gives_a_value_for_every_action(self, kind: str, distribution: Any):
        spec = spec_of(FieldSpec("observation", (36, 40, 3), "uint8", stack=2), SPEED)
        sizes = {"hidden": 8} if kind == "mlp" else {"hidden": 8, "channels": 4}
        network = fused(spec, kind=kind, distribution=distribution, atoms=5, **sizes)
        values = network(*network.prepare(zeros(spec)))
        assert values.shape == (2, 4)
        assert values.dtype == torch.float32
        values.sum().backward()
        assert all(p.grad is not None for p in network.parameters())


class TestCategories:
    def test_a_category_is_one_hot_from_its_first_value_on(self):
        field = FieldSpec("observation", (), "int64", categories=(4,), start=(-1,))
        (inputs,) = fused(spec_of(field)).prepare({"observation": torch.tensor([-1, 2])})
        assert inputs.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]

    def test_several_categories_stand_side_by_side_for_every_frame(self):
        field = FieldSpec("observation", (2,), "int64", stack=2, categories=(2, 3), start=(0, 0))
        values = torch.tensor([[[1, 0], [0, 2]]])
        (inputs,) = fused(spec_of(field)).prepare({"observation": values})
        assert inputs.tolist() == [[0, 1, 1, 0, 0, 1, 0, 0, 0, 1]]


# ---- a user's own ----


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Provide the documentation's example as a module."""
    text = Path("docs/networks.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(# my_network\.py\n.*?)```", text, re.DOTALL)
    assert code is not None
    (tmp_path / "my_network.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_network"
    sys.modules.pop("my_network", None)


def test_the_documented_example_is_built_and_used(own_module: str):
    spec = spec_of(SPEED)
    network = build_network(spec, NetworkConfig(kind=f"{own_module}:make", hidden=16))
    assert network(*network.prepare(zeros(spec))).shape == (2, 4)


def bad_shape(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    return fused(EnvironmentSpec(spec.id, spec.fields, spec.num_actions + 1))


def raising(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    raise ZeroDivisionError("nobody has thought of this")


def without_parameters() -> QNetwork:
    raise AssertionError("it is not called")


class Asks(QNetwork):
    """A network that asks for a field that the environment does not have."""

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (observation["obs"],)


def asking(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    return Asks()


def not_finite(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    network = fused(spec, dueling=False)
    assert isinstance(network.head.advantage, torch.nn.Linear)
    torch.nn.init.constant_(network.head.advantage.bias, torch.nan)
    return network


def no_network(spec: EnvironmentSpec, config: NetworkConfig) -> int:
    return 7


def plain_module(spec: EnvironmentSpec, config: NetworkConfig) -> torch.nn.Module:
    return torch.nn.Linear(2, 4)


class Own(QNetwork):
    """A network with dropout while it learns, and with a distribution."""

    def __init__(self, atoms: int, support: Tensor | None) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 4 * atoms))
        self.support = support

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (observation["speed"],)

    def forward(self, *prepared: Tensor) -> Tensor:
        return self.distribution(*prepared).mean(dim=2)

    def distribution(self, *prepared: Tensor) -> Tensor:
        return self.layers(prepared[0]).unflatten(1, (4, -1))


def without_support(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    return Own(config.atoms, None)


def with_seven_returns(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    return Own(config.atoms, torch.zeros(7))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("test_image_networks:bad_shape", r"forward gave \[2, 5\] for two observations, not"),
        ("test_image_networks:not_finite", r"forward gave values that are not finite"),
        ("test_image_networks:no_network", r"it made int; a pdqn\.networks\.QNetwork"),
        ("test_image_networks:plain_module", r"it made Linear; a pdqn\.networks\.QNetwork"),
        ("test_image_networks:nothing", r"has no attribute 'nothing'"),
        ("no_such_module:make", r"No module named 'no_such_module'"),
        ("test_image_networks:raising", r"ZeroDivisionError: nobody .*test_image_networks\.py:\d+"),
        ("test_image_networks:without_parameters", r"TypeError: without_parameters\(\) takes 0"),
        ("test_image_networks:asking", r"KeyError: 'obs' \(.*networks\.py:\d+\), observing speed"),
    ],
)
def test_an_own_network_that_does_not_fit_is_refused(name: str, words: str):
    with pytest.raises(UsageError, match=rf"network\.kind = {name}: .*{words}"):
        build_network(spec_of(SPEED), NetworkConfig(kind=name))


class Flat(QNetwork):
    """A network of one layer over all fields as one vector."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        super().__init__()
        self.fields = FlatFields(spec.fields)
        self.layer = torch.nn.Linear(self.fields.size, spec.num_actions)

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return (self.fields.prepare(observation),)

    def forward(self, *prepared: Tensor) -> Tensor:
        return self.layer(prepared[0])


def flat(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    return Flat(spec)


def test_an_own_network_is_tried_with_categories_that_there_are():
    level = FieldSpec("level", (), "int64", categories=(3,), start=(7,))
    build_network(spec_of(SPEED, level), NetworkConfig(kind="test_image_networks:flat"))


@pytest.mark.parametrize(
    ("name", "distribution", "shape"),
    [
        ("without_support", "categorical", r"None, but .* needs \[51\]"),
        ("with_seven_returns", "categorical", r"\[7\], but .* needs \[51\]"),
        ("with_seven_returns", "quantile", r"\[7\], but .* needs None"),
    ],
)
def test_atoms_that_stand_for_no_returns_are_refused(name: str, distribution: Any, shape: str):
    config = NetworkConfig(kind=f"test_image_networks:{name}", distribution=distribution)
    with pytest.raises(UsageError, match=rf"its support has the shape {shape}"):
        build_network(spec_of(SPEED), config)


def test_the_returns_of_atoms_follow_an_own_network_to_its_device():
    network = Own(3, torch.zeros(3)).to("meta")
    assert network.support is not None
    assert network.support.device.type == "meta"


class WithItsOwn(QNetwork):
    """A network with the atoms' returns as a class attribute."""

    support = torch.linspace(-1, 1, 3)


def test_an_own_network_may_have_the_returns_of_its_atoms_in_its_class():
    support = WithItsOwn().support
    assert support is not None
    assert support.tolist() == [-1.0, 0.0, 1.0]


def test_a_network_is_built_for_acting_without_dropout():
    kind = "test_image_networks:without_support"
    network = build_network(spec_of(SPEED), NetworkConfig(kind=kind, distribution="quantile"))
    prepared = network.prepare({"speed": torch.ones(3, 2)})
    assert torch.equal(network(*prepared), network(*prepared))


def test_the_documented_example_learns(own_module: str):
    settings = {"device": "cpu", "precision": "float32", "learning_rate": 1e-2}
    layer = {"learner": settings, "network": {"kind": f"{own_module}:make"}}
    learner = Learner(build(("test", layer)), spec_of(SPEED))
    rng = np.random.default_rng(0)
    observation = {"speed": rng.normal(size=(8, 2)).astype(np.float32)}
    sample = Sample(
        keys=np.arange(8),
        observation=observation,
        bootstrap_observation=observation,
        action=np.zeros(8, np.int32),
        n_step_return=np.ones(8, np.float32),
        discount=np.zeros(8, np.float32),
        sampling_priority=np.ones(8),
        parameter_version=np.zeros(8, np.int64),
    )
    losses = [learner.step(learner.tensors(sample)).loss for _ in range(100)]
    assert losses[-1] < 0.1 * losses[0]


def test_options_that_an_own_network_cannot_honour_are_refused(own_module: str):
    kind = f"{own_module}:make"
    with pytest.raises(UsageError, match=r"no pdqn\.networks\.noisy\.NoisyLinear"):
        build_network(spec_of(SPEED), NetworkConfig(kind=kind, noisy=True))
    with pytest.raises(UsageError, match=r"distribution"):
        build_network(spec_of(SPEED), NetworkConfig(kind=kind, distribution="quantile"))
