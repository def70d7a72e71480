"""Words of a person about a run, and the record of where it was started; files in its directory."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pdqn
from pdqn.errors import UsageError
from pdqn.objects import parse_object
from pdqn.text import printable

ABOUT, ORIGIN = "about.json", "origin.json"
_MOST_NAME, _MOST_NOTE, _MOST_FILE = 100, 10_000, 1 << 20
_TAG = re.compile(r"[\w.:/+-]{1,50}")
_HASH = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True)
class About:
    """Words of a person about a run.

    Attributes:
        name: what it is called; empty if it has no name.
        tags: words that runs have in common, such as ``baseline``.
        notes: sentences, oldest first.

    Raises:
        UsageError: a name or note is too long, or a tag is not one word.
    """

    name: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the words, and keep each tag once."""
        if len(self.name) > _MOST_NAME:
            raise UsageError(f"--name has {len(self.name)} characters; at most {_MOST_NAME}")
        for tag in self.tags:
            if not _TAG.fullmatch(tag):
                raise UsageError(
                    f"--tag {printable(tag)}: expected one word of at most 50 letters, digits and "
                    "the characters . : / + - _"
                )
        for note in self.notes:
            if len(note) > _MOST_NOTE:
                raise UsageError(f"a note has {len(note)} characters; at most {_MOST_NOTE}")
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "tags", tuple(dict.fromkeys(self.tags)))
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))

    def joined(self, newer: About) -> About:
        """Return the words of both: the newer name, all tags, and all notes."""
        return About(
            newer.name or self.name, (*self.tags, *newer.tags), (*self.notes, *newer.notes)
        )

    @property
    def text(self) -> str:
        """The content of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def read_about(run_dir: Path) -> About:
    """Read a run's words; none if the file is missing or damaged."""
    found = read_json(run_dir / ABOUT)
    name, tags, notes = found.get("name"), found.get("tags"), found.get("notes")
    try:
        return About(name if isinstance(name, str) else "", _texts(tags), _texts(notes))
    except UsageError:
        return About()


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file that holds a JSON object; an empty one where it is missing or damaged."""
    try:
        with path.open("rb") as file:
            return parse_object(file.read(_MOST_FILE))
    except OSError:
        return {}


def origin(machine: Mapping[str, Any]) -> str:
    """Return the content of the file that says where and from what a run was started.

    Args:
        machine: what is known of this host.
    """
    package = Path(pdqn.__file__).resolve().parent.parent
    found = {
        "clock": time.time(),
        "pdqn": pdqn.__version__,
        "commit": commit_of(package),
        "own_commit": commit_of(_here()),
        "command": [printable(part) for part in sys.argv],
        "machine": dict(machine),
    }
    return json.dumps(found, indent=2, default=str) + "\n"


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:
        return Path("/nowhere")


def commit_of(folder: Path) -> str:
    """Return the commit that a folder's checkout is at, without starting git; empty without one."""
    for place in (folder, *folder.parents):
        if (place / ".git").exists():
            try:
                return _commit_in(place / ".git")
            except OSError:
                return ""
    return ""


def _commit_in(git: Path) -> str:
    if git.is_file():  # another working tree of a repository
        git = git.parent / git.read_text("utf-8").partition("gitdir:")[2].strip()
    head = (git / "HEAD").read_text("utf-8").strip()
    if not head.startswith("ref:"):
        return head if _HASH.fullmatch(head) else ""
    name = head.partition("ref:")[2].strip()
    common = git / "commondir"
    folders = [git, git / common.read_text("utf-8").strip()] if common.is_file() else [git]
    for place in folders:
        if (place / name).is_file():
            found = (place / name).read_text("utf-8").strip()
            return found if _HASH.fullmatch(found) else ""
        if (place / "packed-refs").is_file():
            for line in (place / "packed-refs").read_text("utf-8").splitlines():
                commit, _, ref = line.partition(" ")
                if ref == name and _HASH.fullmatch(commit):
                    return commit
    return ""
