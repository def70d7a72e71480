"""Observations, packed and plain, and the seeds of everything that is random."""

from __future__ import annotations

import itertools

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdqn import seeds
from pdqn.specs import ALLOWED_DTYPES, EnvironmentSpec, FieldSpec

SPEC = EnvironmentSpec(
    "test/Maps-v0",
    (
        FieldSpec("action_mask", (11,), "int8", binary=True),
        FieldSpec("map", (2, 3), "float16"),
        FieldSpec("steps_left", (), "int32"),
    ),
    num_actions=11,
    headline_metric="coverage",
)


@settings(deadline=None, max_examples=200)
@given(
    shape=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    batch=st.integers(1, 4),
    dtype=st.sampled_from(["bool", "int8", "uint8", "float32"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_binary_fields_of_any_size_go_to_bits_and_back(shape, batch, dtype, seed):
    field = FieldSpec("mask", shape, dtype, binary=True)
    values = np.random.default_rng(seed).integers(0, 2, (batch, *shape)).astype(dtype)
    packed = field.pack(values)
    assert packed.shape == (batch, *field.stored_shape)
    assert packed.dtype == field.stored_dtype == np.uint8
    assert packed.nbytes == batch * field.stored_bytes == batch * -(-values[0].size // 8)
    unpacked = field.unpack(packed)
    assert unpacked.dtype == bool
    np.testing.assert_array_equal(unpacked, values.astype(bool))


def test_eleven_bits_take_two_bytes_the_first_bit_highest():
    field = FieldSpec("mask", (11,), "int8", binary=True)
    assert field.stored_shape == (2,)
    packed = field.pack(np.array([[1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1]], np.int8))
    np.testing.assert_array_equal(packed, [[0b1000_0001, 0b0110_0000]])


@pytest.mark.parametrize("dtype", ALLOWED_DTYPES)
def test_fields_that_are_not_binary_are_recorded_as_they_are(dtype):
    field = FieldSpec("value", (2, 3), dtype)
    values = np.arange(24).reshape(4, 2, 3).astype(dtype)
    np.testing.assert_array_equal(field.unpack(field.pack(values)), values)
    assert field.pack(values).dtype == dtype
    assert field.stored_bytes == 6 * np.dtype(dtype).itemsize


def test_values_of_another_dtype_are_recorded_in_that_of_the_field():
    assert FieldSpec("value", (2,), "float32").pack(np.ones((1, 2))).dtype == np.float32


def test_bits_of_a_matrix_that_is_not_contiguous_keep_their_places():
    field = FieldSpec("mask", (3, 5), "bool", binary=True)
    values = np.random.default_rng(0).integers(0, 2, (3, 5, 4)).astype(bool).transpose(2, 0, 1)
    np.testing.assert_array_equal(field.unpack(field.pack(values)), values)


def test_blank_observations_could_be_shown():
    direction = FieldSpec("direction", (2,), "int64", categories=(3, 4), start=(-1, 2))
    spec = EnvironmentSpec("test/Stacked-v0", (direction, *SPEC.fields), 11).stacked(2)
    blank = spec.blank(3)
    assert blank["direction"].tolist() == [[[-1, 2], [-1, 2]]] * 3
    assert direction.is_known(blank["direction"])
    assert blank["action_mask"].shape == (3, 11)
    assert blank["action_mask"].dtype == bool
    assert blank["map"].shape == (3, 2, 2, 3)
    assert blank["map"].dtype == np.float16
    assert blank["steps_left"].shape == (3, 2)
    assert not blank["map"].any()


def test_whole_observations_are_packed_field_by_field():
    rng = np.random.default_rng(0)
    observation = {
        "action_mask": rng.integers(0, 2, (5, 11), np.int8),
        "map": rng.random((5, 2, 3)).astype(np.float16),
        "steps_left": rng.integers(0, 99, 5, np.int32),
    }
    packed = SPEC.pack(observation)
    assert {name: (a.dtype.name, a.shape) for name, a in packed.items()} == {
        "action_mask": ("uint8", (5, 2)),
        "map": ("float16", (5, 2, 3)),
        "steps_left": ("int32", (5,)),
    }
    assert sum(array.nbytes for array in packed.values()) == 5 * SPEC.observation_bytes == 5 * 18
    for name, array in SPEC.unpack(packed).items():
        np.testing.assert_array_equal(array, observation[name])


class TestStacks:
    def test_all_fields_but_the_mask_are_stacked(self):
        spec = SPEC.stacked(4)
        assert [field.stack for field in spec.fields] == [1, 4, 4]
        assert spec.frame_stack == 4
        assert SPEC.frame_stack == 1
        assert spec.stacked(1) == SPEC

    def test_frames_are_recorded_singly_and_reach_networks_together(self):
        field = FieldSpec("map", (2, 3), "float16", stack=4)
        assert field.stored_shape == (2, 3)
        assert field.stored_stacked_shape == field.stacked_shape == (4, 2, 3)
        binary = FieldSpec("mask", (11,), "int8", binary=True, stack=4)
        assert binary.stored_shape == (2,)
        assert binary.stored_stacked_shape == (4, 2)
        assert binary.stacked_shape == (4, 11)
        assert SPEC.stacked(4).observation_bytes == SPEC.observation_bytes

    def test_a_stack_of_one_has_no_axis(self):
        field = FieldSpec("map", (2, 3), "float16")
        assert field.stacked_shape == field.stored_stacked_shape == (2, 3)

    def test_stacks_of_bits_are_unpacked_frame_by_frame(self):
        field = FieldSpec("mask", (3, 5), "bool", binary=True, stack=2)
        values = np.random.default_rng(0).integers(0, 2, (4, 2, 3, 5)).astype(bool)
        packed = np.stack([field.pack(values[:, k]) for k in range(2)], axis=1)
        assert packed.shape == (4, *field.stored_stacked_shape)
        np.testing.assert_array_equal(field.unpack(packed), values)

    @pytest.mark.parametrize("stack", [0, -1, 33])
    def test_a_stack_that_makes_no_sense_is_refused(self, stack):
        values = SPEC.to_map()
        values["fields"][1]["stack"] = stack
        with pytest.raises(ValueError, match=r"observation field map has a stack of "):
            EnvironmentSpec.from_map(values)


def test_a_spec_is_masked_if_its_observations_say_which_actions_are_valid():
    assert SPEC.masked
    assert not EnvironmentSpec("x", SPEC.fields[1:], 11).masked


def test_a_spec_goes_through_msgpack_and_back():
    packed = msgpack.packb(SPEC.to_map())
    assert packed is not None
    assert EnvironmentSpec.from_map(msgpack.unpackb(packed)) == SPEC
    assert EnvironmentSpec.from_map(SPEC.stacked(3).to_map()) == SPEC.stacked(3)
    plain = EnvironmentSpec("x", (FieldSpec("observation", (4,), "float32"),), 2)
    assert EnvironmentSpec.from_map(plain.to_map()) == plain
    picture = FieldSpec("x", (8, 8), "uint8", scale=15.0)
    (field,) = EnvironmentSpec.from_map(EnvironmentSpec("x", (picture,), 2).to_map()).fields
    assert field.scale == 15


@pytest.mark.parametrize("dtype", ["object", "S8", "datetime64[s]", "complex64", ">f4", "nonsense"])
def test_a_dtype_that_no_column_may_have_is_refused(dtype):
    values = SPEC.to_map()
    values["fields"][1]["dtype"] = dtype
    with pytest.raises(ValueError, match=r"observation field map has dtype "):
        EnvironmentSpec.from_map(values)


class TestSeeds:
    @pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 - 1])
    @pytest.mark.parametrize("incarnation", [0, 3])
    def test_all_environments_of_a_run_train_on_distinct_seeds_below_a_million(
        self, seed, incarnation
    ):
        num_actors, per_actor = 500, 64
        drawn = [
            s
            for actor in range(num_actors)
            for s in seeds.environment_seeds(seed, actor * per_actor, per_actor, incarnation)
        ]
        assert len(set(drawn)) == num_actors * per_actor
        assert min(drawn) >= 0
        assert max(drawn) < seeds.HELD_OUT_SEED == 1_000_000

    def test_not_before_a_million_environments_does_a_seed_come_again(self):
        drawn = seeds.environment_seeds(0, 0, 1_000_001, 0)
        assert len(set(drawn)) == 1_000_000
        assert drawn[0] == drawn[-1]

    def test_an_environments_seed_does_not_depend_on_how_environments_are_dealt_out(self):
        whole = seeds.environment_seeds(7, 0, 12, 0)
        parts = [s for first in (0, 4, 8) for s in seeds.environment_seeds(7, first, 4, 0)]
        assert whole == parts

    def test_a_restarted_actor_gets_other_seeds(self):
        first, second = (seeds.environment_seeds(7, 0, 8, incarnation) for incarnation in (0, 1))
        assert first != second

    def test_held_out_seeds_count_up_from_a_million(self):
        assert seeds.held_out_seeds(3) == [1_000_000, 1_000_001, 1_000_002]

    def test_generators_repeat_and_differ_by_seed_role_index_and_incarnation(self):
        keys = list(itertools.product((0, 1), ("actor", "learner"), (0, 1), (0, 1)))
        streams = {key: tuple(seeds.generator(*key).integers(2**62, size=4)) for key in keys}
        assert len(set(streams.values())) == len(keys) == 16
        assert all(
            tuple(seeds.generator(*key).integers(2**62, size=4)) == stream
            for key, stream in streams.items()
        )

    def test_seeds_for_torch_repeat_differ_and_are_in_its_range(self):
        keys = list(itertools.product((0, 1), ("actor", "learner"), (0, 1), (0, 1)))
        drawn = [seeds.torch_seed(*key) for key in keys]
        assert drawn == [seeds.torch_seed(*key) for key in keys]
        assert len(set(drawn)) == 16
        assert all(0 <= seed < 2**63 for seed in drawn)
