"""Tickets that tie an actor's batches to the key with which it joined. Pure.

Every TransitionBatch names its actor, so another actor could name it as well. The coordinator
therefore gives each actor a *ticket* with its welcome, and each replay the *seal* of which tickets
are made. Replay takes a batch only with the ticket of the actor that it names, from the key with
which that actor joined. A ticket is the beginning of an HMAC-SHA256
(https://www.rfc-editor.org/rfc/rfc2104) under the seal, over ``actor``, the actor's index and
incarnation (4 bytes each, big endian), and the key.
"""

from __future__ import annotations

import hmac
import secrets
import struct

SEAL_BYTES = 32
TICKET_BYTES = 16
_ROLE_AND_PLACE = struct.Struct(">5sII")


def new_seal() -> bytes:
    """Make the random seal of one session of a run."""
    return secrets.token_bytes(SEAL_BYTES)


def ticket_of(seal: bytes, actor: int, incarnation: int, user: str) -> bytes:
    """Make the ticket of an actor.

    Args:
        seal: seal of the run's session.
        actor: index of the actor, below 2**32.
        incarnation: incarnation of the actor, below 2**32.
        user: public key with which it joined; empty if nothing is encrypted.
    """
    message = _ROLE_AND_PLACE.pack(b"actor", actor, incarnation) + user.encode()
    return hmac.digest(seal, message, "sha256")[:TICKET_BYTES]


def is_valid(seal: bytes, ticket: bytes, actor: int, incarnation: int, user: str) -> bool:
    """Return whether a ticket is that of an actor with this key; see ``ticket_of``."""
    return hmac.compare_digest(ticket, ticket_of(seal, actor, incarnation, user))
