"""Networks chosen by the observation: images, categories, both together, and a user's own."""

from __future__ import annotations

import itertools
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
from pdqn.layers import build, of_run
from pdqn.networks import QNetwork, build_network, network_sizes
from pdqn.networks.encoders import Convolutions, FlatFields, ImpalaResNet, NatureCNN
from pdqn.networks.fused import FusedNetwork
from pdqn.networks.images import Image, as_image
from pdqn.networks.readings import Reading, readings
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


def image_of(field: FieldSpec) -> Image:
    image = as_image(field)
    assert image is not None
    return image


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

    @pytest.mark.parametrize("kind", ["impala", "impala_spectral"])
    def test_layers_that_are_never_normalised_are_named(self, kind: str):
        words = rf"layer_norm_convolutions = true: a network of kind {kind} has no such layers"
        with pytest.raises(UsageError, match=words):
            fused(spec_of(GRID), kind=kind, layer_norm_convolutions=True)

    def test_every_pixel_is_normalised_over_its_channels(self):
        encoder = Convolutions(image_of(GRID), 5, normalised=True)
        images = torch.randn(2, 4, 10, 10)
        plain = encoder.first(images)
        spread = plain.var(dim=1, correction=0, keepdim=True)
        wanted = (plain - plain.mean(dim=1, keepdim=True)) / (spread + 1e-5).sqrt()
        torch.testing.assert_close(encoder(images), wanted.relu().flatten(1), atol=1e-5, rtol=1e-4)

    def test_the_kind_that_is_asked_for_is_taken(self):
        assert isinstance(fused(spec_of(SCREEN), kind="impala").encoders[0], ImpalaResNet)
        assert len(fused(spec_of(GRID), kind="mlp").encoders) == 0

    @pytest.mark.parametrize(
        ("fields", "kind", "words"),
        [
            ((SPEED,), "conv", r"kind = conv needs an image of at least 8 x 8; .*speed \[2\]"),
            ((GRID,), "nature", r"kind = nature needs an image of at least 36 x 36"),
            ((GRID,), "hadamax", r"kind = hadamax needs an image of at least 36 x 36"),
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
            ((4, 64, 64, 3), (3, 64, 64, True)),
            ((4, 3, 64, 64), (3, 64, 64, False)),
            ((4, 10, 10, 27), (27, 10, 10, True)),
            ((64, 64, 3, 4), None),
            ((0, 64, 64, 3), None),
            ((2, 4, 64, 64, 3), None),
        ],
    )
    def test_which_axes_are_what(self, shape: tuple[int, ...], expected: Any):
        image = as_image(FieldSpec("x", shape, "uint8"))
        found = image and (image.channels, image.height, image.width, image.channels_last)
        assert found == expected

    @pytest.mark.parametrize(
        ("shape", "axis", "expected"),
        [
            ((8, 10, 20), "auto", (8, 10, 20)),
            ((8, 10, 20), "last", (20, 8, 10)),
            ((12, 12, 12), "auto", (12, 12, 12)),
            ((20, 8, 8), "last", (8, 20, 8)),
            ((40, 8, 9), "first", (40, 8, 9)),
            ((84, 84), "first", (1, 84, 84)),
            ((20, 20, 20, 3), "last", (3, 20, 20)),
            ((64, 64, 3), "first", None),
        ],
    )
    def test_the_axis_of_channels_can_be_told(
        self, shape: tuple[int, ...], axis: Any, expected: Any
    ):
        image = as_image(FieldSpec("x", shape, "uint8"), NetworkConfig(channels_axis=axis))
        assert (image and (image.channels, image.height, image.width)) == expected

    @pytest.mark.parametrize(
        ("field", "changes"),
        [
            (SPEED, {}),
            (SCREEN, {}),
            (FieldSpec("x", (64, 64, 3), "uint8"), {"channels_axis": "first"}),
            (FieldSpec("x", (64, 64, 3), "uint8"), {"kind": "mlp"}),
        ],
    )
    def test_an_axis_that_no_image_has_is_refused(self, field: FieldSpec, changes: Any):
        config = NetworkConfig(**{"channels_axis": "last", **changes})
        with pytest.raises(
            UsageError, match=r"^network\.channels_axis = .* has no image .*; use auto"
        ):
            build_network(spec_of(field), config)

    def test_a_told_axis_overrides_the_number_of_actions(self):
        spec = spec_of(FieldSpec("observation", (10, 9, 12), "uint8"), actions=90)
        assert network_sizes(spec, NetworkConfig()).kind == "spatial"
        assert network_sizes(spec, NetworkConfig(channels_axis="first")).kind == "conv"

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
        colours = spec_of(FieldSpec("observation", (4, 64, 64, 3), "uint8", scale=255.0))
        network = of_run({"network": {"images": "space"}})["network"]
        assert network_sizes(colours, NetworkConfig(**network)).kind == "mlp"

    def test_boards_with_more_planes_than_fields_a_side_have_a_value_for_every_place(self):
        for shape in ((8, 8, 20), (20, 8, 8)):
            field = FieldSpec("observation", shape, "float32")
            assert network_sizes(spec_of(field, actions=64), NetworkConfig()).kind == "spatial"
            assert network_sizes(spec_of(field, actions=65), NetworkConfig()).kind == "conv"
        for shape in ((10, 9, 12), (12, 10, 9)):
            field = FieldSpec("observation", shape, "float32")
            assert network_sizes(spec_of(field, actions=90), NetworkConfig()).kind == "spatial"

    def test_channels_and_frames_of_a_stack_become_channels_oldest_first(self):
        field = FieldSpec("observation", (8, 9, 2), "float32", stack=3)
        values = torch.arange(3 * 8 * 9 * 2.0).reshape(1, 3, 8, 9, 2)
        (prepared,) = fused(spec_of(field)).prepare({"observation": values})
        assert prepared.shape == (1, 6, 8, 9)
        for frame in range(3):
            for channel in range(2):
                wanted = values[0, frame, :, :, channel]
                assert torch.equal(prepared[0, 2 * frame + channel], wanted)

    @pytest.mark.parametrize("stack", [1, 2])
    def test_stacked_frames_of_the_environment_become_channels_oldest_first(self, stack: int):
        # As of gymnasium's FrameStackObservation around an environment with colours.
        field = FieldSpec("observation", (4, 8, 9, 3), "uint8", stack=stack)
        values = torch.randint(0, 256, (2, *field.stacked_shape), dtype=torch.uint8)
        network = fused(spec_of(field))
        (prepared,) = network.prepare({"observation": values})
        assert prepared.shape == (2, 12 * stack, 8, 9)
        steps = values.reshape(2, stack, 4, 8, 9, 3)
        for step, frame, channel in itertools.product(range(stack), range(4), range(3)):
            wanted = steps[:, step, frame, :, :, channel] / 255
            assert torch.allclose(prepared[:, 12 * step + 3 * frame + channel], wanted)
        assert network(prepared).shape == (2, 4)

    def test_stacks_with_channels_first_become_the_same_channels(self):
        field = FieldSpec("observation", (4, 3, 12, 12), "uint8")
        values = torch.randint(0, 256, (2, *field.shape), dtype=torch.uint8)
        (prepared,) = fused(spec_of(field)).prepare({"observation": values})
        assert torch.allclose(prepared, values.reshape(2, 12, 12, 12) / 255)

    def test_channels_first_stay_where_they_are(self):
        field = FieldSpec("observation", (3, 12, 10), "float32")
        values = torch.randn(2, 3, 12, 10)
        (prepared,) = fused(spec_of(field)).prepare({"observation": values})
        assert torch.equal(prepared, values)

    @pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
    def test_large_pictures_have_their_channels_last_in_memory_and_stay_as_they_were(
        self, dtype: str
    ):
        field = FieldSpec("observation", (40, 36), dtype, scale=5.0, stack=3)
        values = torch.randint(0, 256, (2, 3, 40, 36)).to(getattr(torch, dtype))
        before = values.clone()
        (prepared,) = fused(spec_of(field), images="space").prepare({"observation": values})
        assert prepared.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(prepared, before.float() * (1.0 / 5.0))
        assert torch.equal(values, before)

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

    @pytest.mark.parametrize(
        "kind",
        ["conv", "nature", "impala", "mlp", "impala_spectral", "hadamax", "hadamax_small"],
    )
    @pytest.mark.parametrize("distribution", ["none", "categorical", "quantile", "hl_gauss"])
    def test_every_kind_gives_a_value_for_every_action(self, kind: str, distribution: Any):
        spec = spec_of(FieldSpec("observation", (36, 40, 3), "uint8", stack=2), SPEED)
        sizes = {"hidden": 8} if kind == "mlp" else {"hidden": 8, "channels": 4}
        network = fused(spec, kind=kind, distribution=distribution, atoms=5, **sizes)
        values = network(*network.prepare(zeros(spec)))
        assert values.shape == (2, 4)
        assert values.dtype == torch.float32
        values.sum().backward()
        assert all(p.grad is not None for p in network.parameters())


