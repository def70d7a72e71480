"""Limits of what the head of a run can have another host do, applied to the head's messages.

They hold for the processes of a host that a person has had join (``Network.agent``), unless that
person trusts the head with everything. The launcher's own roles trust their launcher.
"""

from __future__ import annotations

from dataclasses import replace

from pdqn import transport
from pdqn.errors import NotTrustedError
from pdqn.messages import Pulse, Welcome
from pdqn.transport import Network
from pdqn.trust import shown

_TCP_PATTERN = "tcp://{host}:*"


def admitted(welcome: Welcome, network: Network, address: str) -> Welcome:
    """Check a welcome before anything in it is used, and return what may be used of it.

    The environment, its arguments and the network must be permitted. Sockets are bound over TCP, to
    a port that this host chooses: binding an ``ipc://`` path would remove the file that is there.
    The run's directory is left out, so that no role writes where the head says.

    Args:
        welcome: as received.
        network: of this process.
        address: endpoint of the coordinator.

    Raises:
        NotTrustedError: it asks for what this host does not permit.
    """
    if _trusts(network):
        return welcome
    config, trust = welcome.config, network.trust
    whose = f"{transport.split(address)[0]}:"
    run, kind = config.run, config.network.kind
    if welcome.spec.id != run.env:
        raise NotTrustedError(
            f"{whose} its environment has the two names {shown(run.env)} and "
            f"{shown(welcome.spec.id)}"
        )
    trust.check_environment(whose, run.env, run.env_args, config.evaluation_env_args)
    trust.check_network(whose, kind)
    if not _may_bind(welcome.bind, address):
        raise NotTrustedError(
            f"{whose} its roles are to bind {shown(welcome.bind)}; expected {_TCP_PATTERN}"
        )
    return replace(welcome, run_dir="")


def followed(pulse: Pulse, network: Network, address: str) -> tuple[Pulse, int]:
    """Return what may be used of a pulse, and the number of endpoints that may not.

    A head cannot choose the number of processes here, nor have them connect to files.
    """
    if _trusts(network):
        return pulse, 0
    prefix = "ipc://" if _socket_folder(address) else "tcp://"
    served = {name: at for name, at in pulse.endpoints.items() if at.startswith(prefix)}
    refused = len(pulse.endpoints) - len(served)
    return replace(pulse, count=0, endpoints=served), refused


def _trusts(network: Network) -> bool:
    return not network.agent or network.trust.everything


def _may_bind(pattern: str, address: str) -> bool:
    """Tell whether roles may bind a pattern: over TCP, or beside the socket that they joined."""
    folder = _socket_folder(address)
    if not folder:
        return pattern == _TCP_PATTERN
    name = pattern.removeprefix(folder)
    return name != pattern and "/" not in name


def _socket_folder(address: str) -> str:
    """Return the folder of the coordinator's socket; empty for an address over TCP."""
    path = transport.split(address)[0]
    return f"{path.rpartition('/')[0]}/" if path.startswith("ipc://") else ""
