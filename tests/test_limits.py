"""The limits on sizes that CONTRIBUTING names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pdqn", "actors", "replay", "learner", "launcher")
FOLDER, FILE, CLASS, METHODS, FUNCTION = 2200, 700, 350, 30, 50
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def too_large(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    name = str(path.relative_to(ROOT))
    if (lines := text.count("\n")) > FILE:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and length(node) > FUNCTION:
            yield f"{name}: {node.name}: {length(node)} lines"
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(part, ast.FunctionDef) for part in node.body)
            if length(node) > CLASS or methods > METHODS:
                yield f"{name}: {node.name}: {length(node)} lines, {methods} methods"


def test_files_classes_and_functions_are_small():
    found = {text for path in FILES for text in too_large(path)}
    assert found == set()


def test_folders_of_the_launcher_are_small():
    folders = {path.parent for path in FILES if path.is_relative_to(ROOT / "launcher")}
    sizes = {
        str(folder.relative_to(ROOT)): sum(
            path.read_text("utf-8").count("\n") for path in folder.glob("*.py")
        )
        for folder in folders
    }
    assert {folder: size for folder, size in sizes.items() if size > FOLDER} == {}
