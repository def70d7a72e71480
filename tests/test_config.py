"""The configuration: its layers, its refusals and their wording, and its texts."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import typing
from typing import Any, Literal, get_args, get_origin

import msgpack
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pdqn.config import NETWORK_KINDS, Config, absolute_path, memory_bytes, network_kind, resolved
from pdqn.errors import UsageError
from pdqn.layers import (
    build,
    from_assignments,
    from_environment,
    from_map,
    parse_value,
    read_toml,
    settings,
)
from pdqn.stop_at import parse_target

GB = 10**9
SECTIONS = {
    item.name: typing.get_type_hints(Config)[item.name] for item in dataclasses.fields(Config)
}
ALL = [
    (section, item.name, typing.get_type_hints(kind)[item.name], item.metadata)
    for section, kind in SECTIONS.items()
    for item in dataclasses.fields(kind)
]
NAMES = [f"{section}.{key}" for section, key, _, _ in ALL]


def one(section: str, key: str, value: Any, source: str = "option") -> Any:
    """Return the value of a setting that only one layer names."""
    return getattr(getattr(build((source, {section: {key: value}})), section), key)


def refusal(section: str, key: str, value: Any) -> str:
    with pytest.raises(UsageError) as caught:
        build(("file run.toml", {section: {key: value}}))
    return str(caught.value)


def test_without_layers_everything_is_at_its_default():
    assert build() == Config()


def test_the_highest_layer_that_names_a_setting_decides():
    lowest = ("plan", {"actor": {"count": 1, "n_step": 1}, "learner": {"batch_size": 1}})
    middle = ("file run.toml", {"actor": {"count": 2, "n_step": 2}})
    highest = ("option", {"actor": {"count": 3}})
    config = build(lowest, middle, highest)
    assert config.actor.count == 3
    assert config.actor.n_step == 2
    assert config.learner.batch_size == 1
    assert config.learner.prefetch == Config().learner.prefetch


def test_a_layer_that_says_auto_hands_a_lower_layers_value_back_to_the_plan():
    config = build(
        ("file run.toml", {"actor": {"count": 4}}), ("option", {"actor": {"count": "auto"}})
    )
    assert config.actor.count is None


def test_option_variable_and_file_have_the_documented_order(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[learner]\nbatch_size = 8\nprefetch = 8\nthreads = 8\n")
    config = build(
        ("mode's preset", {"learner": {"batch_size": 4, "prefetch": 4, "threads": 4}}),
        (f"file {path}", read_toml(path)),
        ("environment", from_environment({"PDQN_LEARNER__PREFETCH": "16"})),
        ("option --set", from_assignments(["learner.threads=32"])),
    )
    assert config.learner.batch_size == 8
    assert config.learner.prefetch == 16
    assert config.learner.threads == 32


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("learner", "batch_size", "1_024", 1024),
        ("learner", "batch_size", 64.0, 64),
        ("learner", "learning_rate", "1e-4", 1e-4),
        ("learner", "learning_rate", 1, 1.0),
        ("learner", "double", "False", False),
        ("learner", "double", True, True),
        ("learner", "device", "cuda", "cuda"),
        ("run", "env", "CartPole-v1", "CartPole-v1"),
        ("run", "env_args", {"map_size": 16}, {"map_size": 16}),
        ("run", "env_args", "{map_size = 16, radii = [5, 4]}", {"map_size": 16, "radii": [5, 4]}),
        ("evaluation", "env_args", "{life_loss=true}", {"life_loss": True}),
        ("evaluation", "env_args", "{}", {}),
        ("run", "episodes", "auto", None),
        ("run", "episodes", None, None),
        ("run", "mode", "auto", "auto"),
    ],
)
def test_values_are_converted_to_the_type_of_their_setting(section, key, value, expected):
    converted = one(section, key, value)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("learner", "batch_size", "many", "a whole number of at least 1 and at most 65536"),
        ("learner", "batch_size", 0, "a whole number of at least 1 and at most 65536"),
        ("learner", "batch_size", 65_537, "a whole number of at least 1 and at most 65536"),
        ("learner", "batch_size", 1.5, "expected a whole number of at least 1"),
        ("learner", "batch_size", "1.5", "expected a whole number of at least 1"),
        ("learner", "batch_size", True, "expected a whole number of at least 1"),
        ("learner", "batch_size", "auto", "expected a whole number of at least 1"),
        ("learner", "batch_size", math.inf, "expected a whole number of at least 1"),
        ("learner", "batch_size", math.nan, "expected a whole number of at least 1"),
        ("learner", "batch_size", 10**400, "expected a whole number of at least 1"),
        ("learner", "batch_size", [64], "expected a whole number of at least 1"),
        ("replay", "capacity", 2**63, "at least 1 and at most 9223372036854775807 or auto"),
        ("run", "seed", 2**63, "at least 0 and at most 9223372036854775807"),
        ("run", "seed", -1, "expected a whole number of at least 0"),
        ("learner", "learning_rate", 0, "expected a number above 0 or auto"),
        ("learner", "learning_rate", "nan", "expected a number above 0 or auto"),
        ("learner", "learning_rate", "inf", "expected a number above 0 or auto"),
        ("learner", "learning_rate", 10**400, "expected a number above 0 or auto"),
        ("learner", "learning_rate", False, "expected a number above 0 or auto"),
        ("actor", "discount", 1.01, "expected a number of at least 0 and at most 1 or auto"),
        ("learner", "double", "yes", "expected true or false"),
        ("learner", "double", 1, "expected true or false"),
        ("learner", "device", "tpu", "expected one of auto, cpu, cuda"),
        ("learner", "device", ["cpu"], "expected one of auto, cpu, cuda"),
        ("run", "env_args", "map_size=16", "expected a table such as {level = 3, fast = true}"),
        ("run", "env_args", "{map_size=16", "expected a table"),
        ("run", "env_args", "{map_size=[}", "expected a table"),
        ("run", "env_args", "[16]", "expected a table"),
        ("run", "env_args", "16", "expected a table"),
        ("run", "env_args", "", "expected a table"),
        ("run", "env_args", ["map_size"], "expected a table"),
        ("replay", "memory", "much", "expected an amount such as 8GB, 500MB or 8000000000, or a"),
        ("replay", "memory", "101%", "or a share of the RAM such as 25% or auto"),
    ],
)  # fmt: skip
def test_a_refusal_names_layer_key_value_and_what_is_accepted(section, key, value, words):
    message = refusal(section, key, value)
    assert message.startswith(f"file run.toml: {section}.{key} = ")
    assert str(value) in message
    assert words in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25%", 5 * GB), ("100%", 20 * GB), ("12.5 %", 5 * GB // 2), ("8GB", 8 * GB),
        ("500MB", GB // 2), ("1.5gb", 3 * GB // 2), ("0.5 TB", 500 * GB), ("64 kB", 64_000),
        ("8000000000", 8 * GB), ("8000000000B", 8 * GB), (" .5GB ", GB // 2), ("1", 1),
    ],
)  # fmt: skip
def test_an_amount_of_memory_is_a_number_of_bytes_or_a_share(text, expected):
    assert memory_bytes(text, 20 * GB) == expected
    assert one("replay", "memory", text) == text


@pytest.mark.parametrize(
    "text",
    ["", "0", "0%", "-1GB", "101%", "8GiB", "1e9", "8 G", "%", "GB", "1,5GB", "9999999TB"],
)
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - only config.py sees it
        memory_bytes(text, 20 * GB)
    assert f"replay.memory = {text!r}; expected an amount" in refusal("replay", "memory", text)


def bad_value(kind: Any, bounds: Any) -> Any:
    """Return a value that a setting of this type must refuse."""
    if get_origin(kind) is Literal or kind is bool:
        return "nonsense"
    if bounds["at_least"] is not None:
        return bounds["at_least"] - 1
    return "nonsense" if bounds["above"] is None else bounds["above"]


@pytest.mark.parametrize(
    ("section", "key", "kind", "bounds"),
    [parameters for parameters in ALL if parameters[2] is not str],  # accepts any text
)
def test_every_setting_refuses_what_it_cannot_be_and_says_so(section, key, kind, bounds):
    optional = type(None) in get_args(kind)
    plain = next(k for k in get_args(kind) if k is not type(None)) if optional else kind
    value = bad_value(plain, bounds)
    message = refusal(section, key, value)
    assert f"{section}.{key} = " in message
    assert str(value) in message
    assert "expected " in message
    assert message.endswith(" or auto") == optional


@pytest.mark.parametrize(("section", "key", "kind", "bounds"), ALL, ids=NAMES)
def test_every_setting_has_documentation_and_accepts_its_own_bounds(section, key, kind, bounds):
    assert len(bounds["doc"]) > 3
    for bound in (bounds["at_least"], bounds["at_most"]):
        if bound is not None:
            assert one(section, key, bound) == bound


def test_settings_lists_every_setting_with_default_and_documentation():
    listed = list(settings())
    assert [name for name, *_ in listed] == NAMES
    assert all(documentation for _, _, documentation, _ in listed)
    defaults = {name: default for name, default, *_ in listed}
    assert defaults["learner.batch_size"] == 64
    assert defaults["run.env_args"] == {}
    assert defaults["actor.count"] is None


def test_settings_tells_what_each_accepts():
    accepted = {name: words for name, _, _, words in settings()}
    assert all(accepted.values())
    assert accepted["learner.precision"] == "one of auto, float32, bfloat16"
    assert accepted["network.noisy"] == "true or false"
    assert accepted["actor.n_step"].startswith("a whole number of at least 1")


def test_an_unknown_key_is_refused_with_those_that_exist():
    with pytest.raises(
        UsageError, match=r"^option: unknown key learner\.batchsize; learner has "
    ) as e:
        build(("option", {"learner": {"batchsize": 3}}))
    assert "batch_size" in str(e.value)


def test_an_unknown_section_is_refused_with_those_that_exist():
    with pytest.raises(UsageError, match=r"^option: unknown section agent; there are run, actor, "):
        build(("option", {"agent": {"batch_size": 3}}))


def test_a_bad_value_is_refused_even_where_a_higher_layer_overrides_it():
    with pytest.raises(UsageError, match=r"^file run\.toml: actor\.count = -1"):
        build(("file run.toml", {"actor": {"count": -1}}), ("option", {"actor": {"count": 1}}))


def test_defaults_are_not_shared_between_configurations():
    assert Config().run.env_args is not Config().run.env_args


def valid_values(kind: Any, bounds: Any) -> st.SearchStrategy[Any]:
    if type(None) in get_args(kind):
        plain = next(k for k in get_args(kind) if k is not type(None))
        return st.none() | valid_values(plain, bounds)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    if bounds["check"] is network_kind:
        return st.sampled_from([*NETWORK_KINDS, "my_package.networks:make"])
    if bounds["check"] is parse_target:
        return st.sampled_from(["return=475", "train/loss <= 1e-3", "eval/coverage=0.5"])
    if bounds["check"] is not None:
        amounts = ["8GB", "500 MB", "25%", "8000000000", "100%"]
        paths = bounds["check"] is absolute_path
        return st.sampled_from(["/journals", "~/runs"] if paths else amounts)
    if kind is str:
        return st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
    if kind is int:
        return st.integers(bounds["at_least"] or 0, bounds["at_most"] or 2**63 - 1)
    if kind is float:
        low = bounds["at_least"] if bounds["above"] is None else bounds["above"]
        return st.floats(low, bounds["at_most"], exclude_min=bounds["above"] is not None).filter(
            math.isfinite
        )
    words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=5)
    scalars = st.integers(-(2**63), 2**63 - 1) | st.booleans() | words
    return st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=3)


layers = st.fixed_dictionaries(
    {},
    optional={
        section: st.fixed_dictionaries(
            {}, optional={key: valid_values(kind, b) for s, key, kind, b in ALL if s == section}
        )
        for section in SECTIONS
    },
)


@hypothesis_settings(deadline=None, max_examples=60)
@given(layer=layers)
def test_what_is_written_to_toml_or_the_wire_is_read_back_the_same(layer):
    config = build(("option", layer))
    assert build(("file", tomllib.loads(config.to_toml()))) == config
    assert from_map(msgpack.unpackb(typing.cast(bytes, msgpack.packb(config.to_map())))) == config


def test_a_written_file_is_read_back_the_same(tmp_path):
    config = build(
        ("option", {"run": {"env_args": {"map_size": 16, "radii": [5, 4]}}, "actor": {"count": 2}})
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert build(("file", read_toml(path))) == config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[actor\n", "run.toml: "),
        (b"count = 3\n", "count is outside a \\[section\\]"),
        (b"\xff\xfe[actor]\n", "run.toml: it is not a text in UTF-8; save it as one$"),
        (b"[[actor]]\ncount = 3\n", "run.toml: actor is a list; write \\[actor\\]$"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_toml(path)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf[run]\nseed = 7\n", b"[run]\r\nseed = 7\r\n"])
def test_a_file_of_another_systems_editor_is_read(tmp_path, content):
    (tmp_path / "run.toml").write_bytes(content)
    assert read_toml(tmp_path / "run.toml") == {"run": {"seed": 7}}


def test_no_more_of_a_refused_value_is_shown_than_a_person_reads():
    assert len(refusal("run", "seed", "9" * 5000)) < 700
    assert "'" + 499 * "9" + "...; expected a whole number" in refusal("run", "seed", "9" * 5000)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.toml"):
        read_toml(tmp_path / "missing.toml")


def test_variables_of_the_environment_name_section_and_key():
    variables = {
        "PDQN_ACTOR__COUNT": "12",
        "PDQN_LEARNER__LEARNING_RATE": "1e-4",
        "PDQN_HOME": "not a setting",
        "ACTOR__COUNT": "not ours",
        "HOME": "/",
    }
    assert from_environment(variables) == {
        "actor": {"count": "12"},
        "learner": {"learning_rate": "1e-4"},
    }
    assert build(("environment", from_environment(variables))).actor.count == 12


def test_a_variable_with_one_underscore_too_few_is_refused_with_the_right_name():
    with pytest.raises(UsageError, match=r"PDQN_LEARNER_BATCH_SIZE: .* PDQN_LEARNER__BATCH_SIZE$"):
        from_environment({"PDQN_LEARNER_BATCH_SIZE": "3"})
    assert from_environment({"PDQN_FOLDER": "/tmp", "PDQN": "1", "LEARNER_BATCH_SIZE": "3"}) == {}


@pytest.mark.parametrize(
    "value", ["\udcff", ["a", "\udcff"], {"\udcff": 1}, {"b": {"c": "\udcff"}}]
)
def test_texts_that_are_not_utf8_are_refused_by_name(value: object):
    with pytest.raises(
        UsageError, match=r"^--set: run\.env_args.*udcff.*; expected a text in UTF-8$"
    ):
        build(("--set", {"run": {"env_args": {"name": value}}}))
    with pytest.raises(UsageError, match=r"^option: run\.env = .*; expected a text in UTF-8$"):
        build(("option", {"run": {"env": "\udcff"}}))


def test_variables_that_kubernetes_makes_for_services_are_not_settings():
    ports = ("PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR", "PORT_80_TCP_PORT", "PORT_80_TCP_PROTO")
    values = ("tcp://10.0.0.1:80", "tcp://10.0.0.1:80", "10.0.0.1", "80", "tcp")
    for service in ("PDQN", "PDQN_REPLAY", "PDQN_LEARNER_1"):
        variables = {f"{service}_{port}": value for port, value in zip(ports, values, strict=True)}
        variables |= {f"{service}_SERVICE_HOST": "10.0.0.1", f"{service}_SERVICE_PORT": "80"}
        assert from_environment(variables | {f"{service}_SERVICE_PORT_HTTP": "80"}) == {}
    with pytest.raises(UsageError, match=r"PDQN_SYSTEM__METRICS_PORT$"):
        from_environment({"PDQN_SYSTEM_METRICS_PORT": "9100"})


def test_arguments_of_another_environment_are_not_kept():
    first = {"run": {"env": "one", "env_args": {"level": 2}}, "evaluation": {"env_args": {"x": 1}}}

    def over(**run: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config = build(("file", first), ("option", {"run": run}))
        return config.run.env_args, config.evaluation.env_args

    assert over(env="two") == ({}, {})
    assert over(env="two", env_args={"speed": 1}) == ({"speed": 1}, {})
    assert over(env_args={"speed": 1}, env="two") == ({"speed": 1}, {})
    assert over(env="one", env_args={"speed": 1}) == ({"level": 2, "speed": 1}, {"x": 1})
    # If the file does not name an environment, its arguments apply to whatever is named.
    del first["run"]["env"]
    assert over(env="two") == ({"level": 2}, {"x": 1})


def test_a_variable_that_names_no_setting_is_refused():
    with pytest.raises(UsageError, match=r"^environment: unknown key actor\.cuont"):
        build(("environment", from_environment({"PDQN_ACTOR__CUONT": "1"})))


def test_assignments_name_section_and_key():
    layer = from_assignments(["actor.count = 3", "run.env=a=b", "actor.n_step=5", "actor.count=4"])
    assert layer == {"actor": {"count": "4", "n_step": "5"}, "run": {"env": "a=b"}}


@pytest.mark.parametrize("text", ["", "actor", "actor.count", "count=3", "actor.=3", "=3"])
def test_an_assignment_of_another_form_is_refused(text):
    with pytest.raises(UsageError, match=r"expected section\.key=value"):
        from_assignments([text])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("1.5", 1.5),
        ("true", True),
        ("[5, 4, 3]", [5, 4, 3]),
        ('"64"', "64"),
        ("fixed", "fixed"),
        ("5,4,3", "5,4,3"),
        ("{a = 1}", {"a": 1}),
        ("True", True),
        ("False", False),
        ("true story", "true story"),
        ("2020-01-01", "2020-01-01"),
        ("10:30:00", "10:30:00"),
        ("[1979-05-27T07:32:00Z]", "[1979-05-27T07:32:00Z]"),
        ("{day = 2020-01-01}", "{day = 2020-01-01}"),
        ("1\nb = 2", "1\nb = 2"),
        ("", ""),
    ],
)
def test_a_text_is_taken_as_the_toml_value_that_it_looks_like(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_a_setting_that_is_still_auto_cannot_be_used():
    assert resolved(0) == 0
    with pytest.raises(RuntimeError, match="still auto"):
        resolved(None)


def test_tables_are_given_as_texts_by_variable_and_by_assignment() -> None:
    variables = from_environment({"PDQN_EVALUATION__ENV_ARGS": "{life_loss=true, level=1}"})
    assignments = from_assignments(["evaluation.env_args={level = 2}", 'run.env_args={id = "a=b"}'])
    config = build(("environment variable", variables), ("--set", assignments))
    assert config.evaluation.env_args == {"life_loss": True, "level": 2}
    assert config.run.env_args == {"id": "a=b"}


def test_a_text_that_is_more_than_a_table_is_refused_in_one_line() -> None:
    message = refusal("run", "env_args", "{level = 3}\nfast = true")
    assert "expected a table" in message
    assert len(message.splitlines()) == 1


def test_arguments_of_the_environment_are_merged_over_the_layers() -> None:
    file = {"run": {"env_args": {"map_size": 64, "overlap": True}}}
    option = {"run": {"env_args": {"map_size": 32}}}
    built = build(("file", file), ("option", option))
    assert built.run.env_args == {"map_size": 32, "overlap": True}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e5", 100_000),
        ("100k", 100_000),
        ("100K", 100_000),
        ("1.5M", 1_500_000),
        ("2.5e3", 2500),
        ("1E+3", 1000),
        ("2G", 2 * 10**9),
        ("100_000", 100_000),
        (" 7 ", 7),
    ],
)
def test_a_whole_number_may_be_written_short(text: str, number: int):
    assert build(("--set", from_assignments([f"run.steps={text}"]))).run.steps == number
    file = tomllib.loads(f'[run]\nsteps = "{text}"\n')
    assert build(("file", file)).run.steps == number


@pytest.mark.parametrize(
    "text",
    ["1.5", "1e-3", "100m", "k", "1e", "k1", "1 k", "1kk", "0x10", "1e99", "9" * 400,
     "1e9999999999", "nan", "inf", "\u0661", "1.0000000001k", "9223372036854775808"],
)  # fmt: skip
def test_what_is_no_whole_number_is_refused_in_one_line(text: str):
    with pytest.raises(
        UsageError, match=r"^--set: run\.steps = .*; expected a whole number [^\n]*$"
    ):
        build(("--set", from_assignments([f"run.steps={text}"])))
