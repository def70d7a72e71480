"""Checks of the wording: of pages in Markdown, docstrings, comments and error sentences.

It finds what a pattern can find of the project's rules for sentences, and prints one line for
each finding: ``path:line: rule: excerpt``. Code is left out: fenced, between backticks, or
indented after an empty line.

    python tools/check_words.py                      everything
    python tools/check_words.py docs learner         these folders or files
    python tools/check_words.py --docstrings actors  only some kinds of text
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_WORDS = 25
KINDS = ("prose", "docstrings", "comments", "errors")
FOLDERS = ("docs", "pdqn", "actors", "replay", "learner", "launcher", "examples", "benchmarks")
FOLDERS += ("tests", "tools")
OPENERS = re.compile(r"(What|Where|How|Who|Whom|Whose|Whether|Which|Why)\b")

_PROCESSES = r"(?:actor|learner|replay|role|host|worker|evaluator|launcher|supervisor|coordinator)"
_PROCESSES = rf"(?:{_PROCESSES}s?|process(?:es)?)"
_AFTER_LONG = r"[.,;:)!?]|\s+(?:and|or|but|before|after|while|when|without|at|in)\b|\s*$"
_BE = r"(?:is|are|was|were)"
_COMPARED = r"(?:longer|more|less|fewer|later|sooner|\w+er than)\b"


@dataclass(frozen=True)
class Rule:
    """A phrase that the project avoids, with the name that findings give it."""

    name: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Text:
    """A text for people in a file, and the line at which it begins."""

    path: Path
    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Finding:
    """A place that breaks a rule."""

    path: Path
    line: int
    rule: str
    excerpt: str

    def __str__(self) -> str:
        """Give the line that is printed."""
        return f"{self.path}:{self.line}: {self.rule}: {self.excerpt}"


def _rule(name: str, pattern: str) -> Rule:
    return Rule(name, re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE))


RULES = (
    _rule("say 'is not a'", rf"(?<!there\s)\b{_BE} (?:none|no)\b(?! {_COMPARED})"),
    _rule("say 'again'", r"\banew\b"),
    _rule("say 'the same way' or 'both'", r"(?<!look\s)(?<!looks\s)\balike\b"),
    _rule("name the duration", rf"\bfor long(?={_AFTER_LONG})"),
    _rule("name the owner", r"\bone'?s own\b"),
    _rule("say 'also'", r", too(?=[.,;:)!?]| \(|\s*$)"),
    _rule("say 'is in'", r"\b(?:stands?|stood|standing) in\b(?! (?:for|a row)\b)"),
    _rule("say 'overrides' or 'precedes'", r"\b(?:goes|go|went) before\b"),
    _rule("say 'leave out'", r"\b(?:leaves?|left|leaving) (?:\w+ )?away\b"),
    _rule("name who says it", rf"\b(?:{_BE}|be|been|being) (?:said|told)\b(?! (?:apart|from)\b)"),
    _rule("name the quantity", r"\bso (?:many|often|long)\b(?! as\b)(?!(?: \w+)? that\b)"),
    _rule("say 'that' of a process", rf"\b{_PROCESSES},? (?:who|whom)\b"),
)
# Only in sentences that do not begin with a condition: there "that" may point back.
_COMMA_THAT = _rule(
    "no comma before 'that'",
    r"(?<![\])]), that (?:is|are|was|were|has|have|can|may|must|does|do)\b(?!,)",
)
_CONDITION = re.compile(r"\W*(?:If|When|While|Once|After|Where|Until|As)\b")
_SENTENCE = re.compile(r"""(?<=[.!?])["')\]*]*\s+(?=["'(\[*]*[A-Z_])""")
_WORD = re.compile(r"\S*[A-Za-z_]\S*")
_MARKED = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)|<!--.*?-->|(?<=\])\([^()\s]*\)|https?://\S+", re.S)
_FENCE = re.compile(r"\s*(```|~~~)")
_ITEM = re.compile(r"\s*(?:[*+-]|\d+\.|>|#+)\s")
_SECTION = re.compile(r"(?:Args|Attributes|Returns|Raises|Yields):$| {4}[\w.*, ]+: ")
_INDENTED = re.compile(r"( {4}|\t)\s*\S")


# ---- from files to texts ----


def texts_of(path: Path) -> list[Text]:
    """Read the texts of one file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return [Text(path, 1, "prose", source)]
    tree = ast.parse(source, str(path))
    return [*_docstrings(path, tree), *_comments(path, source), *_errors(path, tree)]


def _docstrings(path: Path, tree: ast.Module) -> Iterator[Text]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            value = first.value
            if isinstance(value.value, str):
                yield Text(path, value.lineno, "docstrings", _dedented(value.value))


def _dedented(text: str) -> str:
    """Remove the indentation of a docstring and keep its lines."""
    first, *rest = text.split("\n")
    depths = [len(line) - len(line.lstrip()) for line in rest if line.strip()]
    return "\n".join([first.lstrip(), *(line[min(depths, default=0) :] for line in rest)])


def _comments(path: Path, source: str) -> Iterator[Text]:
    """Join comments on adjacent lines, if each is alone on its line."""
    block: list[str] = []
    start = column = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        alone = not token.line[: token.start[1]].strip()
        if block and not (alone and token.start == (start + len(block), column)):
            yield Text(path, start, "comments", "\n".join(block))
            block = []
        if not block:
            start, column = token.start
        block.append(token.string.lstrip("#").removeprefix(" "))
    if block:
        yield Text(path, start, "comments", "\n".join(block))


def _errors(path: Path, tree: ast.Module) -> Iterator[Text]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in (*node.exc.args, *(word.value for word in node.exc.keywords)):
                yield from _literals(path, argument)


def _literals(path: Path, node: ast.AST) -> Iterator[Text]:
    """Give the string literals below a node, with one word for each formatted value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield Text(path, node.lineno, "errors", node.value)
    elif isinstance(node, ast.JoinedStr):
        parts = (str(p.value) if isinstance(p, ast.Constant) else "_" for p in node.values)
        yield Text(path, node.lineno, "errors", "".join(parts))
    else:
        for child in ast.iter_child_nodes(node):
            yield from _literals(path, child)


