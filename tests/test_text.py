"""Texts from elsewhere: what becomes of controls, invisible characters and piles of marks."""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_console import snapshot
from test_messages import GOOD

from launcher.metrics.snapshot import Seen
from pdqn.messages import TO_COORDINATOR, TO_MEMBER, Leave, Message, Report, Welcome
from pdqn.text import is_printable, printable, printable_lines
from pdqn.wire import WireError

ANY_TEXT = st.text(st.characters(codec=None, categories=None))
# Obeyed by a terminal, or drawn as nothing: none of them may remain.
NEVER = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gpu-host", "gpu-host"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b31mred", r"\x9b31mred"),
        ("one\ntwo\tthree\r", r"one\ntwo\tthree\r"),
        ("\x7f\x00", r"\x7f\x00"),
        ("abc\u202edcba", r"abc\u202edcba"),
        ("a\u2066b\u2069", r"a\u2066b\u2069"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("zero\u200bwidth\ufeff\u00ad", r"zero\u200bwidth\ufeff\xad"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("filler\u3164\u115f\ufe0f", r"filler\u3164\u115f\ufe0f"),
        ("Grüße, 主机, Βασίλης, e\u0301", "Grüße, 主机, Βασίλης, e\u0301"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + r"\u0301\u0301"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_what_a_terminal_obeys_or_does_not_show_becomes_visible(text: str, shown: str):
    assert printable(text) == shown


@given(ANY_TEXT)
def test_whatever_the_text_nothing_is_left_that_a_terminal_obeys(text: str):
    shown = printable(text)
    assert shown.isprintable()
    assert not {unicodedata.category(character) for character in shown} & NEVER
    assert is_printable(shown), "a second time changes nothing"
    assert printable(shown) == shown
    shown.encode()  # and every stream can take it


@given(ANY_TEXT)
def test_of_several_lines_line_ends_and_tabs_are_all_that_stays(text: str):
    shown = printable_lines(text)
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert shown.count("\n") == text.count("\n")


def test_of_every_character_there_is_none_is_left_that_a_terminal_obeys():
    for start in range(0, sys.maxunicode + 1, 4096):
        shown = printable("".join(map(chr, range(start, start + 4096))))
        assert shown.isprintable()


def test_nothing_that_people_write_is_escaped():
    for text in ("naïve café", "日本語のホスト", "хост-1", "Ελληνικά", "한국어", "±½ → ✓", "🙂"):
        assert printable(text) == text


# ---- messages ----

HOSTILE = ("\x1b[31;5mX\x07", "\x9b2J", "\u202egnp", "\u2028", "\ud800", "\n[0:07]")
# A person's own directory may have any name, and the settings are data: neither is cleaned.
AS_THEY_ARE = {(Welcome, "run_dir"), (Welcome, "config")}
VIEW = snapshot(first_error="it broke", waiting_for="the learner", insecure=True, stage="starting")
KINDS: dict[type[Message], Message] = {
    **{kind: GOOD[kind] for kind in (*TO_COORDINATOR.values(), *TO_MEMBER.values())},
    Leave: Leave(GOOD[Report], "it broke", "Traceback"),  # pyright: ignore[reportArgumentType]
    type(GOOD[Report].evaluation): GOOD[Report].evaluation,  # pyright: ignore[reportAttributeAccessIssue]
    Seen: Seen(VIEW, 1, ((1.5, "started"),)),
}


def with_one_text_changed(value: Any, hostile: str) -> Iterator[Any]:
    """Copy a value once for each text in it, keys included, with this text put into it."""
    if isinstance(value, str):
        yield value[:1] + hostile + value[1:]
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in with_one_text_changed(inner, hostile))
            others = {name: kept for name, kept in value.items() if name != key}
            yield from ({other: inner, **others} for other in with_one_text_changed(key, hostile))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            for other in with_one_text_changed(inner, hostile):
                yield [*value[:index], other, *value[index + 1 :]]


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for part in pair for text in texts_in(part))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (text for part in value for text in texts_in(part))


def texts_of(kind: type[Message], content: dict[str, Any], name: str) -> list[str]:
    """Return the texts of a field of a message, or of its refusal."""
    try:
        return list(texts_in(kind.from_map(content).to_map()[name]))
    except WireError as error:
        return [str(error)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_no_field_of_any_message_brings_an_escape_in(kind: type[Message], hostile: str):
    content = KINDS[kind].to_map()
    for item in dataclasses.fields(kind):
        if (kind, item.name) in AS_THEY_ARE:
            continue
        for changed in with_one_text_changed(content[item.name], hostile):
            for text in texts_of(kind, {**content, item.name: changed}, item.name):
                assert is_printable(text.replace("\n", "")), (item.name, text)
                assert "\n" not in text or item.name == "trace"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_with_a_text_is_tried_above(kind: type[Message]):
    content = KINDS[kind].to_map()
    for item in dataclasses.fields(kind):
        if "str" in str(item.type) or item.name in ("report", "snapshot", "pulse", "evaluation"):
            assert next(texts_in(content[item.name]), None) is not None, item.name


@pytest.mark.parametrize("name", ["role", "package", "host", "agent"])
def test_a_name_with_an_escape_is_refused_in_a_line_that_shows_it(name: str):
    content = {"role": "actor", "package": "1", "host": "h", "pid": 1, "index": None, "agent": "a"}
    with pytest.raises(WireError, match=rf"{name} is 'x\\x1b\[2J', not a text of printable"):
        TO_COORDINATOR["join"].from_map({**content, name: "x\x1b[2J"})


def test_of_a_note_an_activity_a_reason_and_a_trace_nothing_is_lost():
    note, reason = "\x1b[31mcareful", "ValueError: \x1b[2J"
    report = Report(activity="waits\x07", notes=(("seeds", note),))
    leave = Leave(report, reason, "Traceback\n\traise \x1b[2J")
    assert leave.report.activity == r"waits\x07"
    assert leave.report.notes == (("seeds", r"\x1b[31mcareful"),)
    assert leave.reason == r"ValueError: \x1b[2J"
    assert leave.trace == "Traceback\n\traise " + r"\x1b[2J"


def test_a_text_of_escapes_alone_stays_within_its_bound():
    leave = Leave(Report(activity="\x1b" * 80), "\x1b" * 400, "\x1b" * 4000)
    assert len(leave.report.activity) == 80
    assert (len(leave.reason), len(leave.trace)) == (400, 4000)
    assert Leave.from_map(leave.to_map()) == leave
