"""Arguments of environments: kept as they are by files and messages, or refused by name."""

from __future__ import annotations

import datetime
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pdqn import messages
from pdqn.arguments import plain_arguments, same
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import build, parse_value, read_toml
from pdqn.messages import TO_MEMBER, Welcome
from pdqn.model import read_model, save_model
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

SPEC = EnvironmentSpec("x:make", (FieldSpec("observation", (2,), "float32"),), 2)
KEPT: dict[str, Any] = {
    "entropy": 302934307671667531413257853548643485645,
    "negative": -(1 << 64),
    "limit": math.nan,
    "bounds": [-math.inf, math.inf, -0.0],
    "text": 'a\x00b\n"é日',
    "empty": [],
    "none of them": {},
    "mixed": [1, "a", 2.5, True, [1, [2]], {"a": {"b.c": [{"d": math.nan}]}}],
}


def config_with(**env_args: Any) -> Config:
    return build(("test", {"run": {"env": "x:make", "env_args": env_args}}))


def test_files_messages_and_models_give_arguments_back_as_they_are(tmp_path: Path):
    config = config_with(**KEPT)
    assert same(config.run.env_args, KEPT)
    assert same(build(("file", tomllib.loads(config.to_toml()))).run.env_args, KEPT)
    welcome = Welcome("run", 0, 0, config, SPEC, "", "")
    received = messages.decode(welcome.encoded, TO_MEMBER)
    assert isinstance(received, Welcome)
    assert same(received.config.run.env_args, KEPT)
    assert repr(received.config.run.env_args["bounds"]) == "[-inf, inf, -0.0]"
    save_model(tmp_path / "m.pth", config, SPEC, build_network(SPEC, config.network), 0)
    assert same(read_model(tmp_path / "m.pth").env_args, KEPT)
    assert read_model(tmp_path / "m.pth").differences(config) == []


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ((2, (1, 3)), [2, [1, 3]]),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.True_, True),
        (np.str_("a"), "a"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.time(10, 30), "10:30:00"),
    ],
)
def test_what_a_file_would_give_back_otherwise_is_so_from_the_start(given: Any, plain: Any):
    (value,) = config_with(a=given).run.env_args.values()
    assert value == plain
    assert type(value) is type(plain)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, r"run\.env_args\.a = None: an argument cannot be None; leave it out"),
        (b"x", r"run\.env_args\.a = bytes b'x'; texts, numbers, true and false"),
        (np.zeros(3), r"run\.env_args\.a = ndarray array\(\[0\., 0\., 0\.\]\); texts"),
        ([1, {"b": {2}}], r"run\.env_args\.a\[1\]\.b = set \{2\}; texts"),
        ({1: 2}, r"run\.env_args\.a has the key int 1; keys are texts"),
        ("a\udcff", r"run\.env_args\.a = 'a\\udcff'; expected a text in UTF-8"),
        ({"\ud800": 1}, r"run\.env_args\.a = '\\ud800'; expected a text"),
        (10**1000, r"run\.env_args\.a is a number of more than 1000 digits"),
        ("x" * 300_000, r"run\.env_args takes 3000\d\d bytes; at most 262144 are accepted"),
        (nested(40), r"run\.env_args\.a\[0\].* is nested more than 32 times"),
    ],
)
def test_what_a_file_cannot_give_back_is_refused_in_a_line_that_names_it(given: Any, words: str):
    with pytest.raises(UsageError, match=f"^test: {words}") as refused:
        config_with(a=given)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("text", "words"),
    [("1" * 5000, "a number of thousands of digits"), ("[" * 9000 + "]" * 9000, "nested too")],
)
def test_what_python_cannot_read_is_refused_as_an_option_and_in_a_file(
    text: str, words: str, tmp_path: Path
):
    with pytest.raises(ValueError, match=words):
        parse_value(text)
    file = tmp_path / "c.toml"
    file.write_text(f"[run]\nsteps = {text}\n")
    with pytest.raises(UsageError, match=rf"c\.toml: it has .*{words}"):
        read_toml(file)


def test_settings_beyond_64_bits_are_refused_with_the_largest_accepted():
    for value in (10**30, str(10**30)):
        with pytest.raises(UsageError, match=r"run\.steps = .*at most 9223372036854775807"):
            build(("test", {"run": {"steps": value}}))
    with pytest.raises(UsageError, match=r"run\.steps = .*of at least 1"):
        build(("test", {"run": {"steps": -(10**30)}}))


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (math.nan, math.nan, True),
        ({"a": [1, (math.nan,)]}, {"a": (1, [math.nan])}, True),
        (math.nan, 1.0, False),
        (1.0, math.nan, False),
        ([1, 2], [1], False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1}, {"a": 2}, False),
        ("ab", ["a", "b"], False),
        (math.inf, -math.inf, False),
    ],
)
def test_nan_equals_itself_and_tuples_equal_lists(one: Any, other: Any, equal: bool):
    assert same(one, other) is equal


def test_plain_arguments_are_a_copy():
    given = {"a": [1]}
    plain = plain_arguments("x", given)
    plain["a"].append(2)
    assert given == {"a": [1]}
