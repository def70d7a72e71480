"""The package from outside: its name, files, version, settings, and paths in its pages."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pdqn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
PATH = re.compile(r"(?<![\w/.<>-])(?:[\w.-]+/)+[\w-]+\.(?:py|md|toml|yml)\b")


def test_python_m_pdqn_is_the_command_under_its_own_name(tmp_path: Path):
    command = [sys.executable, "-W", "error", "-m", "pdqn", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: pdqn [OPTIONS] COMMAND")


def test_every_folder_with_code_is_in_the_wheel():
    roots = {name.partition(".")[0] for name in PACKAGES}
    folders = {path.parent for root in roots for path in (ROOT / root).rglob("__init__.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == set(PACKAGES)


def test_every_package_says_that_it_has_types():
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    assert "py.typed" in shipped["*"]
    assert all((ROOT / name / "py.typed").is_file() for name in PACKAGES if "." not in name)


def test_all_files_agree_on_the_version():
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    changelog = re.findall(r"^## \[?(\d.*?)\]? ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert citation is not None
    assert PROJECT["project"]["version"] == pdqn.__version__
    release, _, development = pdqn.__version__.partition(".dev")
    if not development:
        assert {citation[1], changelog[0]} == {release}
    else:  # what is released last is older than what is worked on
        assert citation[1] == changelog[0]
        assert [*map(int, changelog[0].split("."))] < [*map(int, release.split("."))]


def test_the_page_of_settings_has_all_of_them():
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    write = runpy.run_path(str(ROOT / "docs" / "write_settings.py"))
    assert write["with_table"](page) == page, "run python docs/write_settings.py"


def test_every_file_that_the_pages_name_by_its_path_exists():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = {
        (page.name, path)
        for page in pages
        for path in PATH.findall(page.read_text("utf-8"))
        if path.partition("/")[0] in folders
    }
    assert ("architecture.md", "launcher/run/state.py") in named
    assert [(page, path) for page, path in named if not (ROOT / path).is_file()] == []