# ---- from texts to blocks: paragraphs, list items, headings, cells ----


def blocks_of(text: Text) -> Iterator[Text]:
    """Split a text into paragraphs, list items, headings and cells, without code blocks."""
    lines: list[str] = []
    start = text.line
    for number, line in enumerate([*_prose_lines(text.text), ""], text.line):
        row = line.lstrip().startswith("|")
        ends = row or not line.strip() or _ITEM.match(line) or _SECTION.match(line)
        if ends and lines:
            yield Text(text.path, start, text.kind, "\n".join(lines))
            lines = []
        if row:
            yield from (Text(text.path, number, text.kind, cell) for cell in _cells(line))
        elif line.strip():
            start = start if lines else number
            lines.append(line)


def _prose_lines(text: str) -> Iterator[str]:
    """Give every line of a text, and an empty one in place of each line of code."""
    fenced, after_gap, as_is = False, False, False
    for line in text.split("\n"):
        fence = bool(_FENCE.match(line))
        # Help begins with \b what click is to print as it is: examples of commands.
        as_is = line == "\b" or (as_is and bool(line.strip()))
        code = after_gap and _INDENTED.match(line) and not _ITEM.match(line)
        if fence or fenced or as_is or code:
            yield ""
        else:
            yield line
            after_gap = not line.strip()
        fenced ^= fence


def _cells(row: str) -> list[str]:
    """Split a row at the bars that are not within code."""
    bars = [index for index, letter in enumerate(masked(row)) if letter == "|"]
    return [row[a + 1 : b] for a, b in zip(bars, [*bars[1:], len(row)], strict=True)]


def masked(text: str) -> str:
    """Put underscores over inline code and blanks over addresses; lengths stay the same."""

    def cover(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "_" if match[1] else " ", match[0])

    return _MARKED.sub(cover, text)


# ---- from blocks to findings ----


def check(text: Text) -> Iterator[Finding]:
    """Find what breaks a rule in one text."""
    opener = OPENERS.match(text.text) if text.kind == "docstrings" else None
    if opener:
        yield _finding(text, f"docstring begins with {opener[0]!r}", opener.span())
    for block in blocks_of(text):
        yield from _phrases(block)
        yield from _sentences(block)


def _phrases(block: Text) -> Iterator[Finding]:
    hidden = masked(block.text)
    for rule in RULES:
        for match in rule.pattern.finditer(hidden):
            yield _finding(block, rule.name, match.span())


def _sentences(block: Text) -> Iterator[Finding]:
    for start, sentence in _split(masked(block.text)):
        words = len(_WORD.findall(sentence))
        if words > MOST_WORDS:
            yield _finding(block, f"{words} words in a sentence", (start, start + 30))
        match = None if _CONDITION.match(sentence) else _COMMA_THAT.pattern.search(sentence)
        if match:
            yield _finding(block, _COMMA_THAT.name, (start + match.start(), start + match.end()))


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Give each sentence and the offset at which it begins."""
    start = 0
    for gap in _SENTENCE.finditer(text):
        yield start, text[start : gap.start()]
        start = gap.end()
    rest = text[start:]
    yield start + len(rest) - len(rest.lstrip()), rest.lstrip()


def _finding(block: Text, rule: str, span: tuple[int, int]) -> Finding:
    """Name the line of a match, and quote the match with its surroundings."""
    start, end = span
    excerpt = " ".join(block.text[max(0, start - 30) : end + 30].split())
    return Finding(block.path, block.line + block.text.count("\n", 0, start), rule, excerpt)


# ---- the command ----


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Give the Markdown and Python files among the paths and in the folders."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix in (".md", ".py"))
        else:
            yield path


def everything() -> list[Path]:
    """List the pages in the current directory and the folders that the project has in it."""
    return [*sorted(Path().glob("*.md")), *(Path(name) for name in FOLDERS if Path(name).is_dir())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings and return the exit status: 1 if there are any."""
    parser = argparse.ArgumentParser(description="Check the wording of pages and of code.")
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (default: all)")
    for kind in KINDS:
        parser.add_argument(f"--{kind}", action="store_true", help=f"check {kind}")
    options = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if getattr(options, kind)] or KINDS
    missing = [str(path) for path in options.paths if not path.exists()]
    if missing:
        parser.error(f"not found: {', '.join(missing)}")
    findings = [
        finding
        for path in files_of(options.paths or everything())
        for text in texts_of(path)
        if text.kind in kinds
        for finding in check(text)
    ]
    sys.stdout.writelines(f"{finding}\n" for finding in findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
