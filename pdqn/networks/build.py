"""Choice, sizes and construction of an environment's network, with checks of what fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from pdqn import own_modules
from pdqn.config import NetworkConfig
from pdqn.errors import UsageError, with_place
from pdqn.networks.encoders import NATURE_SIDE_MIN
from pdqn.networks.fused import FusedNetwork, images
from pdqn.networks.interface import QNetwork
from pdqn.networks.noisy import noisy_layers
from pdqn.networks.qmap import QMAP_FIELDS, QMap, check_qmap
from pdqn.networks.spatial import SpatialNetwork, place_images
from pdqn.specs import EnvironmentSpec
from pdqn.wire import MAX_COLUMNS

# Default sizes of each kind, None for sizes that it does not have. Those of the MLP are customary;
# the others are from the papers.
_SIZES: dict[str, dict[str, int | None]] = {
    "mlp": {"hidden": 256, "layers": 2, "channels": None},
    "conv": {"hidden": 128, "layers": 1, "channels": 16},
    "nature": {"hidden": 512, "layers": 1, "channels": 32},
    "impala": {"hidden": 256, "layers": 1, "channels": 16},
    "spatial": {"hidden": 128, "layers": 4, "channels": 32},
    "qmap": {"hidden": None, "layers": None, "channels": 24},
}


def network_sizes(spec: EnvironmentSpec, config: NetworkConfig) -> NetworkConfig:
    """Fill in the kind and the sizes that the configuration leaves to auto.

    Raises:
        UsageError: the kind cannot take the environment's observations, or does not have a given
            size.
    """
    kind = _kind(spec, config)
    if kind not in _SIZES:
        return dataclasses.replace(config, kind=kind)
    filled = {}
    for key, size in _SIZES[kind].items():
        given = getattr(config, key)
        if size is None and given is not None:
            sized = ", ".join(f"network.{name}" for name, size in _SIZES[kind].items() if size)
            raise UsageError(
                f"network.{key} = {given}: a network of kind {kind} does not use it; "
                f"it is sized by {sized}"
            )
        filled[key] = size if given is None else given
    return dataclasses.replace(config, kind=kind, **filled)


def build_network(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    """Build a freshly initialised network for an environment, in evaluation mode.

    Raises:
        UsageError: no network fits the environment's observations, or options cannot be combined.
    """
    sized = network_sizes(spec, config)
    _check_distribution(sized)
    if ":" in sized.kind:
        return _build_own(spec, sized).eval()
    if sized.kind == "qmap":
        check_qmap(spec, sized)
        return QMap(spec, sized).eval()
    if sized.kind == "spatial":
        return SpatialNetwork(spec, sized).eval()
    return FusedNetwork(spec, sized).eval()


def _kind(spec: EnvironmentSpec, config: NetworkConfig) -> str:
    names = {field.name for field in spec.fields}
    sides = [image.side for image in images(spec, config.images)]
    if config.kind == "auto":
        # A wrapper may have removed fields.
        if spec.circle_placement and names >= QMAP_FIELDS:
            return "qmap"
        if place_images(spec, config.images):
            return "spatial"
        if not sides:
            return "mlp"
        return "nature" if max(sides) >= NATURE_SIDE_MIN else "conv"
    if config.kind == "qmap" and not names >= QMAP_FIELDS:
        raise UsageError(
            f"network.kind = qmap needs the observation fields {', '.join(sorted(QMAP_FIELDS))}; "
            f"{spec.id} has {', '.join(sorted(names))}"
        )
    if config.kind == "spatial" and not place_images(spec, config.images):
        raise UsageError(
            f"network.kind = spatial needs images with a pixel for each of {spec.num_actions} "
            f"actions; {spec.id} has {_shapes(spec)}: use auto"
        )
    least = {"conv": 8, "impala": 8, "nature": NATURE_SIDE_MIN}.get(config.kind)
    if least is not None and max(sides, default=0) < least:
        raise UsageError(
            f"network.kind = {config.kind} needs an image of at least {least} x {least}; {spec.id} "
            f"has {_shapes(spec)}: use mlp or auto"
        )
    return config.kind


def _shapes(spec: EnvironmentSpec) -> str:
    return ", ".join(f"{field.name} {list(field.shape)}" for field in spec.fields)


def _check_distribution(config: NetworkConfig) -> None:
    if config.distribution == "categorical" and config.value_min >= config.value_max:
        raise UsageError(
            f"network.value_min = {config.value_min:g} and value_max = {config.value_max:g}: the "
            "first atom must lie below the last"
        )


# ---- a network of the user's own ----


def _build_own(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    """Build a network with ``package.module:factory`` from (spec, config), and try it once."""
    where = f"network.kind = {config.kind}"
    network = _call_factory(where, spec, config)
    own = type(network).distribution
    if config.distribution != "none" and own is QNetwork.distribution:
        raise UsageError(
            f"{where}: it has no method distribution, which network.distribution = "
            f"{config.distribution} needs; set that to none"
        )
    support = network.support
    atoms = None if support is None else list(support.shape)
    wanted = [config.atoms] if config.distribution == "categorical" else None
    if atoms != wanted:
        raise UsageError(
            f"{where}: its support has the shape {atoms}, but network.distribution = "
            f"{config.distribution} needs {wanted}: the returns of the atoms if it is "
            "categorical, else None"
        )
    if config.noisy and not noisy_layers(network):
        raise UsageError(
            f"{where}: it has no pdqn.networks.noisy.NoisyLinear, which network.noisy = true needs"
        )
    if len(network.state_dict()) > MAX_COLUMNS:
        raise UsageError(
            f"{where}: {len(network.state_dict())} tensors; at most {MAX_COLUMNS} are published"
        )
    _try_once(where, network, spec, config)
    return network


def _call_factory(where: str, spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    module, _, name = config.kind.partition(":")
    try:
        factory = getattr(own_modules.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{where}: {error}") from error
    try:
        network = factory(spec, config)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{where}: {with_place(error)}") from error
    if not isinstance(network, QNetwork):
        raise UsageError(
            f"{where}: it made {type(network).__name__}; a pdqn.networks.QNetwork is needed, with "
            "the methods prepare and forward"
        )
    return network


def _try_once(where: str, network: QNetwork, spec: EnvironmentSpec, config: NetworkConfig) -> None:
    """Check that two observations give finite values of the right shape."""
    blank = {name: torch.from_numpy(values) for name, values in spec.blank(2).items()}
    try:
        _check_outputs(where, network, spec, config, blank)
    except UsageError:
        raise
    except Exception as error:
        names = ", ".join(blank)
        raise UsageError(f"{where}: {with_place(error)}, observing {names}") from error


def _check_outputs(
    where: str,
    network: QNetwork,
    spec: EnvironmentSpec,
    config: NetworkConfig,
    observation: dict[str, torch.Tensor],
) -> None:
    with torch.inference_mode():
        prepared = network.prepare(observation)
        values = network(*prepared)
        _check_output(where, "forward", values, (2, spec.num_actions))
        if config.distribution != "none":
            wanted = (2, spec.num_actions, config.atoms)
            _check_output(where, "distribution", network.distribution(*prepared), wanted)


def _check_output(where: str, method: str, values: Any, wanted: tuple[int, ...]) -> None:
    if not isinstance(values, torch.Tensor) or tuple(values.shape) != wanted:
        got = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise UsageError(f"{where}: {method} gave {got} for two observations, not {list(wanted)}")
    if not torch.isfinite(values).all():
        raise UsageError(f"{where}: {method} gave values that are not finite for zeros")
