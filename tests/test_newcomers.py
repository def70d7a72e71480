"""Pages and commands for somebody who is new: what is installed, sizes, words and papers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.plan.prepare import prepare
from launcher.plan.report import as_json, report
from launcher.terminal import terminal
from pdqn.layers import build

ROOT = Path(__file__).parents[1]
CITED = re.compile(r"((?:van )?[A-Z]\w+(?: et al\.| and \w+)) (\d{4})")


def planned_by_make(directory: Path, *targets: str) -> str:
    """Return what make would run in a checkout, which is fresh unless it has been used."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        if not (directory / name).exists():
            shutil.copy(ROOT / name, directory)
    done = subprocess.run(
        ["make", "--dry-run", *targets],
        cwd=directory, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def test_training_installs_what_training_needs_and_shows_how_far_it_is(tmp_path: Path):
    training = planned_by_make(tmp_path, "train")
    assert "pip install --constraint constraints.txt --editable .\n" in training
    assert "[dev]" not in training
    assert "--quiet" not in training
    assert "takes some minutes" in training
    assert "pdqn launch" in training
    assert "--editable '.[dev]'" in planned_by_make(tmp_path, "test")


def test_training_uses_an_environment_with_the_tools(tmp_path: Path):
    planned_by_make(tmp_path, "train")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    assert "pip" not in planned_by_make(tmp_path, "train")


def test_check_tells_the_size_of_the_network(capsys: pytest.CaptureFixture[str]):
    _, here, plan = prepare(build(("test", {"run": {"env": "CartPole-v1"}})))
    terminal(width=200).print(report(here, plan))
    assert re.search(r"network's size +67,843 parameters, 271 kB", capsys.readouterr().out)
    assert as_json(here, plan)["plan"]["network_parameters"] == 67_843


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "MinAtar/Breakout-v1", "ALE/Breakout-v5", "pdqn/CirclePlacement-v0"]
)
def test_the_page_about_networks_has_their_sizes(env_id: str):
    *_, plan = prepare(build(("test", {"run": {"env": env_id}})))
    row = rf"\| {re.escape(env_id)} \| `(\w+)` \| ([\d,]+) \|"
    found = re.search(row, (ROOT / "docs" / "networks.md").read_text("utf-8"))
    assert found is not None
    assert found[2] == f"{plan.parameter_bytes // 4:,}"


def test_every_paper_that_a_page_cites_has_a_link():
    linked = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    cited = {
        " ".join(names)
        for page in (ROOT / "docs").glob("*.md")
        for names in CITED.findall(" ".join(page.read_text("utf-8").split()))
    }
    assert {"van Hasselt et al. 2016", "Horgan et al. 2018"} <= cited
    assert {paper for paper in cited if f"[{paper}](https://" not in linked} == set()


def test_the_glossary_explains_every_role_and_is_in_order():
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8").partition("## Papers")[0]
    words = re.findall(r"^\| ([\w ,-]+?) \|", text, re.M)[1:]
    assert {"actor", "learner", "replay", "role", "coordinator", "policy lag"} <= set(words)
    assert words == sorted(words, key=str.lower)
