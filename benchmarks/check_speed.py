"""The guard against lost speed: ``python -m benchmarks.check_speed``, or ``make bench-check``.

It measures the hot paths of this tree and of an earlier commit in turns, so that what else the
machine does meets both. It fails if a path takes more than its allowance of the CPU time before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_SCRIPT = Path("benchmarks", "hot_paths.py")
_TIMEOUT_SECONDS = 600.0
# Products of matrices on several threads would measure the machine's load.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> int:
    """Measure, print one table, and return 1 if a path has become too slow."""
    parser = argparse.ArgumentParser(description="Compare the hot paths with an earlier commit.")
    parser.add_argument("--base", default="HEAD~1", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU seconds for each path")
    parser.add_argument("--allowance", type=float, default=1.15, help="largest ratio")
    parser.add_argument("--path", nargs="*", help="only these paths")
    options = parser.parse_args()
    arguments = ["--json", "--seconds", str(options.seconds)]
    arguments += ["--path", *options.path] if options.path else []
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    with checked_out(options.base) as base:
        for turn in range(options.rounds):
            trees = (base, _ROOT) if turn % 2 else (_ROOT, base)
            found = {tree: _measured(tree, arguments) for tree in trees}
            rounds.append((found[base], found[_ROOT]))
    return _report(rounds, options.allowance)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Check out a commit beside this tree, and remove it in the end."""
    with tempfile.TemporaryDirectory(prefix="pdqn-base-") as folder:
        tree = Path(folder, "tree")
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(_ROOT), *arguments], check=True)


def _measured(tree: Path, arguments: Sequence[str]) -> dict[str, float]:
    """Run the measurement on a tree's packages.

    A commit that has no such script is measured by this tree's; what it lacks cannot be compared.
    """
    script = tree / _SCRIPT if (tree / _SCRIPT).exists() else _ROOT / _SCRIPT
    variables = {**os.environ, **_ONE_THREAD, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-P", str(script), *arguments]
    done = subprocess.run(
        command,
        cwd=tree,
        env=variables,
        stdout=subprocess.PIPE,
        check=True,
        timeout=_TIMEOUT_SECONDS,
    )
    return json.loads(done.stdout)


def ratios(rounds: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
    """Return each path's median ratio of the time after to the time before.

    Args:
        rounds: for each round, the microseconds of every path before and after.
    """
    both = set.intersection(*({*before} & {*after} for before, after in rounds))
    return {
        name: statistics.median(after[name] / before[name] for before, after in rounds)
        for name in rounds[0][1]
        if name in both
    }


def _report(rounds: Sequence[tuple[dict[str, float], dict[str, float]]], allowance: float) -> int:
    found = ratios(rounds)
    print(f"{'path':28}{'before, us':>12}{'now, us':>12}{'ratio':>8}")
    for name, ratio in found.items():
        before, after = (statistics.median(r[k][name] for r in rounds) for k in (0, 1))
        slow = "  too slow" if ratio > allowance else ""
        print(f"{name:28}{before:12.2f}{after:12.2f}{ratio:8.2f}{slow}")
    for name in sorted(set(rounds[0][1]) - set(found)):
        print(f"{name:28}{'not there':>12}")
    slow_paths = [name for name, ratio in found.items() if ratio > allowance]
    if slow_paths:
        print(f"slower than {allowance:g} times before: {', '.join(slow_paths)}")
    return 1 if slow_paths else 0


if __name__ == "__main__":
    sys.exit(main())
