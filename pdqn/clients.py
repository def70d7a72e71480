"""Holders of the keys of an encrypted run, and the roles that each of them may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pdqn.checks import as_tuple, check_name, check_names, refusal
from pdqn.wire import WireError

# ``watch`` is for a console elsewhere, which looks on; every key may do that.
KEY_ROLES = ("actor", "replay", "learner", "evaluator", "watch")
DEFAULT_ROLES = frozenset({"actor"})
EVERY_ROLE = frozenset(KEY_ROLES)


@dataclass(frozen=True)
class Client:
    """The holder of a key.

    Attributes:
        name: its name in the list of keys.
        roles: the roles that its processes may take; a subset of ``KEY_ROLES``.

    Raises:
        WireError: a name that is too long or not printable, or an unknown role.
    """

    name: str
    roles: frozenset[str] = DEFAULT_ROLES

    def __post_init__(self) -> None:
        """Check the fields."""
        check_name(self.name, "a client's name")
        if not self.roles <= EVERY_ROLE:
            raise refusal(", ".join(sorted(self.roles)), "roles", f"some of {', '.join(KEY_ROLES)}")

    @property
    def described(self) -> str:
        """The name and the roles, for a person."""
        return f"{self.name} ({', '.join(sorted(self.roles))})"

    def may_join_as(self, role: str) -> bool:
        """Return whether it may join as a role; as a ``host`` if it may take any part at all."""
        return bool(self.roles - {"watch"}) if role == "host" else role in self.roles


Clients = Mapping[str, Client]


def losers(before: Clients, after: Clients) -> set[str]:
    """Find the keys that are no longer allowed, or no longer for every role."""
    nobody = Client("", frozenset())
    return {key for key, client in before.items() if client.roles - after.get(key, nobody).roles}


def to_map(clients: Clients) -> dict[str, Any]:
    """Convert to plain data for msgpack."""
    return {key: [client.name, sorted(client.roles)] for key, client in clients.items()}


def as_clients(value: Any, name: str) -> dict[str, Client]:
    """Check a map of clients by their keys, or its plain data.

    Raises:
        WireError: a key, a name or a role that is not one.
    """
    check_names(value, name)
    return {key: _as_client(client, name) for key, client in value.items()}


def _as_client(value: Any, name: str) -> Client:
    if isinstance(value, Client):
        return value
    parts = as_tuple(value, f"a client in {name}", 2)
    if len(parts) != 2:
        raise refusal(value, f"a client in {name}", "a name and its roles")
    return Client(parts[0], _as_roles(as_tuple(parts[1], "roles", len(KEY_ROLES))))


def _as_roles(roles: Iterable[Any]) -> frozenset[str]:
    try:
        return frozenset(roles)
    except TypeError:
        raise WireError("malformed", "roles holds a value that is not a text") from None
