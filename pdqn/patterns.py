"""Patterns of the addresses that roles bind: ``ipc:///folder/{role}-{name}``."""

from __future__ import annotations


def fill(pattern: str, placeholder: str, value: str) -> str:
    """Replace a placeholder in the last part of a pattern.

    The folder before it is a person's, and may have any name, ``{role}`` included.
    """
    folder, slash, name = pattern.rpartition("/")
    return f"{folder}{slash}{name.replace(f'{{{placeholder}}}', value)}"
