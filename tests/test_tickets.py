"""Tickets: who may send batches in whose name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdqn.tickets import SEAL_BYTES, TICKET_BYTES, is_valid, new_seal, ticket_of

SEAL = bytes(range(SEAL_BYTES))
KEY, OTHER_KEY = "k" * 40, "l" * 40


def test_a_ticket_is_worked_out_by_hand():
    """Compare with the command below, with the seal 00 01 ... 1f as HEX.

    printf 'actor\\0\\0\\0\\3\\0\\0\\0\\1' | openssl dgst -sha256 -mac HMAC -macopt hexkey:HEX
    """
    assert ticket_of(SEAL, 3, 1, "").hex() == "ca6d6f8a03284081b790c3ba501b1f21"
    assert ticket_of(SEAL, 3, 1, KEY).hex() == "e68b13909f66f982db48eeb3a948c5b7"


Holder = tuple[int, int, str]
SEALS = st.sampled_from([SEAL, bytes(SEAL_BYTES)])
NUMBERS = st.sampled_from([0, 1, 7, (1 << 32) - 1])
HOLDERS = st.tuples(NUMBERS, NUMBERS, st.sampled_from(["", KEY, OTHER_KEY]))


@given(seals=st.tuples(SEALS, SEALS), mine=HOLDERS, theirs=HOLDERS)
def test_a_ticket_is_valid_for_its_own_actor_incarnation_and_key_alone(
    seals: tuple[bytes, bytes], mine: Holder, theirs: Holder
):
    seal, other_seal = seals
    ticket = ticket_of(seal, *mine)
    assert len(ticket) == TICKET_BYTES
    assert is_valid(seal, ticket, *mine)
    same = (seal, mine) == (other_seal, theirs)
    assert is_valid(other_seal, ticket, *theirs) == same


@pytest.mark.parametrize("ticket", [b"", b"x", bytes(TICKET_BYTES), b"x" * 1000])
def test_what_is_not_a_ticket_is_not_valid(ticket: bytes):
    assert not is_valid(SEAL, ticket, 0, 0, "")
    assert not is_valid(SEAL, ticket_of(SEAL, 0, 0, "")[:-1], 0, 0, "")


def test_every_session_has_a_seal_of_its_own():
    assert new_seal() != new_seal()
    assert len(new_seal()) == SEAL_BYTES
