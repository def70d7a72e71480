"""The checker of wording: sentences that pass and that fail, and the texts that it finds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "check_words.py"


def _load() -> ModuleType:
    """Import the tool from its file: its folder is not a package."""
    spec = importlib.util.spec_from_file_location("check_words", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_words"] = module
    spec.loader.exec_module(module)
    return module


check_words = _load()


def found(folder: Path, text: str, name: str = "page.md") -> list[str]:
    """List ``line: rule`` of what the tool finds in a file with this text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    findings = [one for part in check_words.texts_of(path) for one in check_words.check(part)]
    return [f"{finding.line}: {finding.rule}" for finding in findings]


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("A pulse is no order.", "is not a"),
        ("Those are none of ours.", "is not a"),
        ("The role starts anew.", "again"),
        ("Both behave alike.", "same way"),
        ("It has waited for long.", "duration"),
        ("It waits for long before it starts.", "duration"),
        ("Bring one's own network.", "owner"),
        ("The hosts leave, too.", "also"),
        ("It logs there, too (in a thread).", "also"),
        ("The error stands in the log.", "is in"),
        ("An option goes before the file.", "overrides"),
        ("Leave it away.", "leave out"),
        ("The loss is said once.", "who says it"),
        ("The host is\ntold to end it.", "who says it"),
        ("One in so many steps.", "quantity"),
        ("It has run so often.", "quantity"),
        ("The actor who waits is ended.", "process"),
        ("The file, that is in use, stays.", "comma"),
        (" ".join(["word"] * 26) + ".", "26 words"),
    ],
)
def test_a_phrase_that_the_project_does_without_is_found(sentence: str, rule: str, tmp_path: Path):
    (only,) = found(tmp_path, sentence)
    assert rule in only


@pytest.mark.parametrize(
    "sentence",
    [
        "A pulse is not an order.",
        "There is no prefetch thread; there are none.",
        "It is no longer there, and is no slower than before.",
        "Made for long runs.",
        "A name stands in for another.",
        "Such a batch is, too large as it is, refused.",
        "The two cannot be told apart.",
        "It waits as long as it must, and so long as that helps.",
        "There are so many that they fill the disk.",
        "If the queue is full, that is reported.",
        "It ends, that is, it leaves.",
        "The person who waits.",
        "Maps look alike and stand in a row.",
        "The cells of a grid, int8[N, N], that are covered.",
        f"{' '.join(['word'] * 25)}. {' '.join(['Word'] * 25)}",
        f"{' '.join(['word'] * 20)} 1 2 3 4 5 6 7 8 9.",
    ],
)
def test_a_sentence_that_a_native_writes_passes(sentence: str, tmp_path: Path):
    assert found(tmp_path, sentence) == []


@pytest.mark.parametrize(
    "page",
    [
        "Text.\n\n```sh\nso many steps\n```\n\nText.",
        "Use `stands in` and ``is `no` code``.",
        "See [the page](https://host/anew).",
        "<!-- written\nanew -->",
        "Text.\n\n    is no prose\n\n    is no prose\n",
        "| a | b |\n|---|---|\n| `is no` | x |",
        "".join(f"* {' '.join(['word'] * 20)}\n" for _ in range(3)),
        "| " + " | ".join([" ".join(["word"] * 20)] * 3) + " |",
    ],
)
def test_code_addresses_and_the_borders_of_blocks_are_respected(page: str, tmp_path: Path):
    assert found(tmp_path, page) == []


def test_commands_that_click_prints_as_they_are_are_no_sentences(tmp_path: Path):
    commands = "\n".join(["pdqn launch --time so many"] * 9)
    page = f'"""Train.\n\n\\b\n{commands}\n\nLeave it away.\n"""'
    assert found(tmp_path, page, "code.py") == ["14: say 'leave out'"]


def test_findings_name_the_line_of_the_phrase(tmp_path: Path):
    page = "# Title\n\n```\ncode\n```\n\nFirst,\nit starts anew.\n\n* one\n* is no two\n|a|anew|"
    lines = [finding.partition(":")[0] for finding in found(tmp_path, page)]
    assert lines == ["8", "11", "12"]


@pytest.mark.parametrize(
    ("docstring", "passes"),
    [
        ("What an actor sends.", False),
        ("Whether it runs.", False),
        ("Return whether it runs.", True),
        ("Whatever arrives.", True),
    ],
)
@pytest.mark.parametrize("place", ["module", "class", "def", "async def"])
def test_docstrings_do_not_begin_with_a_question(
    place: str, docstring: str, passes: bool, tmp_path: Path
):
    head = "" if place == "module" else f"{place} thing{'' if place == 'class' else '()'}:\n    "
    findings = found(tmp_path, f'{head}"""{docstring}"""\n', "code.py")
    assert (findings == []) == passes


CODE = '''"""Code with one fault of each kind.

Args:
    first: one that is described in eleven words, which is not too many
    second: another one that is described in eleven words, which is fine
    third: the last one that is described in eleven words, so they count apart

    is no prose: an example
"""

name = "is no prose either"


def act(value: int) -> None:
    """Act on a value.

    It is no number that counts.
    """
    # A comment goes on
    # for long.
    x = value  # and one beside code, too
    print("is no error", x)
    raise ValueError(f"{value} is no {name!r}" if value else "stands in the way", ", ".join("a"))
'''


def test_docstrings_comments_and_errors_are_read_and_other_strings_are_not(tmp_path: Path):
    assert sorted(found(tmp_path, CODE, "code.py"), key=lambda one: int(one.split(":")[0])) == [
        "17: say 'is not a'",
        "20: name the duration",
        "21: say 'also'",
        "23: say 'is not a'",
        "23: say 'is in'",
    ]


def test_only_the_kinds_and_paths_that_are_named_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("It is no good.\n", encoding="utf-8")
    Path("learner").mkdir()
    Path("learner/code.py").write_text(CODE, encoding="utf-8")
    assert check_words.main([]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert check_words.main(["--comments", "--prose", "learner"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["learner/code.py:20", "learner/code.py:21"]
    assert check_words.main(["--errors", "README.md"]) == 0


def test_the_command_prints_findings_and_fails(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("It is no good.\n", encoding="utf-8")
    run = [sys.executable, str(TOOL), str(page)]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout == f"{page}:1: say 'is not a': It is no good.\n"
    missing = subprocess.run([*run, "nowhere"], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr


def test_the_documentation_passes():
    docs = Path(__file__).parents[1] / "docs"
    assert check_words.main([str(docs)]) == 0
