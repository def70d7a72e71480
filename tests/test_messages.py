"""Control messages: accepted values, refused values, and exact round trips."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.metrics.snapshot import TO_CONSOLE, Seen
from pdqn import messages, wire
from pdqn.clients import Client
from pdqn.config import Config
from pdqn.messages import (
    PIECE_BYTES,
    TO_COORDINATOR,
    TO_MEMBER,
    Episode,
    Evaluation,
    Fetch,
    Filed,
    FilePiece,
    Join,
    Leave,
    Message,
    MessageError,
    Over,
    Piece,
    Pulse,
    Refuse,
    Rejoin,
    Report,
    Unknown,
    Watch,
    Welcome,
)
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import WireError

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 2)
EVALUATION = Evaluation(
    7, 10, 1.5, 0.1, {"coverage": 0.5}, {"coverage": 0.01}, {"random": 0.2},
    {"random": (0.3, 0.02)}, best=0.5, dropped=1, length_mean=12.5,
    baseline_errors={"random": 0.01}, best_version=0, best_is_first=True,
)  # fmt: skip
REPORT = Report(
    counters={"environment_steps": 800.0, "episodes": 2},
    gauges={"epsilon": 0.25},
    activity="waits for replay",
    episodes=(Episode(3.0, 4), Episode(-1.5, 400, 0.75)),
    evaluation=EVALUATION,
    notes=(("seeds", "1, 2, 3"),),
    endpoints={"samples/0": "ipc:///somewhere"},
)
STRANGE_CLIENTS = [{"k": client} for client in (7, ["gpu", ["root"]], [7, []], ["gpu", [[]]], [])]
PULSE = Pulse(
    "hold", {"parameters": "tcp://a:1"}, 3, 8, 1000, 2.5, 4, {"episodes": 70},
    {"k" * 40: Client("gpu", frozenset({"learner"}))},
    frozenset(["r" * 40, "s" * 40]), 5, (17, 18),
)  # fmt: skip
OF_MEMBERS: list[Message] = [
    Join("actor", "0.1.0", "here", 17),
    Join("host", "0.1.0", "here", 17, 3, "agent"),
    Rejoin("actor", 3, 1, "the-run", "here", 17, "agent", {"samples/0": "tcp://a:1"}),
    REPORT,
    Report(),
    Leave(REPORT, "ValueError: it broke", "Traceback ..."),
    Report(ended=(17, 18)),
    FilePiece("final_model.pth", 1, 0, 5, b"bytes"),
    Fetch("checkpoint", 1, PIECE_BYTES),
    Watch(),
]
OF_THE_COORDINATOR: list[Message] = [
    Welcome(
        "the-run",
        3,
        1,
        Config(),
        SPEC,
        "ipc:///{name}",
        "/runs/a",
        {"gymnasium": "1"},
        PULSE,
        4096,
        b"t" * 16,
        b"s" * 32,
    ),
    PULSE,
    Pulse(),
    Refuse("the run is stopping"),
    Refuse("the run has a learner already", taken=True),
    Unknown(),
    Filed("final_model.pth", 1, 0, "No space left on device"),
    Piece("checkpoint", 0, 0, "checkpoints/step-000000007/learner.pth", 5, b"bytes"),
]


@pytest.mark.parametrize("message", OF_MEMBERS, ids=lambda m: type(m).__name__)
def test_what_members_say_comes_over_whole(message: Message):
    assert messages.decode(message.encoded, TO_COORDINATOR) == message


@pytest.mark.parametrize("message", OF_THE_COORDINATOR, ids=lambda m: type(m).__name__)
def test_what_the_coordinator_says_comes_over_whole(message: Message):
    assert messages.decode(message.encoded, TO_MEMBER) == message


@pytest.mark.parametrize("message", [Seen(None, 3, ((1.5, "started"),)), Seen(), Over()])
def test_what_consoles_are_told_comes_over_whole(message: Message):
    assert messages.decode(message.encoded, TO_CONSOLE) == message


def test_every_kind_of_message_is_tried_here():
    tried = {type(message).KIND for message in (*OF_MEMBERS, *OF_THE_COORDINATOR)}
    assert tried == {*TO_COORDINATOR, *TO_MEMBER}


LONG, HUGE = "x" * 100_000, 10**400
ODD: list[Any] = [None, True, -1, 1 << 63, math.nan, math.inf, HUGE, LONG, b"bytes", [1], {"a": 1}]
REFUSED: dict[type[Message], dict[str, list[Any]]] = {
    Join: {
        "role": [7, None, LONG], "package": [None], "host": [LONG, b"x"], "agent": [None],
        "pid": ["x", math.inf, 1.5, -1, True], "index": [-1, 1.0, "0"],
    },
    Rejoin: {"index": [None, 1 << 20], "incarnation": [-1], "endpoints": [[1], {"a": 7}, None]},
    Report: {
        "counters": [[1], {"a": "many"}, {"a": math.nan}, {"a": math.inf}, {"a": HUGE},
                     {"a": True}, {"a": None}, {b"a": 1}, {LONG: 1}, None],
        "gauges": [7, {"memory_bytes": math.nan}, {"memory_bytes": "much"}, {b"a": 1.0}],
        "activity": [7, LONG, None],
        "episodes": [[1, 2], [[1.0]], [["x", 1, None]], [[math.nan, 1, None]], [[1.0, 1.5, None]],
                     [[1.0, math.inf, None]], [[1.0, -1, None]], [[1.0, 1, "x"]], "text",
                     [[1.0, 1, None]] * 2001],
        "evaluation": ["good", {"episodes": 3}, 7],
        "notes": [[["a"]], [["a", 7]], [["a", LONG]], "text", [["a", "b"]] * 21, [LONG]],
        "endpoints": [["x"], {"a": 1}, {"a": LONG}, None],
        "ended": [None, 7, "x", ["x"], [-1], [1.0], [True], [1] * 4097],
    },
    Evaluation: {
        "parameter_version": [-1, 1.0], "episodes": [None, "x"],
        "return_mean": ["good", math.nan, None], "return_error": ["x", math.inf],
        "metrics": [[0.5], {"coverage": "x"}, {"other": 1.0}], "errors": [{}, None],
        "baselines": [[0.5], {"random": math.nan}], "best": [math.nan, "x"],
        "best_version": [-1, 1.0], "best_is_first": [None, 1],
        "differences": [{"random": 1.0}, {"random": ["x", 1.0]}, {"random": [1.0]},
                        {"random": [1.0, math.nan]}, {"random": [1.0, 1.0, 1.0]}, [1]],
    },
    Leave: {"report": [None, {"counters": [1]}, 7], "reason": [None, LONG], "trace": [7, LONG]},
    FilePiece: {
        "name": [7, LONG], "push": [-1, None], "offset": [6, -1, 0.0], "size": [1 << 40, -1],
        "data": ["text", b"x" * (PIECE_BYTES + 1), None],
    },
    Fetch: {"name": [None, LONG], "index": [-1, 1 << 20], "offset": [-1, 1 << 40]},
    Pulse: {
        "command": ["explode", None, 7], "endpoints": [[1], {"a": 1}],
        "samples_per_insert": [0, -3.0, "fast", True, math.inf, [1]],
        "progress": [None, -0.1, 1.5, "half", math.nan],
        "actor_slots": [0, -1, None], "actor_slot": [-1], "final_version": ["x"], "saves": [-1],
        "allowed": [{"episodes": "many"}, [1]], "clients": [7, *STRANGE_CLIENTS],
        "revoked": [7, [None]], "count": [-1], "condemned": [7, ["x"], [-1]],
    },
    Welcome: {
        "run": [7], "index": [-1], "incarnation": [None], "bind": [None], "run_dir": [LONG],
        "config": [None, 7, {"run": {"seed": "x"}}, "[run]\nseed = 'x'", "run = 7", "[", "[other]",
                   "x=" + "[" * 9999, "[run]\nseed = " + "1" * 5000, LONG],
        "spec": [None, {}, {"id": 7}],
        "pulse": [None, {"command": "explode"}], "versions": [[1], {"a": 1}],
        "ticket": ["text", b"x", b"x" * 17, None], "seal": ["text", b"x" * 16, None],
    },
    Refuse: {"reason": [None, LONG]},
    Filed: {"name": [None], "push": [-1], "offset": [-1], "error": [7]},
    Piece: {"name": [7], "size": [-1, 1 << 40], "data": ["text"], "index": [-1], "wanted": [7]},
}  # fmt: skip
GOOD: dict[type[Message], Message] = {
    **{type(message): message for message in (*OF_MEMBERS, *OF_THE_COORDINATOR)},
    Report: REPORT,
    Pulse: PULSE,
    Evaluation: EVALUATION,
    Join: OF_MEMBERS[1],
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_a_field_with_a_value_that_is_not_accepted_is_refused(kind: type[Message]):
    good = GOOD[kind].to_map()
    for name, values in REFUSED[kind].items():
        for value in values:
            with pytest.raises(WireError):
                kind.from_map(good | {name: value})


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_a_message_with_an_unknown_field_is_refused(kind: type[Message]):
    with pytest.raises(WireError):
        kind.from_map(GOOD[kind].to_map() | {"surprise": 1})


def test_a_message_without_a_field_that_it_must_have_is_refused():
    content = OF_MEMBERS[0].to_map()
    with pytest.raises(WireError, match=r"malformed: .*host"):
        Join.from_map({name: value for name, value in content.items() if name != "host"})


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


ALL = {**TO_COORDINATOR, **TO_MEMBER}


@given(
    kind=st.sampled_from(sorted(ALL)),
    changes=st.dictionaries(st.integers(0, 11), ANY, max_size=3),
)
def test_whatever_a_field_holds_a_message_is_made_or_refused(kind: str, changes: dict[int, Any]):
    made = ALL[kind]
    content = GOOD[made].to_map()
    names = list(content)
    for place, value in changes.items():
        if place < len(names):
            content[names[place]] = value
    message = None
    with contextlib.suppress(MessageError):
        message = messages.decode(wire.encode_control(kind, content), {kind: made})
    if message is not None:
        assert messages.decode(message.encoded, {kind: made}) == message


def test_a_message_for_another_side_is_refused():
    with pytest.raises(MessageError, match="'pulse' is not a message for this side") as refused:
        messages.decode(PULSE.encoded, TO_COORDINATOR)
    assert refused.value.kind == "unreadable"


def test_a_refusal_names_the_kind_the_field_its_value_and_what_is_accepted():
    data = wire.encode_control("pulse", {"actor_slots": 0})
    with pytest.raises(MessageError) as refused:
        messages.decode(data, TO_MEMBER)
    assert str(refused.value) == (
        f"pulse: malformed: actor_slots is 0, not a whole number from 1 to {2**62 - 1}"
    )
    assert refused.value.kind == "pulse"


def test_a_welcome_that_is_shown_shows_none_of_its_secrets():
    welcome = GOOD[Welcome]
    assert isinstance(welcome, Welcome)
    assert welcome.ticket
    assert welcome.seal
    assert "ticket" not in repr(welcome)
    assert "seal" not in repr(welcome)
    with pytest.raises(WireError, match="seal is not 32 bytes"):
        dataclasses.replace(welcome, seal=b"secret")