class TestReadings:
    """Lines of ``pdqn check``."""

    @pytest.mark.parametrize(
        ("box", "words"),
        [
            (((4, 84, 84), 255), "uint8[4, 84, 84]: an image of 84 x 84; channels: 4, the first "
             "axis; divided by 255"),
            (((4, 64, 64, 3), 255), "uint8[4, 64, 64, 3]: an image of 64 x 64; channels: 3, the "
             "last axis, of each of 4 frames; divided by 255"),
            (((10, 10), 1), "uint8[10, 10]: an image of 10 x 10; channels: 1; not divided: at "
             "most 1"),
            (((5, 5, 3), 255), "uint8[5, 5, 3]: 75 plain numbers; divided by 255"),
            (((6,), 255), "uint8[6]: 6 plain numbers"),
            (((210, 160, 3), 255), "uint8[210, 160, 3]: an image of 210 x 160; channels: 3, the "
             "last axis; divided by 255"),
        ],
    )  # fmt: skip
    def test_a_reading_names_the_axes_and_the_scale(self, box: Any, words: str):
        shape, high = box
        spec = spec_of(*fields_of("x", spaces.Box(0, high, shape, np.uint8)))
        read = readings(spec, network_sizes(spec, NetworkConfig()))
        assert read == {"observation": Reading(words)}

    def test_floats_without_bounds_are_said_to_stay_as_they_are(self):
        spec = spec_of(*fields_of("x", spaces.Box(-np.inf, np.inf, (8, 8), np.float32)))
        read = readings(spec, network_sizes(spec, NetworkConfig()))["observation"]
        assert read.words.endswith("not divided: its space names no bound between 1 and 65,535")

    @pytest.mark.parametrize(
        ("shape", "advice"),
        [
            ((8, 10, 20), "that is a guess; network.channels_axis=last reads it otherwise"),
            ((20, 20, 20, 3), "network.channels_axis=last reads it as an image"),
        ],
    )
    def test_a_guess_names_the_setting_that_changes_it(self, shape: Any, advice: str):
        spec = spec_of(FieldSpec("observation", shape, "uint8"))
        assert readings(spec, network_sizes(spec, NetworkConfig()))["observation"].advice == advice
        told = network_sizes(spec, NetworkConfig(channels_axis="last"))
        assert readings(spec, told)["observation"].advice == ""

    def test_the_number_of_actions_is_no_guess(self):
        spec = spec_of(FieldSpec("observation", (12, 10, 9), "uint8"), actions=90)
        read = readings(spec, network_sizes(spec, NetworkConfig()))["observation"]
        assert "an image of 10 x 9; channels: 12, the first axis" in read.words
        assert not read.advice

    def test_sides_that_both_readings_share_with_the_actions_are_a_guess(self):
        spec = spec_of(FieldSpec("observation", (8, 8, 8), "uint8"), actions=64)
        sized = network_sizes(spec, NetworkConfig())
        assert sized.kind == "spatial"
        assert "channels_axis=first" in readings(spec, sized)["observation"].advice

    def test_other_fields_and_networks(self):
        mask = FieldSpec("action_mask", (4,), "int8", binary=True)
        kind = FieldSpec("kind", (2,), "int64", categories=(2, 3), start=(0, 0))
        spec = spec_of(mask, kind)
        read = readings(spec, network_sizes(spec, NetworkConfig()))
        assert read == {"kind": Reading("int64[2]: 5 numbers, one-hot")}
        assert readings(spec, NetworkConfig(kind="own:make")) == {}


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
        self.fields = FlatFields(spec.fields, NetworkConfig())
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
