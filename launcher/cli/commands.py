"""The commands. Each imports what is heavy only when it runs."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

import pdqn
from launcher import status_line
from launcher.cli.benchmarks import bench
from launcher.cli.help import GroupedCommand
from launcher.cli.options import (
    GROUPS,
    PATH,
    ConsoleKind,
    Count,
    DaskOptions,
    Duration,
    HostOptions,
    KeyValue,
    WholeRange,
    configuration_of,
    joining,
    on_dask,
    reaching,
    run_options,
    take,
)
from launcher.cli.studies import COMMANDS, describing, studying, take_beginning
from launcher.cli.trusting import (
    admitting,
    naming_environment,
    naming_network,
    take_trust,
    trusting,
)
from launcher.interrupts import Interrupts
from launcher.progress import progress
from launcher.terminal import echo
from pdqn import layers
from pdqn.config import MAX_EPISODE_STEPS
from pdqn.errors import UsageError
from pdqn.seeds import UNSEEN
from pdqn.trust import Trust

if TYPE_CHECKING:
    from launcher.hosts.access import Access
    from launcher.hosts.dask.cluster import DaskCluster
    from launcher.plan.inspector import Inspector
    from launcher.processes.forkserver import ForkServer
    from launcher.run.resume import PastRun
    from pdqn.config import Config


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    }
)
@click.version_option(pdqn.__version__, prog_name="pdqn")
def cli() -> None:
    """Distributed deep Q-learning: actors, a prioritized replay, and one learner.

    \b
    pdqn launch                          train on the built-in environment
    pdqn launch --env CartPole-v1        train on any gymnasium environment
    pdqn watch RUN                       look at a run in progress, or one that has ended
    pdqn eval RUN                        measure how good the policy is
    """


# Further headings of the help, and the options under them.
_SHOWN = ("run_dir", "resume", "init_from", "console", "metrics_port")
_WANDB = ("wandb", "wandb_project", "wandb_group")
_WORDS = ("run_name", "tags", "notes")
_STUDIES = ("seeds", "parallel", "interrupt_exit")
_ASKED = ("check_only", "force", "yes")
_HOSTS = ("bind", "keys", "insecure", "advertise", "ports", "no_learner", "no_replay")
_DASK = ("dask", "dask_python", "dask_slots", "dask_pins")


@cli.command(
    cls=GroupedCommand,
    groups={
        **GROUPS,
        "Directory and output": _SHOWN,
        "Words about the run": _WORDS,
        "Several runs": _STUDIES,
        "Weights & Biases": _WANDB,
        "Other hosts": _HOSTS,
        "Dask": _DASK,
        "This command": _ASKED,
    },
    short_help="Train: start all roles, and show progress.",
)
@run_options
@click.option("--force", is_flag=True, help="run a mode that the check advises against")
@click.option("--yes", is_flag=True, help="answer every question with yes")
@click.option("--check-only", is_flag=True, help="print what would run, and exit")
@click.option("--run-dir", type=PATH, help="[default: runs/<env>__...]")
@click.option(
    "--resume",
    type=PATH,
    metavar="RUN",
    help="continue the run in this directory; limits count from its beginning",
)
@click.option(
    "--console",
    type=ConsoleKind(["auto", "rich", "plain", "json", "off"]),
    default="auto",
    help="live view; auto: rich on a terminal, else plain lines",
)
@click.option(
    "--bind",
    metavar="HOST[:PORT]",
    help="let other processes join over TCP, encrypted; *: all addresses",
)
@click.option(
    "--keys",
    type=PATH,
    metavar="DIR",
    help="admit the hosts whose keys are in DIR  [default: keys that the run makes itself]",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="encrypt nothing: whoever reaches the ports, every user of this host too, can join",
)
@reaching
@click.option("--no-learner", is_flag=True, help="start no learner here; one joins from elsewhere")
@click.option("--no-replay", is_flag=True, help="start no replay here; it joins from elsewhere")
@on_dask
@click.option(
    "--dask-pin",
    "dask_pins",
    multiple=True,
    type=KeyValue(),
    metavar="ROLE=HOST",
    help="place learner or replay on this host; may be repeated",
)
@describing
@click.option("--wandb", is_flag=True, help="also log to Weights & Biases (pdqn[wandb])")
@click.option(
    "--wandb-project", metavar="NAME", help="project there  [default: WANDB_PROJECT, or pdqn]"
)
@click.option("--wandb-group", metavar="NAME", help="group of runs there")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="serve the metrics on loopback, in plain HTTP, to Prometheus (pdqn[prometheus])",
)
@studying
def launch(
    interrupts: Interrupts,
    force: bool,
    yes: bool,
    check_only: bool,
    run_dir: Path | None,
    resume: Path | None,
    console: Any,
    **options: Any,
) -> int:
    """Train: start replay, learner, actors and evaluator, and show progress.

    Without --episodes, --steps or --time the run ends after ten minutes. Ctrl-C ends it at any
    time and saves everything; a second Ctrl-C ends it at once.

    \b
    pdqn launch --time 5m
    pdqn launch --env-arg map_size=64 --env-arg radii=random
    pdqn launch --env CartPole-v1 --time 90s --seeds 1:5
    pdqn launch --actors 120 --replays 2 --set learner.batch_size=256
    pdqn launch --env ALE/Breakout-v5 --preset rainbow --time 2h
    pdqn launch --set replay.memory=50%
    pdqn launch --resume runs/CartPole-v1__seed0__20260101-120000 --time 1h
    pdqn launch --env-arg map_size=128 --init-from runs/small  (begin with its parameters)
    pdqn launch --bind 127.0.0.1                      (open to processes of this user alone)
    pdqn launch --bind 10.0.0.1:7777 --keys keys --no-learner
    pdqn launch --actors 120 --dask tcp://scheduler:8786
    """
    hosts, dask = take(HostOptions, options), take(DaskOptions, options)
    begins = take_beginning(options, resume)
    with contextlib.ExitStack() as stack:
        if console in ("auto", "rich"):
            stack.enter_context(status_line.showing("reads the settings"))
        past = _past(resume, run_dir)
        asked = configuration_of({**options, "console": console}, past)
        helpers = stack.enter_context(_helpers(asked.config, not check_only and not dask.dask))
        access, cluster = stack.enter_context(_opened(hosts, dask))
        from launcher.run import launch as running

        return running.launch(
            *(asked.config, interrupts, *helpers, asked.given),
            past=past,
            run_dir=run_dir,
            console=console,
            access=access,
            agreed=force or yes,
            check_only=check_only,
            cluster=cluster,
            beginning=begins,
        )


def _past(resume: Path | None, run_dir: Path | None) -> PastRun | None:
    """Read the run that is to go on, if there is one."""
    if resume is not None and run_dir is not None:
        raise UsageError(f"--run-dir {run_dir}: a resumed run stays in its own, {resume}")
    if resume is None:
        return None
    from launcher.run.resume import read_run

    return read_run(resume)


@contextlib.contextmanager
def _helpers(config: Config, runs: bool) -> Iterator[tuple[Inspector, ForkServer | None]]:
    """Have others look at the environment, and import what roles share, during our own imports."""
    from launcher.processes.forkserver import ForkServer

    status_line.doing("imports what a run needs")
    # On one core a run has one process, and two imports at once take as long as one after another.
    single = config.run.mode == "single"
    forks = runs and len(os.sched_getaffinity(0)) > 1 and not single
    with _inspecting(config) as inspector:
        if runs and single:
            importlib.import_module("launcher.run.single")  # all that roles need, into this process
        if not forks or config.actor.count == 0:
            yield inspector, None
            return
        with contextlib.closing(ForkServer()) as server:
            server.begin()
            yield inspector, server


@contextlib.contextmanager
def _inspecting(config: Config) -> Iterator[Inspector]:
    """Have another process look at the environment, while this one imports what a run needs."""
    from launcher.plan.inspector import Inspector

    with Inspector(config.system) as inspector:
        inspector.begin(config.run.env, config.run.env_args)
        yield inspector


@contextlib.contextmanager
def _opened(hosts: HostOptions, dask: DaskOptions) -> Iterator[tuple[Access, DaskCluster | None]]:
    """Open a run to other hosts, and connect to the cluster that it uses, if any."""
    # A person's mistakes are found before the imports of a run, which take seconds.
    from launcher.hosts.access import open_on_cluster, open_run

    if dask.dask is None:
        yield open_run(hosts.bind, elsewhere=frozenset(hosts.elsewhere), **hosts.reach), None
        return
    pins = dask.pins(hosts.elsewhere)
    from launcher.run import launch as running

    with contextlib.closing(running.connect(dask.dask, dask.python, dask.dask_slots)) as cluster:
        pins = {role: cluster.host_of(host) for role, host in pins.items()}
        yield open_on_cluster(cluster.own_address, hosts.bind, pins=pins, **hosts.reach), cluster


@cli.command(
    cls=GroupedCommand,
    groups={**GROUPS, "Dask": _DASK[:3]},
    short_help="Show this machine's resources, and what would run.",
)
@run_options
@on_dask
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def check(
    as_json: bool,
    **options: Any,
) -> int:
    """Show this machine's resources, what would run on it, and what prevents a run.

    With --dask, show the cluster and the roles that each worker would get. The exit status is 1 if
    a run could not work.

    \b
    pdqn check
    pdqn check --env CartPole-v1 --actors 64
    pdqn check --actors 120 --dask tcp://scheduler:8786
    """
    dask = take(DaskOptions, options)
    asked = configuration_of(options)
    config = asked.config
    if dask.dask is not None:
        from launcher.run import launch as running

        return running.check_cluster(
            config, dask.dask, dask.python, dask.dask_slots, as_json=as_json
        )
    with progress(lambda: f"examines {config.run.env}"), _inspecting(config) as inspector:
        from launcher.run import launch as running

        return running.check(config, asked.given, as_json=as_json, inspector=inspector)


def _role_command(role: str, summary: str, more: str = "") -> None:
    """Add the command that starts one role on this host."""

    def command(join: str, log_dir: Path | None, leash: bool, count: int = 1, **reach: Any) -> int:
        interrupts = Interrupts().install()
        from launcher.hosts.access import find_door

        # Before the imports, which take seconds.
        trust = take_trust(reach)
        door = None if leash else find_door(join, **reach)
        from launcher.hosts import agent

        part = agent.Part(role, count or None, log_dir)
        if door is None:
            return agent.join_on_leash(part, join, interrupts)
        return agent.join(part, door.trusting(trust), interrupts)

    command.__doc__ = (
        f"{summary}\n\n"
        "A role that ends is started again. Ctrl-C takes this host's roles out of the run in "
        "order; otherwise they end with the run.\n\n"
        f"\b\npdqn {role} --join runs/CartPole-v1__seed0__20260101-120000{more}\n"
        f"pdqn {role} --join tcp://10.0.0.1:7777 --key this-host.key{more}\n"
        f"pdqn {role} --join ... --env my_environment:make        (a run of your own environment)"
    )
    wrapped: Any = command
    for option in reversed(_role_options(role)):
        wrapped = option(wrapped)
    cli.command(name=role, short_help=summary)(wrapped)


def _role_options(role: str) -> list[Callable[..., Any]]:
    """List the options of the command that starts one role, in the order of its help."""
    several = click.option(
        "--count", default=1, type=Count(), help="actors to start here; auto: at most one per core"
    )
    return [
        click.option(
            "--join",
            required=True,
            metavar="RUN-or-ADDRESS",
            help="the run: its directory if it is on this host, or its address tcp://HOST:PORT",
        ),
        *([several] if role == "actor" else []),
        joining,
        admitting,
        reaching,
        click.option("--leash", is_flag=True, hidden=True),
        click.option(
            "--log-dir", type=PATH, help="folder for the roles' logs  [default: standard error]"
        ),
    ]


_role_command("actor", "Join a run with one or more actors.", " --count auto")
_role_command("replay", "Join a run as one of its replays: the first that is missing.")
_role_command("learner", "Join a run as its learner.")
_role_command("evaluator", "Join a run as its evaluator.")


@cli.command(short_help="Make the keys for encrypted runs across hosts.")
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("names", metavar="[HOST[:ROLE,...] ...]", nargs=-1)
@click.option("--revoke", metavar="HOST", help="stop admitting this host, even while a run goes on")
def keys(directory: Path, names: tuple[str, ...], revoke: str | None) -> int:
    """Make the keys with which hosts take part in a run, one file for each host.

    Keep DIR on the host that launches, and copy each HOST.key to its host over a secure channel.
    DIR may be the folder "keys" of a run that made its own.
    A key is for actors unless ROLE says otherwise: actor, replay, learner, evaluator, or watch for
    a host that only looks on. Hosts can be added, given other roles, and revoked while a run goes
    on.

    \b
    pdqn keys keys                                    (list the keys and their roles)
    pdqn keys keys gpu-host:learner,replay actors-1 actors-2
    scp keys/gpu-host.key gpu-host:
    pdqn launch --bind 10.0.0.1:7777 --keys keys
    pdqn keys keys --revoke actors-2
    pdqn keys runs/CartPole-v1__seed0__20260101-120000/keys actors-1
    """
    from launcher.hosts import keys as making

    if revoke is not None:
        if names:
            raise UsageError(f"--revoke {revoke} takes no other names, got {' '.join(names)}")
        making.revoke(directory, revoke)
        echo(f"{revoke} is no longer admitted")
        return 0
    made = making.make_keys(directory, names)
    for path in made:
        echo(path)
    if not made:
        for line in making.described(directory):
            echo(line)
    return 0


@cli.command(short_help="Show a run, from another terminal or host.")
@click.argument("run", metavar="RUN-or-ADDRESS")
@click.option(
    "--console",
    type=click.Choice(["auto", "rich", "plain", "json"]),
    default="auto",
    help="auto: rich on a terminal, else plain lines",
)
@joining
def watch(run: str, console: Any, key: Path | None, insecure: bool) -> int:
    """Show a run in progress, or how it ended, from its directory or its address.

    \b
    pdqn watch runs/CartPole-v1__seed0__20260101-120000
    pdqn watch tcp://10.0.0.1:7777 --key this-host.key
    pdqn watch runs/... --console json
    """
    interrupts = Interrupts().install()
    from launcher.console import watch as watching

    return watching.watch(run, console, interrupts, key=key, insecure=insecure)


@cli.command("eval", short_help="Measure how good a policy is, next to the baselines.")
@click.argument("run", type=PATH)
@naming_environment
@naming_network
@click.option(
    "--episodes",
    default=100,
    type=WholeRange(1, UNSEEN),
    help="held-out episodes to play",
)
@click.option("--best", is_flag=True, help="use the parameters that evaluated best, not the last")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option(
    "--max-episode-steps",
    default=MAX_EPISODE_STEPS,
    show_default=True,
    type=WholeRange(1),
    help="cut an episode after this many steps, and count it as far as it went",
)
@click.option(
    "--quick", is_flag=True, help="leave out bounds and searches, which may take a second each"
)
@click.option(
    "--search",
    metavar="METHOD",
    help="also search with the policy, and without it, on circle placement: rollouts:16, "
    "beam:16x32, time:100ms or symmetries",
)
@click.option(
    "--seed", type=WholeRange(0), help="seed of the first episode, in place of held-out ones"
)
@click.option(
    "--env-arg",
    "env_args",
    multiple=True,
    type=KeyValue(),
    help="argument of the environment that differs from training; may be repeated",
)
@click.option("--render", type=click.Choice(["human"]), help="show the episodes in a window")
@click.option("--video", type=PATH, help="film the first episodes: gif, webp, png or mp4")
@click.option(
    "--video-episodes",
    type=WholeRange(1, 100),
    help="episodes to film, with --video; by default 3",
)
def evaluate(
    run: Path,
    episodes: int,
    best: bool,
    as_json: bool,
    max_episode_steps: int,
    quick: bool,
    search: str | None,
    video: Path | None,
    video_episodes: int | None,
    seed: int | None,
    env_args: tuple[tuple[str, Any], ...],
    render: str | None,
    **others: Any,
) -> int:
    """Play greedy episodes on held-out seeds, next to the environment's baselines.

    RUN is a run directory or a model file. A file of another person runs no code of its own: name
    its environment with --env.

    \b
    pdqn eval runs/CartPole-v1__seed0__20260101-120000
    pdqn eval runs/.../final_model.pth --episodes 256
    pdqn eval runs/... --best                         (on seeds that did not choose them)
    pdqn eval runs/... --search rollouts:16           (circle placement: what a search adds)
    pdqn eval runs/... --video policy.gif
    pdqn eval runs/... --render human --episodes 3    (in a window)
    pdqn eval runs/... --env-arg level=3 --seed 7
    pdqn eval policy.pth --env my_environment:make
    """
    from launcher.evaluation import evaluate as evaluation
    from launcher.results.models import Permission

    if video is None and video_episodes is not None:
        raise UsageError("--video-episodes: a film needs a file to go to: give --video FILE")
    film = None if video is None else evaluation.Film(video, video_episodes or 3)
    return evaluation.evaluate(
        run,
        episodes,
        best=best,
        as_json=as_json,
        film=film,
        max_episode_steps=max_episode_steps,
        permission=Permission(**others),
        quick=quick,
        search=search,
        differs=evaluation.Circumstances(dict(env_args), seed, render),
    )


@cli.command(short_help="Place circles on a map of your own, by search.")
@click.argument("map_file", metavar="MAP", type=PATH)
@click.option("--radii", required=True, help="radii in cells, in the order of placement: 20,17,14")
@click.option("--time", "seconds", type=Duration(), default="1s", help="time to search")
@click.option("--model", type=PATH, help="run or model file of a policy to begin from")
@click.option("--spacing", type=click.IntRange(0), default=0, help="least cells between circles")
@click.option("--forbidden", type=PATH, help="file that is not 0 where circles are forbidden")
@click.option(
    "--keep-out",
    type=click.Choice(["centre", "disc"]),
    default="centre",
    help="what keeps out of forbidden cells",
)
@click.option("--placed", default="", help="circles that are there: row,column,radius;...")
@click.option("--seed", type=click.IntRange(0), default=0, help="seed of the search")
@click.option("--out", type=PATH, help="file for the plan: csv")
@click.option("--picture", type=PATH, help="file for a picture of the plan: png")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def solve(
    map_file: Path,
    radii: str,
    seconds: float,
    model: Path | None,
    spacing: int,
    forbidden: Path | None,
    keep_out: str,
    placed: str,
    seed: int,
    out: Path | None,
    picture: Path | None,
    as_json: bool,
) -> int:
    """Place circles on a map to cover as much of its weight as possible.

    MAP is a .npy, .png, .csv or .tif file with one map. The plan is printed with its coverage,
    beside exact greedy and a coverage that no plan exceeds.

    \b
    pdqn solve town.npy --radii 20,17,14
    pdqn solve town.tif --radii 20,17,14 --time 10s --out plan.csv --picture plan.png
    """
    from actors.circle_placement.problem import OwnMaps
    from launcher.results import solve as solving

    zones = "" if forbidden is None else str(forbidden)
    own = OwnMaps(str(map_file), zones, keep_out, placed)
    files = {"model": model, "out": out, "picture": picture}
    return solving.solve(own, radii, spacing, seconds, seed, **files, as_json=as_json)


@cli.command(short_help="Draw a run's pictures, or compare several runs.")
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    help="file for the comparison  [default: comparison.png], or for one run's curves",
)
@trusting("run whatever code another person's run directory names")
def plot(runs: tuple[Path, ...], out: Path | None, trust: bool) -> int:
    """Redraw a run's pictures in its directory, or compare several runs in one picture.

    Runs that differ only in their seed become one curve with a band.

    \b
    pdqn plot runs/CartPole-v1__seed0__20260101-120000
    pdqn plot runs/CartPole-v1__seed0__20260101-120000 --out curves.pdf
    pdqn plot runs/a runs/b runs/c --out n_step.png
    """
    for run in runs:
        if not (run / "metrics.jsonl").is_file():
            raise UsageError(f"{run} holds no metrics.jsonl")
    if len(runs) == 1:
        if out is None and not os.access(runs[0], os.W_OK):
            raise UsageError(f"{runs[0]} cannot be written to: name the picture with --out")
        from launcher.results.pictures import draw_pictures
        from launcher.results.training import plot_training

        drawn = (
            draw_pictures(runs[0], Trust(everything=trust))
            if out is None
            else [plot_training(runs[0], out)]
        )
    else:
        from launcher.results.compare import draw_comparison

        out = out or Path("comparison.png")
        drawn = [*(group.label for group in draw_comparison(runs, out)), out]
    for line in drawn:
        echo(line)
    return 0


@cli.command(short_help="Write a policy's network as an ONNX file.")
@click.argument("run", type=PATH)
@click.option("--onnx", "path", type=PATH, required=True, help="file to write")
@click.option("--best", is_flag=True, help="use the parameters that evaluated best, not the last")
@naming_network
def export(run: Path, path: Path, best: bool, **others: Any) -> int:
    """Write the network of a run as an ONNX file, for programs without torch (pdqn[onnx]).

    Its inputs are the fields of the observation, its output is the value of every action.

    \b
    pdqn export runs/CartPole-v1__seed0__20260101-120000 --onnx policy.onnx
    """
    from launcher.results import export as exporting
    from launcher.results.models import Permission

    names = exporting.export_onnx(run, path, best=best, permission=Permission(**others))
    echo(f"{path}: {', '.join(names)} to values")
    return 0


for known in (bench, *COMMANDS):
    cli.add_command(known)


@cli.command(short_help="Print a script that completes commands and options in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script with which a shell completes commands and options.

    \b
    eval "$(pdqn completion bash)"                             # in ~/.bashrc
    eval "$(pdqn completion zsh)"                              # in ~/.zshrc
    pdqn completion fish > ~/.config/fish/completions/pdqn.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "pdqn", "_PDQN_COMPLETE").source()
    # After a setting's name comes its value, without a space.
    plain = "COMPREPLY+=($value)"
    click.echo(script.replace(plain, f"{plain}; [[ $value == *= ]] && compopt -o nospace"))
    return 0


@cli.command(short_help="List every setting with its default.")
def settings() -> int:
    """List every setting with its default, for --set, --config or PDQN_SECTION__KEY.

    \b
    pdqn settings | grep -A1 ^learner
    """
    for name, default, documentation, accepted in layers.settings():
        shown = "auto" if default is None else default
        echo(f"{name} = {shown}\n    {documentation} ({accepted})")
    return 0
