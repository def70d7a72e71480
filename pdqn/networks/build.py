"""Construction of an environment's network, with checks of what fits."""

from __future__ import annotations

from typing import Any

import torch

from pdqn import own_modules
from pdqn.config import NetworkConfig
from pdqn.errors import UsageError, with_place
from pdqn.networks.fused import FusedNetwork
from pdqn.networks.interface import QNetwork
from pdqn.networks.noisy import noisy_layers
from pdqn.networks.qmap import QMap
from pdqn.networks.scaling import ReturnScale
from pdqn.networks.sizes import check_network, network_sizes
from pdqn.networks.spatial import SpatialNetwork
from pdqn.specs import EnvironmentSpec
from pdqn.wire import MAX_COLUMNS


def build_network(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    """Build a freshly initialised network for an environment, in evaluation mode.

    Raises:
        UsageError: no network fits the environment's observations, or options cannot be combined.
    """
    sized = network_sizes(spec, config)
    check_network(spec, sized)
    if ":" in sized.kind:
        return _build_own(spec, sized).eval()
    if sized.kind == "qmap":
        return QMap(spec, sized).eval()
    network = (SpatialNetwork if sized.kind == "spatial" else FusedNetwork)(spec, sized)
    return _scaled(network, sized).eval()


def _scaled(network: QNetwork, config: NetworkConfig) -> QNetwork:
    """Give a network the unit of its outputs, if it has one."""
    if config.normalize_rewards:
        network.return_scale = ReturnScale()
    return network


# ---- a network of the user's own ----


def _build_own(spec: EnvironmentSpec, config: NetworkConfig) -> QNetwork:
    """Build a network with ``package.module:factory`` from (spec, config), and try it once."""
    where = f"network.kind = {config.kind}"
    network = _scaled(_call_factory(where, spec, config), config)
    own = type(network).distribution
    if config.distribution != "none" and own is QNetwork.distribution:
        raise UsageError(
            f"{where}: it has no method distribution, which network.distribution = "
            f"{config.distribution} needs; set that to none"
        )
    support = network.support
    atoms = None if support is None else list(support.shape)
    has_logits = config.distribution in ("categorical", "hl_gauss")
    wanted = [config.atoms] if has_logits else None
    if atoms != wanted:
        raise UsageError(
            f"{where}: its support has the shape {atoms}, but network.distribution = "
            f"{config.distribution} needs {wanted}: the returns of the atoms if it is "
            "categorical or hl_gauss, else None"
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
