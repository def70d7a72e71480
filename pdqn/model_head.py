"""The names of a run's model files, and the learner steps of one, read without torch.

The launcher asks for them at the end of a run, and importing torch takes longer than that end.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from pdqn.checksum import check
from pdqn.errors import UsageError, first_line
from pdqn.text import printable

FORMAT = 3
# Model files in a run directory: the last parameters, and those with the best evaluation.
FINAL_MODEL, BEST_MODEL = "final_model.pth", "best_model.pth"
# The parameters with which a run began, if a person named some.
INITIAL_MODEL = "initial_model.pth"
# What a role's note says when it could not save.
NOT_SAVED = "not saved"
_UNREADABLE = (
    OSError, EOFError, RuntimeError, pickle.UnpicklingError, LookupError, TypeError, ValueError,
    AttributeError, AssertionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def model_steps(path: Path) -> int:
    """Return the learner steps of a model file, which agrees with its checksum.

    Raises:
        UsageError: it is not a model that this version reads.
    """
    try:
        with path.open("rb") as file:
            check(file)
            with zipfile.ZipFile(file) as archive:
                (name,) = (one for one in archive.namelist() if one.endswith("/data.pkl"))
                content = _WithoutTensors(io.BytesIO(archive.read(name))).load()
        check_format(path, content)
        return int(content["parameter_version"])
    except _UNREADABLE as error:
        raise not_read(path, unreadable_reason(error)) from error


def check_format(path: Path, content: dict[str, Any]) -> None:
    """Refuse the content of a file of another format.

    Raises:
        UsageError: it has one.
    """
    if content.get("format") != FORMAT:
        raise UsageError(f"{path}: model format {content.get('format')!r:.40}, not {FORMAT}")


def not_read(path: Path, reason: str) -> UsageError:
    """Return the error for a file that cannot be read."""
    return UsageError(f"{path}: not a model that this version reads ({reason})")


def unreadable_reason(error: Exception) -> str:
    """Return the reason why a file of tensors cannot be read, in one line."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        # Torch's message recommends weights_only=False, which would run foreign code.
        return "damaged, or another kind of file"
    return printable(first_line(error))


class _WithoutTensors(pickle.Unpickler):
    """A reader of plain values, which makes nothing of tensors and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or a function."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _nothing
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a model")

    def persistent_load(self, pid: Any) -> None:
        """Leave out the numbers of a tensor."""


def _nothing(*_: Any) -> None:
    """Stand for a tensor."""
