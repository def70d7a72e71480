"""The processes of a session, as far as they live; any of them may end at any moment."""

from __future__ import annotations

import os

import psutil


def members(session: int) -> list[psutil.Process]:
    """List the living processes of a session, the pid of whose first one is given."""
    return [p for p in psutil.process_iter() if _session(p) == session and lives(p)]


def lives(process: psutil.Process) -> bool:
    """Return whether a process runs, and has not just ended without being waited for."""
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def title(process: psutil.Process) -> str:
    """Return the words that ps shows; none for a process that is gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return -1
