"""Child processes whose imports do not begin in the directory where they were started.

Python searches that directory first, so a person's ``actors`` or ``random.py`` would shadow ours or
Python's. Here it comes last, so that a person's own environments are still found.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "PYTHONSAFEPATH"
_OURS = "pdqn"  # Python accepts any text; this one tells who set it


@contextmanager
def safe_path() -> Iterator[None]:
    """Keep the processes that the block starts from searching that directory first."""
    before = os.environ.get(_NAME)
    os.environ[_NAME] = before or _OURS
    try:
        yield
    finally:
        forget()


def find_own_modules() -> None:
    """Let imports find modules in the current directory, after all others.

    Call this once a person has named code there. Otherwise no optional package that is missing may
    be found in a directory that came with somebody else's files.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def forget() -> None:
    """Undo ``safe_path`` for processes that this one starts; a person's own setting stays."""
    if os.environ.get(_NAME) == _OURS:
        del os.environ[_NAME]
