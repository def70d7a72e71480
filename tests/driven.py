"""A stand-in for the process of a run: a script that speaks as the driven console does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HEAD = """
import json, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
layers = json.loads(sys.stdin.readline())
def figures(stage, **figures):
    print(json.dumps({"event": "progress", "run_dir": str(path), "stage": stage, "line": stage,
        "elapsed_seconds": 1.5, "progress": 0.5, "remaining_seconds": None,
        "figures": figures}), flush=True)
def evaluate(mean):
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"time_seconds": 1, "eval/parameter_version": 3,
            "eval/return_mean": mean}) + "\\n")
def end(reason="time", code=0, error=None):
    (path / "summary.json").write_text(json.dumps({"exit_reason": reason}))
    print(json.dumps({"event": "summary", "error": error, "summary": {"exit_reason": reason}}),
        flush=True)
    sys.exit(code)
signal.signal(signal.SIGINT, lambda *_: end("interrupted"))
path.mkdir(exist_ok=True)
(path / "config.toml").touch()
"""


def start_script(path: Path, script: str) -> Callable[..., subprocess.Popen[str]]:
    """Make a ``pdqn.driver.child.start`` that starts a script for a run in ``path``."""

    def start(arguments: Sequence[str], folders: Sequence[str] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-S", "-c", HEAD + script, str(path), json.dumps([*arguments])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )

    return start
