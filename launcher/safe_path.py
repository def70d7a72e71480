"""Python processes that do not find modules in the directory that they happen to be started in.

Python puts that directory first, where a person's ``actors`` or ``random.py`` would take the place
of ours or Python's own. Environments of a person's own are found there all the same: it comes last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "PYTHONSAFEPATH"
_OURS = "pdqn"  # any text will do for Python; this one says who set it


@contextmanager
def safe_path() -> Iterator[None]:
    """Processes that are started within do not look there."""
    before = os.environ.get(_NAME)
    os.environ[_NAME] = before or _OURS
    try:
        yield
    finally:
        forget()


def forget() -> None:
    """Let what this process starts look where Python looks, as the person had it."""
    if os.environ.get(_NAME) == _OURS:
        del os.environ[_NAME]
