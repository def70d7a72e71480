"""Files for containers and dashboards: they name what exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from launcher.cli.commands import cli
from launcher.records.sinks import metric_name
from pdqn import figures

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = {
    "FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "STOPSIGNAL", "ENTRYPOINT", "CMD",
}  # fmt: skip


def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana.json").read_text("utf-8"))


def test_the_dashboard_shows_figures_that_a_run_serves():
    served = {metric_name(figure.name) for figure in figures.computed(None)}
    served |= {metric_name(name) for name in figures.BY_NAME}
    shown = {
        expression
        for panel in dashboard()["panels"]
        for target in panel["targets"]
        for expression in re.findall(r"pdqn_\w+", target["expr"])
    }
    assert len(shown) > 15
    assert shown <= served
    assert {panel["type"] for panel in dashboard()["panels"]} == {"timeseries"}


def test_no_two_panels_are_in_one_place():
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)
    assert all(
        panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in dashboard()["panels"]
    )


def test_every_service_runs_a_command_with_options_that_exist():
    for name, service in services().items():
        command, *arguments = service["command"]
        known = cli.commands[command]
        context = known.make_context(command, list(arguments), parent=click.Context(cli))
        assert context.params, name


def test_roles_join_with_the_keys_that_are_made_for_them():
    keys = services()["keys"]["command"]
    folder, made = keys[1], {name.partition(":")[0] for name in keys[2:]}
    for name in ("learner", "actors"):
        (key,) = [part for part in services()[name]["command"] if part.startswith("--key=")]
        assert Path(key.removeprefix("--key=")) == Path(folder) / f"{name}.key"
        assert name in made
    assert f"--keys={folder}" in services()["head"]["command"]


def test_the_image_has_every_package_and_nothing_unknown():
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= INSTRUCTIONS
    copied = {part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]}
    assert {"pdqn", "actors", "replay", "learner", "launcher", "pyproject.toml"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    kept = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(kept)
    assert "USER pdqn" in lines, "not as root"
