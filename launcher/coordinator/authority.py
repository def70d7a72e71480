"""The authority of members: which of them may say what. Pure.

A key decides which roles its holder may take (``pdqn.clients``), and the role decides what a member
may say. Whatever it may not say is refused as a whole, so that no part of it counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.metrics.metrics import MemberKey
from pdqn import transport
from pdqn.messages import Leave, Message, Report

_SCHEMES = ("tcp://", "ipc://")


def services_of(role: str, index: int) -> frozenset[str]:
    """Return the names of everything that a role may serve."""
    if role == "learner":
        return frozenset({"parameters"})
    if role == "replay":
        names = ("transitions", "samples", "acknowledgements")
        return frozenset(f"{name}/{index}" for name in names)
    return frozenset()


def offence_in_endpoints(key: MemberKey, user: str, endpoints: Mapping[str, str]) -> str:
    """Find what a member may not announce; empty if there is nothing.

    Args:
        key: the member.
        user: its public key; empty if nothing is encrypted.
        endpoints: addresses of what it serves, by name.
    """
    if not endpoints.keys() <= services_of(key.role, key.index):
        return "an address of what another serves"
    for endpoint in endpoints.values():
        address, server = transport.split(endpoint)
        if (server or "") != user:
            return "an address with another's key"
        if not address.startswith(_SCHEMES):
            return "an address where nothing can be reached"
    return ""


def offence(key: MemberKey, user: str, message: Message) -> str:
    """Find what a member may not say; empty if there is nothing. See ``offence_in_endpoints``."""
    report = message.report if isinstance(message, Leave) else message
    if not isinstance(report, Report):
        return ""
    if report.ended and key.role != "host":
        return "the end of a host's process"
    if report.evaluation is not None and key.role != "evaluator":
        return "an evaluation"
    if report.episodes and key.role != "actor":
        return "episodes"
    if report.spans and key.role != "replay":
        return "spans of transitions"
    return offence_in_endpoints(key, user, report.endpoints) if report.endpoints else ""
