import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pdqn.discs import disc_sums, half_widths


def disc(size: int, x: int, y: int, radius: int) -> NDArray[np.bool_]:
    """Mark the cells of a disc, clipped to the map, straight from the definition."""
    i, j = np.mgrid[:size, :size]
    return (i - x) ** 2 + (j - y) ** 2 <= radius**2


def naive_disc_sums(grid: NDArray[np.floating], radius: int) -> NDArray[np.float64]:
    size = len(grid)
    sums = np.zeros((size, size))
    if radius > 0:
        for x, y in np.ndindex(size, size):
            sums[x, y] = grid[disc(size, x, y, radius)].sum(dtype=np.float64)
    return sums


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 13),
    radii=st.lists(st.integers(-1, 30), min_size=1, max_size=3),
    dtype=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_disc_sums_equal_those_of_a_naive_twin(size, radii, dtype, seed):
    maps = np.random.default_rng(seed).random((len(radii), size, size)).astype(dtype)
    sums = disc_sums(maps, radii)
    assert sums.dtype == np.float32
    expected = np.stack([naive_disc_sums(g, r) for g, r in zip(maps, radii, strict=True)])
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-6)


def test_sums_stay_accurate_behind_a_cell_that_dwarfs_all_others():
    grid = np.ones((1, 32, 32), np.float32)
    grid[0, :, 0] = 1e9  # it would absorb all later cells in float32 prefix sums
    sums = disc_sums(grid, [1])
    np.testing.assert_array_equal(sums[0, 1:-1, 2:-1], 5.0)


def test_no_disc_sums_to_zero():
    assert not disc_sums(np.ones((2, 8, 8), np.float32), [0, -3]).any()


def test_maps_need_not_be_contiguous():
    maps = np.random.default_rng(0).random((2, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(
        disc_sums(maps.swapaxes(1, 2), [3, 2]), disc_sums(maps, [3, 2]).swapaxes(1, 2)
    )


def test_the_maps_are_left_alone():
    maps = np.random.default_rng(0).random((2, 16, 16)).astype(np.float32)
    before = maps.copy()
    disc_sums(maps, [3, 2])
    np.testing.assert_array_equal(maps, before)


@pytest.mark.parametrize("radius", [*range(1, 41), 4096])
def test_half_widths_are_those_of_the_definition(radius):
    offsets = np.arange(-radius, radius + 1)
    widths = half_widths(radius)
    assert (widths**2 + offsets**2 <= radius**2).all()
    assert ((widths + 1) ** 2 + offsets**2 > radius**2).all()


@pytest.mark.parametrize(
    ("shape", "radii"), [((8, 8), [1]), ((1, 8, 9), [1]), ((2, 8, 8), [1]), ((1, 8, 8), [1.5])]
)
def test_arguments_of_the_wrong_shape_or_type_are_refused(shape, radii):
    with pytest.raises(ValueError, match="must be"):
        disc_sums(np.ones(shape, np.float32), radii)
