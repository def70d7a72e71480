"""The commands about several runs. Each imports what is heavy only when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher import status_line
from launcher.about import About
from launcher.cli.options import PATH, WholeRange, configuration_of
from launcher.interrupts import Interrupts
from launcher.terminal import echo
from pdqn.errors import UsageError

if TYPE_CHECKING:
    from launcher.beginning import Beginning


def describing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options with a person's words about a run, and with what it begins with."""
    options = [
        click.option(
            "--init-from", type=PATH, metavar="RUN-or-FILE",
            help="begin with the parameters of this run or model file, as far as they fit",
        ),
        click.option("--name", "run_name", metavar="NAME", help="what to call the run"),
        click.option(
            "--tag", "tags", multiple=True, metavar="TAG",
            help="word by which pdqn ls finds the run; may be repeated",
        ),
        click.option("--note", "notes", multiple=True, metavar="TEXT", help="sentence to keep"),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def studying(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options of ``launch`` for several runs, and for programs that start it."""
    options = [
        click.option(
            "--seeds", metavar="FIRST:LAST",
            help="run these seeds one after another: 1:5, or 1,3,7",
        ),
        click.option(
            "--parallel", type=WholeRange(1, 1000), help="with --seeds: runs at the same time"
        ),
        click.option(
            "--interrupt-exit", type=click.IntRange(0, 255), default=0, metavar="CODE",
            help="exit code of a run that Ctrl-C has ended in order",
        ),
    ]  # fmt: skip

    @functools.wraps(command)
    def launch(
        *, seeds: str | None, parallel: int | None, interrupt_exit: int, **given: Any
    ) -> int:
        interrupts = Interrupts(begun=seeds is not None).install()
        if seeds is not None:
            return _launch_seeds(seeds, parallel or 1, given, interrupts)
        if parallel is not None:
            raise UsageError(f"--parallel {parallel} is for several runs: give --seeds")
        code = command(interrupts=interrupts, **given)
        return interrupt_exit if code == 0 and interrupts.count else code

    wrapped: Callable[..., int] = launch
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


# Options of launch that are not for the runs of a study, and those that a study gives each run.
_NOT_SHARED = {"--seeds", "--parallel", "--run-dir", "--interrupt-exit", "--console"}
# Those that no run directory holds, without a value and with one: a run that goes on needs them.
_LASTING_FLAGS = {"--insecure", "--no-learner", "--no-replay", "--force", "--yes"}
_LASTING = {
    "--bind", "--keys", "--advertise", "--port-range",
    "--dask", "--dask-python", "--dask-slots", "--dask-pin",
}  # fmt: skip


def _launch_seeds(text: str, parallel: int, given: dict[str, Any], interrupts: Interrupts) -> int:
    """Check what does not go together, and run the seeds."""
    from launcher.studies.seeds import Seeds, parse_seeds, run_seeds

    try:
        seeds = parse_seeds(text)
    except ValueError:
        raise UsageError(f"--seeds {text}: expected FIRST:LAST such as 1:5, or 1,3,7") from None
    alone = ("seed", "resume", "check_only", *(("bind", "dask") if parallel > 1 else ()))
    for name in alone:
        if given.get(name):
            option = f"--{name.replace('_', '-')}"
            with_what = f"--parallel {parallel}" if name in ("bind", "dask") else f"--seeds {text}"
            raise UsageError(f"{option} does not go with {with_what}")
    env = configuration_of(given).config.run.env
    options = without_options(sys.argv[2:], _NOT_SHARED)
    directory, console = given["run_dir"], given["console"]
    lasting = tuple(lasting_options(options))
    study = Seeds(seeds, tuple(options), directory, env, console, parallel, lasting)
    shown = status_line.showing("starts the runs") if parallel > 1 else contextlib.nullcontext()
    with shown:
        return run_seeds(study, interrupts)


def without_options(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Return a command's arguments without these options and their values."""
    return [argument for argument, is_theirs in _marked(arguments, names) if not is_theirs]


def lasting_options(arguments: Sequence[str]) -> list[str]:
    """Return those of a command's options that a run needs again when it goes on."""
    return [
        argument
        for argument, is_theirs in _marked(arguments, _LASTING)
        if is_theirs or argument in _LASTING_FLAGS
    ]


def _marked(arguments: Sequence[str], names: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Yield each argument, and whether it is the name or the value of one of these options."""
    takes = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        begins = name in names and not takes
        yield argument, takes or begins
        takes = begins and not equals


def take_beginning(options: dict[str, Any], resume: Path | None) -> Beginning:
    """Remove the options of ``describing`` from all that were given, and return what they say.

    Raises:
        UsageError: parameters are given to a run that has its own, or cannot be read.
    """
    about = About(options.pop("run_name") or "", options.pop("tags"), options.pop("notes"))
    init_from: Path | None = options.pop("init_from")
    if init_from is not None and resume is not None:
        raise UsageError(f"--init-from {init_from}: a resumed run goes on with its own parameters")
    from launcher.beginning import Beginning, model_of

    return Beginning(about, None if init_from is None else model_of(init_from))


@click.command("ls", short_help="List runs: what they are, how far they came, how good they are.")
@click.argument("directory", metavar="[DIR]", type=PATH, default="runs")
@click.option("--tag", "tags", multiple=True, help="only runs with this tag; may be repeated")
@click.option("--env", help="only runs of this environment")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list_command(directory: Path, tags: tuple[str, ...], env: str | None, as_json: bool) -> int:
    """List the runs below DIR, oldest first: environment, seed, state, progress and score.

    Settings are shown as far as the listed runs of an environment differ in them. A run that lives
    has a process; one that was killed has left no summary.

    \b
    pdqn ls
    pdqn ls runs/sweep --tag n-step
    pdqn ls --env CartPole-v1 --json
    """
    from launcher.studies import listing

    return listing.list_runs(directory, tags, env, as_json=as_json)


@click.command("note", short_help="Name a run, tag it, or add a note.")
@click.argument("run", type=PATH)
@click.argument("text", required=False)
@click.option("--name", default="", help="what to call the run")
@click.option("--tag", "tags", multiple=True, help="word to find it by; may be repeated")
def note(run: Path, text: str | None, name: str, tags: tuple[str, ...]) -> int:
    """Add words to a run, which pdqn ls and pdqn report show. Without any, print them.

    \b
    pdqn note runs/CartPole-v1__seed0__20260101-120000 "the learning rate was too large"
    pdqn note runs/... --name baseline --tag paper
    """
    from launcher.about import ABOUT, read_about
    from launcher.rundir import CONFIG, replace_text

    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} is not a run directory (needs {CONFIG})")
    about = read_about(run)
    if text or name or tags:
        about = about.joined(About(name, tags, (text,) if text else ()))
        replace_text(run / ABOUT, about.text)
    echo(f"name   {about.name or '-'}\ntags   {' '.join(about.tags) or '-'}")
    for sentence in about.notes:
        echo(f"note   {sentence}")
    return 0


@click.command("report", short_help="Write runs as one page that can be sent to somebody.")
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, default="report.html", show_default=True, help="file: html")
@click.option("--title", default="", help="title of the page")
def report(runs: tuple[Path, ...], out: Path, title: str) -> int:
    """Write one page with curves, evaluation, settings, machine and events of runs.

    The page has everything in itself. It needs no network and runs no scripts. Pictures and films
    that lie in a run's directory are part of it.

    \b
    pdqn report runs/CartPole-v1__seed0__20260101-120000
    pdqn report runs/a runs/b runs/c --out n_step.html --title "Three steps or one"
    """
    from launcher.studies import report as reporting

    reporting.write_report(runs, out, title)
    echo(out)
    return 0


@click.command("sweep", short_help="Search for good settings, with runs as trials (Optuna).")
@click.argument("file", metavar="FILE", type=PATH)
@click.option("--show", is_flag=True, help="print and draw what a sweep has found so far")
@click.option("--trials", type=WholeRange(1, 100_000), help="number of trials, in all")
@click.option(
    "--parallel",
    type=WholeRange(1, 1000),
    default=1,
    show_default=True,
    help="trials at the same time",
)
@click.option("--dir", "directory", type=PATH, help="[default: runs/sweeps/<name of the file>]")
@click.option("--dask", metavar="ADDRESS", help="place the roles of all trials on a Dask cluster")
def sweep(
    file: Path,
    show: bool,
    trials: int | None,
    parallel: int,
    directory: Path | None,
    dask: str | None,
) -> int:
    """Try settings, and learn from each trial which to try next (pdqn[sweep]).

    FILE is a TOML file with the settings to search: docs/sweeps.md shows one. Every trial is a run,
    which is pruned if others are better. After Ctrl-C the same command goes on.

    \b
    pdqn sweep cartpole.toml
    pdqn sweep cartpole.toml --trials 100 --parallel 4
    pdqn sweep cartpole.toml --show
    pdqn sweep cartpole.toml --dask tcp://scheduler:8786
    """  # fmt: skip
    directory = directory or Path("runs") / "sweeps" / file.stem
    if show:
        from launcher.studies.shown import show_sweep

        return show_sweep(directory)
    from launcher.studies.space import sweep_of
    from pdqn import layers

    known = {name for name, *_ in layers.settings()}
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    found = sweep_of(str(file), content, known)
    found = found if trials is None else dataclasses.replace(found, trials=trials)
    interrupts = Interrupts().install()
    from launcher.studies.sweep import Study

    options = () if dask is None else ("--dask", dask)
    study = Study(found, directory, options, parallel)
    with status_line.showing("opens the study"):
        code = study.run(interrupts)
    echo(f"results   {directory}; pdqn sweep {file} --show")
    return code


COMMANDS = (list_command, note, report, sweep)
