"""Wheels for ``benchmarks/gpu.py`` on a machine without a package index; fetched beforehand.

``python benchmarks/fetch_wheels.py`` fills ``.wheels`` beside the packages, which git ignores. They
are for Python 3.12 on x86-64; torch, numba and numpy have to be there already. It has what a run
needs without pictures, what the learner's tests need, and nothing else, so that it is small.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
WHEELS = _ROOT / ".wheels"
MOST_BYTES = 60_000_000
# With what they need in turn: nothing else is fetched.
NAMES = (
    "absl-py", "click", "cloudpickle", "Farama-Notifications", "gymnasium", "hypothesis",
    "iniconfig", "markdown-it-py", "mdurl", "msgpack", "nvidia-ml-py", "packaging", "pillow",
    "pluggy", "protobuf", "psutil", "Pygments", "pytest", "pytest-timeout", "pyzmq", "rich",
    "setproctitle", "sortedcontainers", "tensorboard", "tomli_w", "zstandard",
)  # fmt: skip
_PYTHON = "3.12"
# pip takes a wheel only if one of these is exactly its own.
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (12, 17, 24, 26, 27, 28, 31, 34)]
_PLATFORMS += ["manylinux2010_x86_64", "manylinux2014_x86_64"]


def main() -> int:
    """Fetch the wheels, and print their size; return 1 if they are too large together."""
    parser = argparse.ArgumentParser(description="Fetch wheels for a machine without an index.")
    parser.add_argument("--to", type=Path, default=WHEELS, help="folder")
    options = parser.parse_args()
    options.to.mkdir(exist_ok=True)
    for old in options.to.glob("*.whl"):
        old.unlink()
    subprocess.run([sys.executable, *download(options.to, pins())], check=True)
    sizes = [wheel.stat().st_size for wheel in options.to.glob("*.whl")]
    print(f"{len(sizes)} wheels, {sum(sizes) / 1e6:.1f} MB, in {options.to}")
    return int(sum(sizes) > MOST_BYTES)


def download(folder: Path, requirements: list[str]) -> list[str]:
    """Return pip's arguments that download these requirements, and nothing that they need."""
    arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    arguments += ["--python-version", _PYTHON, "--implementation", "cp"]
    for platform in _PLATFORMS:
        arguments += ["--platform", platform]
    return [*arguments, "--dest", str(folder), *requirements]


def pins() -> list[str]:
    """Return each name with the version that ``constraints.txt`` has for it, if it has one."""
    lines = (_ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {_plain(line.partition("==")[0]): line for line in lines if "==" in line}
    return [pinned.get(_plain(name), name) for name in NAMES]


def _plain(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
