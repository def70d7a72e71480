"""The hook that Python imports first where this folder is in PYTHONPATH: it adds the witness.

Replay itself is not changed. Once ``replay.keeper`` is imported, its journal's turns are written
down beside the run as well, in the folder that ``CHAOS_WITNESS`` names.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType

_WATCHED = "replay.keeper"


class _Finder(importlib.abc.MetaPathFinder):
    """A finder that has one module changed after it was loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as others would, with a loader that adds the witness."""
        if fullname != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None, fullname
        assert spec.loader is not None, fullname
        spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """A loader that adds the witness to what another one loads."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Make the module as the other loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load the module, and add the witness."""
        self._loader.exec_module(module)
        from benchmarks.chaos import witness

        witness.install(module, os.environ["CHAOS_WITNESS"])


if "CHAOS_WITNESS" in os.environ:
    sys.meta_path.insert(0, _Finder())
