"""Learning curves, ours beside a peer's: ``python -m benchmarks.learning CASE``.

    python -m benchmarks.learning list                       the cases, and what is missing
    python -m benchmarks.learning cartpole                   all seeds of a case
    python -m benchmarks.learning ablation --seeds 1 --time 60
    python -m benchmarks.learning report                     docs/learning.md and its pictures

Every run leaves one small JSON file in ``--out``. A run with a file is skipped, so a stopped case
continues where it was. Systems take turns, seed by seed, on an otherwise idle machine. When a
run fails, its error is printed, the other runs follow, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import learning_results as results
from benchmarks.learning_cases import Case, System, cases
from benchmarks.learning_runs import ROOT, RunFailedError, Tools, run

DOCUMENT = ROOT / "docs" / "learning.md"
RESULTS = ROOT / "docs" / "learning" / "results"
COMMANDS = ("list", "report")


def main() -> int:
    """Do what the command line says and return the exit code."""
    chosen = parser().parse_args()
    # Each run has its own session, and without this handler it would outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if chosen.case == "report":
        # Only reports need Matplotlib.
        from benchmarks.learning_report import report

        report(chosen.out, DOCUMENT)
        return 0
    if chosen.case == "list":
        return show(chosen.out)
    case = next(case for case in cases() if case.name == chosen.case)
    return run_case(case, chosen)


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    names = [case.name for case in cases()]
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description="Learning curves beside a peer's."
    )
    found.add_argument("case", choices=[*COMMANDS, *names], metavar="CASE|list|report")
    found.add_argument("--seeds", type=int, nargs="+", help="instead of the case's")
    found.add_argument("--systems", nargs="+", help="only these, by name")
    found.add_argument("--time", type=seconds, help="of training, instead of the case's: 90, 5m")
    found.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    found.add_argument("--again", action="store_true", help="replace results that are there")
    found.add_argument("--runs", type=Path, help="keep run directories here")
    found.add_argument(
        "--pdqn", type=Path, default=Path(sys.executable).with_name("pdqn"), help="the command"
    )
    found.add_argument("--peer-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    return found


def seconds(text: str) -> float:
    """Convert ``90``, ``90s`` or ``5m`` to seconds.

    Raises:
        argparse.ArgumentTypeError: the text is not a duration above zero.
    """
    scale = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        value = float(text if scale is None else text[:-1]) * (scale or 1.0)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90, 90s or 5m")
    return value


def show(folder: Path) -> int:
    """Print every case with its time and the number of its results."""
    for case in cases():
        wanted = [(system, seed) for seed in case.seeds for system in case.systems]
        done = sum(
            results.result_path(folder, case.name, system.name, seed).is_file()
            for system, seed in wanted
        )
        minutes = len(wanted) * case.seconds / 60
        print(f"{case.name:22}{done:3} of {len(wanted):2} runs, {minutes:4.0f} min: {case.title}")
    return 0


def run_case(case: Case, chosen: argparse.Namespace) -> int:
    """Run the missing runs of a case and return the exit code."""
    known = [system.name for system in case.systems]
    if unknown := set(chosen.systems or ()) - set(known):
        print(f"--systems {', '.join(sorted(unknown))}: {case.name} has {', '.join(known)}")
        return 2
    work = chosen.runs or Path(tempfile.mkdtemp(prefix="learning-"))
    tools = Tools(chosen.pdqn.absolute(), chosen.peer_python.absolute(), work.absolute())
    systems = [s for s in case.systems if not chosen.systems or s.name in chosen.systems]
    if problem := tools.missing(case, systems):
        print(f"{case.name}: {problem}")
        return 1
    wanted = [(system, seed) for seed in chosen.seeds or case.seeds for system in systems]
    failures = sum(not run_one(case, system, seed, chosen, tools) for system, seed in wanted)
    if not failures and chosen.runs is None:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{case.name}: {len(wanted) - failures} of {len(wanted)} runs are in {chosen.out}")
    return 1 if failures else 0


def run_one(
    case: Case, system: System, seed: int, chosen: argparse.Namespace, tools: Tools
) -> bool:
    """Run one system with one seed unless its result exists; return whether it does now."""
    path = results.result_path(chosen.out, case.name, system.name, seed)
    if path.is_file() and not chosen.again:
        print(f"{path.name}: is there")
        return True
    training = chosen.time or case.seconds
    print(f"{case.name}, {system.name}, seed {seed}: {training:.0f} s", flush=True)
    try:
        result = run(case, system, seed, training, tools)
    except RunFailedError as error:
        print(f"    FAILED: {error}", flush=True)
        return False
    results.write(chosen.out, result)
    stays = results.stays_from(result.curve, case.threshold) if case.threshold else None
    word = f", stays at {case.threshold:g} from {stays:.1f} s" if stays is not None else ""
    print(f"    {result.wall_seconds:5.0f} s  return {result.final_return:.4g}{word}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
