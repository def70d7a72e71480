"""Tests and figures of pdqn on a GPU: ``python benchmarks/gpu.py``, at most eight minutes.

It is for a machine with a GPU, Python 3.12, torch, numba and numpy, and without a package index.
Packages that are missing come from ``.wheels``, which ``benchmarks/fetch_wheels.py`` fills where
there is an index. They go to a temporary folder; nothing is installed for good.

The stages are in ``benchmarks/gpu_stages.py``. Each is a process with a time limit. One that fails,
or takes too long, is recorded with what it had found by then, and the next one runs. The file is
written after each. ``--dry-run`` does the same on the CPU with tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)-.*\.whl")
ALL_SECONDS = 475.0
_INSTALL_SECONDS = 30.0
_LEAST_SECONDS = 5.0  # with less, a stage is left out
_OUTPUT_CHARACTERS = 3000
_DRY_PATIENCE = 3.0  # a machine without a GPU may be slow, and nothing is measured there


@dataclass(frozen=True)
class Stage:
    """A stage and its longest time.

    Attributes:
        name: as in ``benchmarks/gpu_stages.py``.
        seconds: limit, the start of its process included.
    """

    name: str
    seconds: float


STAGES = (
    Stage("machine", 25.0),
    Stage("tests", 75.0),
    Stage("precision", 25.0),
    Stage("memory", 40.0),
    Stage("graphs", 45.0),
    Stage("rates", 60.0),
    Stage("run", 170.0),
)


def main() -> int:
    """Install what is missing, run the stages, and return 1 if one did not succeed."""
    options = _options()
    device = "cpu" if options.dry_run else options.device
    patience = _DRY_PATIENCE if options.dry_run else 1.0
    chosen = [
        Stage(stage.name, patience * stage.seconds)
        for stage in STAGES
        if not options.stage or stage.name in options.stage
    ]
    document: dict[str, Any] = {
        "device": device,
        "dry_run": options.dry_run,
        "commit": options.commit,
        "python": sys.version,
        "stages": {},
    }
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pdqn-gpu-") as folder:
        site = Path(folder, "site")
        document["installed"] = install(options.wheels, site)
        arguments = ["--device", device, *(["--tiny"] if options.dry_run else [])]
        run_stages(
            chosen,
            lambda stage: [sys.executable, "-m", "benchmarks.gpu_stages", stage, *arguments],
            document,
            options.out,
            began + patience * ALL_SECONDS,
            {"PYTHONPATH": os.pathsep.join([str(site), str(_ROOT)])},
        )
    document["seconds"] = round(time.monotonic() - began, 1)
    write(options.out, document)
    return int(any(stage["status"] != "ok" for stage in document["stages"].values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure pdqn on a GPU, within eight minutes.")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--stage", nargs="*", choices=[stage.name for stage in STAGES])
    parser.add_argument("--wheels", type=Path, default=_ROOT / ".wheels", help="folder of wheels")
    parser.add_argument("--commit", default="", help="commit of this tree, for the file")
    return parser.parse_args()


def missing(wheels: Path) -> list[Path]:
    """List the wheels whose distributions this Python does not have in any version."""
    found: list[Path] = []
    for wheel in sorted(wheels.glob("*.whl")):
        name = _WHEEL.fullmatch(wheel.name)
        if name is None:
            continue
        try:
            metadata.version(name["name"].replace("_", "-"))
        except metadata.PackageNotFoundError:
            found.append(wheel)
    return found


def install(wheels: Path, site: Path) -> dict[str, Any]:
    """Install the wheels that are missing into a folder; return which, or why that failed."""
    needed = missing(wheels)
    if not needed:
        return {"wheels": []}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--target", str(site), *map(str, needed)]
    result: dict[str, Any] = {"wheels": [wheel.name for wheel in needed]}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return {**result, "error": f"pip took more than {_INSTALL_SECONDS:g} s"}
    return {**result, "error": done.stderr[-_OUTPUT_CHARACTERS:]} if done.returncode else result


def run_stages(
    stages: Sequence[Stage],
    command: Callable[[str], list[str]],
    document: dict[str, Any],
    out: Path,
    deadline: float,
    variables: Mapping[str, str],
) -> None:
    """Run the stages one after another, and write the document after each.

    Args:
        stages: in order.
        command: function that gives a stage's command. ``--result`` and ``--seconds`` are added.
        document: gets each stage's record in ``stages``, by name.
        out: file of the document.
        deadline: end of all stages, by ``time.monotonic``.
        variables: of the environment of each.
    """
    for stage in stages:
        left = min(stage.seconds, deadline - time.monotonic())
        if left < min(_LEAST_SECONDS, stage.seconds):
            document["stages"][stage.name] = {"status": "left out"}
        else:
            document["stages"][stage.name] = run_stage(command(stage.name), left, variables)
        write(out, document)
        print(_line(stage.name, document["stages"][stage.name]), flush=True)


def run_stage(command: list[str], seconds: float, variables: Mapping[str, str]) -> dict[str, Any]:
    """Run a stage's process within a time, and return its record."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="pdqn-stage-"))
    result, log = folder / "result.json", folder / "output"
    try:
        status = _ended(
            [*command, "--result", str(result), "--seconds", f"{seconds:.0f}"],
            seconds,
            variables,
            log,
        )
        output = log.read_text(encoding="utf-8", errors="replace")
        record: dict[str, Any] = {
            "status": status,
            "seconds": round(time.monotonic() - began, 1),
            "result": json.loads(result.read_text(encoding="utf-8")) if result.exists() else None,
        }
        return record if status == "ok" else {**record, "output": output[-_OUTPUT_CHARACTERS:]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ended(command: list[str], seconds: float, variables: Mapping[str, str], log: Path) -> str:
    """Wait for a process to end, or end it with all that it has started; return its status."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            return "failed" if process.wait(seconds) else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "late"


def write(out: Path, document: Mapping[str, Any]) -> None:
    """Replace the document's file."""
    new = out.with_name(f"{out.name}.new")
    new.write_text(json.dumps(document, indent=1), encoding="utf-8")
    new.replace(out)


def _line(name: str, record: Mapping[str, Any]) -> str:
    lines = str(record.get("output", "")).strip().splitlines()
    said = f"  {lines[-1][:150]}" if lines else ""
    return f"{name:12}{record['status']:10}{record.get('seconds', 0.0):6.1f} s{said}"


if __name__ == "__main__":
    sys.exit(main())
