"""Tests that a plan knows the size of a network that nobody has built."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from typing import Any

import pytest

from actors.environments.describe import describe_environment
from pdqn.config import NETWORK_KINDS, NetworkConfig
from pdqn.networks import build_network, network_sizes
from pdqn.networks.counting import parameter_bytes
from pdqn.networks.sizes import NOT_NORMALISED
from pdqn.specs import ACTION_MASK, EnvironmentSpec, FieldSpec

VECTOR = FieldSpec("position", (5,), "float32")
CATEGORY = FieldSpec("weather", (2,), "int64", categories=(3, 4), start=(0, 1))
MASK = FieldSpec(ACTION_MASK, (6,), "bool")
GRID = FieldSpec("grid", (10, 10, 4), "bool")
SCREEN = FieldSpec("screen", (50, 42), "uint8")
BOARD = FieldSpec("board", (9, 9, 2), "float32")

SPECS = {
    "vector": EnvironmentSpec("v", (VECTOR, CATEGORY, MASK), 6),
    "grid": EnvironmentSpec("g", (GRID, VECTOR), 6),
    "screen": EnvironmentSpec("s", (SCREEN,), 6).stacked(4),
    "stack": EnvironmentSpec("t", (FieldSpec("frames", (4, 40, 44, 3), "uint8", stack=2),), 6),
    "both": EnvironmentSpec("b", (GRID, SCREEN, CATEGORY), 6),
    "board": EnvironmentSpec("o", (BOARD, VECTOR), 81),
    "large board": EnvironmentSpec("o", (FieldSpec("board", (40, 33), "uint8"),), 40 * 33),
}
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"dueling": False},
    {"noisy": True, "layer_norm": True, "dueling": True},
    {"distribution": "categorical", "atoms": 11, "dueling": True},
    {"distribution": "quantile", "atoms": 7, "hidden": 24, "layers": 3},
    {"distribution": "hl_gauss", "atoms": 9, "layer_norm": True},
)
NORMALISED: dict[str, Any] = {"layer_norm": True, "layer_norm_convolutions": True}
KINDS = {
    "vector": ("auto", "mlp"),
    "grid": ("auto", "conv", "impala", "mlp", "impala_spectral", "hadamax_small"),
    "screen": ("auto", "nature", "conv", "impala", "impala_spectral", "hadamax", "hadamax_small"),
    "stack": ("auto", "impala", "impala_spectral"),
    "both": ("auto", "nature", "impala", "hadamax"),
    "board": ("auto", "spatial", "conv", "mlp"),
    "large board": ("auto", "spatial"),
}


def built_bytes(spec: EnvironmentSpec, config: NetworkConfig) -> int:
    return sum(tensor.nbytes for tensor in build_network(spec, config).state_dict().values())


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in KINDS.items() for kind in kinds]
)
def test_the_bytes_of_a_network_are_known_before_it_is_built(name: str, kind: str):
    spec = SPECS[name]
    takes = network_sizes(spec, NetworkConfig(kind=kind)).kind not in NOT_NORMALISED
    for options in (*OPTIONS, *([NORMALISED] if takes else [])):
        config = NetworkConfig(kind=kind, **options)
        expected = parameter_bytes(spec, network_sizes(spec, config))
        assert built_bytes(spec, config) == expected, options


@pytest.mark.parametrize(("size", "channels"), [*itertools.product((16, 64, 128), (None, 10))])
def test_so_are_those_of_a_q_map(size: int, channels: int | None):
    spec = describe_environment("pdqn/CirclePlacement-v0", {"map_size": size})
    for dueling in (True, False):
        config = NetworkConfig(channels=channels, dueling=dueling)
        sized = network_sizes(spec, config)
        assert sized.kind == "qmap"
        assert built_bytes(spec, config) == parameter_bytes(spec, sized)


def test_every_kind_is_among_them():
    kinds = {
        network_sizes(SPECS[name], NetworkConfig(kind=kind)).kind
        for name, several in KINDS.items()
        for kind in several
    }
    assert kinds == set(NETWORK_KINDS) - {"auto", "qmap"}


def test_a_size_needs_no_torch():
    code = (
        "import sys\n"
        "from pdqn.networks import network_sizes\n"
        "from pdqn.networks.counting import parameter_bytes\n"
        "print([name for name in ('torch', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_size_that_is_given_counts():
    small, large = (
        parameter_bytes(
            SPECS["vector"],
            network_sizes(SPECS["vector"], dataclasses.replace(NetworkConfig(), hidden=hidden)),
        )
        for hidden in (8, 64)
    )
    assert small < large


@pytest.mark.parametrize(("name", "kind"), [("vector", "mlp"), ("grid", "conv"), ("both", "auto")])
def test_the_statistics_of_plain_numbers_count(name: str, kind: str):
    spec = SPECS[name]
    config = network_sizes(spec, NetworkConfig(kind=kind, normalize=True))
    assert parameter_bytes(spec, config) == built_bytes(spec, config)
    plain = dataclasses.replace(config, normalize=False)
    assert parameter_bytes(spec, config) > parameter_bytes(spec, plain)


@pytest.mark.parametrize(("name", "kind"), [("vector", "mlp"), ("board", "spatial")])
def test_the_unit_of_the_outputs_counts(name: str, kind: str):
    spec = SPECS[name]
    config = network_sizes(spec, NetworkConfig(kind=kind, normalize_rewards=True))
    assert parameter_bytes(spec, config) == built_bytes(spec, config)
