"""The folder of code that torch compiles: one that no other user can have made first."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_NAME = "TORCHINDUCTOR_CACHE_DIR"


def keep_caches_private() -> None:
    """Have torch keep compiled code in this user's cache; a person's own setting stays.

    Torch would use a folder in /tmp with a name that anybody can guess, and run what is there.
    """
    if _NAME in os.environ:
        return
    # Without a folder of their own, as in some containers, users have torch's default.
    with contextlib.suppress(OSError, RuntimeError):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = home / "pdqn" / "torchinductor"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ[_NAME] = str(folder)
