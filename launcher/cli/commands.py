"""The command line. Imports what is heavy only when a command needs it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

import pdqn
from launcher.cli.help import GroupedCommand
from launcher.cli.options import (
    PATH,
    Count,
    KeyValue,
    configuration_of,
    joining,
    on_dask,
    reaching,
    run_options,
)
from launcher.interrupts import Interrupts
from launcher.run.resume import read_run
from pdqn import layers
from pdqn.config import MAX_EPISODE_STEPS
from pdqn.errors import UsageError
from pdqn.seeds import UNSEEN


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
    pdqn watch RUN                       look at a run that goes on, or has ended
    pdqn eval RUN                        how good the policy is
    """


# Headings of the help, and the options under them.
_GROUPS = {
    "What to train": ("env", "env_args", "seed"),
    "When to end": ("episodes", "steps", "seconds"),
    "Sizes": ("mode", "actors", "envs_per_actor", "replays"),
    "Settings": ("preset", "config_file", "assignments"),
}
_SHOWN = ("run_dir", "resume", "console", "wandb", "metrics_port")
_ASKED = ("check_only", "force", "yes")
_HOSTS = ("bind", "keys", "insecure", "advertise", "ports", "no_learner", "no_replay")
_DASK = ("dask", "dask_python", "dask_slots", "dask_pins")


@cli.command(
    cls=GroupedCommand,
    groups={
        **_GROUPS,
        "Where it shows": _SHOWN,
        "Other hosts": _HOSTS,
        "Dask": _DASK,
        "This command": _ASKED,
    },
    short_help="Train: start all roles, and show how it goes.",
)
@run_options
@click.option("--force", is_flag=True, help="run a mode that the check advises against")
@click.option("--yes", is_flag=True, help="answer every question with yes")
@click.option("--check-only", is_flag=True, help="print what would run, and end")
@click.option("--run-dir", type=PATH, help="[default: runs/<env>__...]")
@click.option(
    "--resume",
    type=PATH,
    metavar="RUN",
    help="go on with a run in its directory; limits count from its beginning",
)
@click.option(
    "--console",
    type=click.Choice(["auto", "rich", "plain", "json", "off"]),
    default="auto",
    help="live view; auto: rich on a terminal, else plain lines",
)
@click.option(
    "--bind", metavar="HOST[:PORT]", help="let other processes join over TCP; *: all addresses"
)
@click.option(
    "--keys", type=PATH, metavar="DIR", help="encrypt, and let in only whose keys are in DIR"
)
@click.option(
    "--insecure", is_flag=True, help="bind off loopback without keys: anybody can read and join"
)
@reaching
@click.option("--no-learner", is_flag=True, help="start no learner here: one joins from elsewhere")
@click.option("--no-replay", is_flag=True, help="start no replay here: it joins from elsewhere")
@on_dask
@click.option(
    "--dask-pin",
    "dask_pins",
    multiple=True,
    type=KeyValue(),
    metavar="ROLE=HOST",
    help="place learner or replay on this host; may be repeated",
)
@click.option("--wandb", is_flag=True, help="also log to Weights & Biases (pdqn[wandb])")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="serve the figures to Prometheus on loopback (pdqn[prometheus])",
)
def launch(
    force: bool,
    yes: bool,
    check_only: bool,
    run_dir: Path | None,
    resume: Path | None,
    console: Any,
    bind: str | None,
    keys: Path | None,
    insecure: bool,
    advertise: str | None,
    ports: tuple[int, int] | None,
    no_learner: bool,
    no_replay: bool,
    dask: str | None,
    dask_python: str | None,
    dask_slots: int | None,
    dask_pins: tuple[tuple[str, Any], ...],
    **options: Any,
) -> int:
    """Train: start replay, learner, actors and evaluator, and show how it goes.

    Without --episodes, --steps or --time it ends after ten minutes. Ctrl-C ends it at any moment
    with everything saved; a second Ctrl-C ends it at once.

    \b
    pdqn launch --time 5m
    pdqn launch --env-arg map_size=64 --env-arg radii=random
    pdqn launch --env CartPole-v1 --time 90s --seed 1
    pdqn launch --actors 120 --replays 2 --set learner.batch_size=256
    pdqn launch --env ALE/Breakout-v5 --preset rainbow --time 2h
    pdqn launch --set replay.memory=50%
    pdqn launch --resume runs/CartPole-v1__seed0__20260101-120000 --time 1h
    pdqn launch --bind 10.0.0.1:7777 --keys keys --no-learner
    pdqn launch --actors 120 --dask tcp://scheduler:8786
    """
    interrupts = Interrupts().install()
    _check_dask_options(dask, python=dask_python, slots=dask_slots, pin=dask_pins)
    if resume is not None and run_dir is not None:
        raise UsageError(f"--run-dir {run_dir}: a resumed run goes on in its own, {resume}")
    past = None if resume is None else read_run(resume)
    config = configuration_of(options, past)
    if console in ("auto", "rich") and sys.stderr.isatty():
        click.echo("pdqn: getting ready", err=True)
    from launcher.hosts.access import open_on_cluster, open_run

    elsewhere = [role for role, gone in (("learner", no_learner), ("replay", no_replay)) if gone]
    reach = {"insecure": insecure, "advertise": advertise, "ports": ports}
    with contextlib.ExitStack() as stack:
        cluster, access = None, None
        if dask is None:
            # Before the imports, which take seconds.
            access = open_run(bind, keys=keys, elsewhere=frozenset(elsewhere), **reach)
        pins = _pins(dask_pins, elsewhere) if dask else {}
        from launcher.run import launch as running

        if dask is not None:
            cluster = running.connect(dask, dask_python or sys.executable, dask_slots)
            stack.callback(cluster.close)
            pins = {role: cluster.host_of(host) for role, host in pins.items()}
            access = open_on_cluster(cluster.own_address, bind, keys=keys, pins=pins, **reach)
        assert access is not None
        return running.launch(
            config,
            interrupts,
            past=past,
            run_dir=run_dir,
            console=console,
            access=access,
            agreed=force or yes,
            check_only=check_only,
            cluster=cluster,
        )


def _check_dask_options(dask: str | None, **others: Any) -> None:
    """Refuse options of a Dask cluster where there is none, rather than to pass over them."""
    for name, value in others.items():
        if value and dask is None:
            raise UsageError(f"--dask-{name} is for roles on a Dask cluster: give --dask")


def _pins(given: tuple[tuple[str, Any], ...], elsewhere: list[str]) -> dict[str, str]:
    """Hosts by role."""
    for role in elsewhere:
        raise UsageError(f"--no-{role}: with --dask it is placed on the cluster; use --dask-pin")
    pins = {role: str(host) for role, host in given}
    for role in pins.keys() - {"learner", "replay"}:
        raise UsageError(f"--dask-pin {role}={pins[role]}: expected learner or replay")
    return pins


@cli.command(
    cls=GroupedCommand,
    groups={**_GROUPS, "Dask": _DASK[:3]},
    short_help="Show what this machine has, and what would run.",
)
@run_options
@on_dask
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def check(
    as_json: bool,
    dask: str | None,
    dask_python: str | None,
    dask_slots: int | None,
    **options: Any,
) -> int:
    """Show what this machine has, what would run on it, and what is in the way.

    With --dask it shows a cluster, and which worker would get which roles. Exits with 1 if a run
    could not work.

    \b
    pdqn check
    pdqn check --env CartPole-v1 --actors 64
    pdqn check --actors 120 --dask tcp://scheduler:8786
    """
    _check_dask_options(dask, python=dask_python, slots=dask_slots)
    from launcher.run import launch as running

    config = configuration_of(options)
    if dask is not None:
        python = dask_python or sys.executable
        return running.check_cluster(config, dask, python, dask_slots, as_json=as_json)
    return running.check(config, as_json=as_json)


def _role_command(role: str, summary: str, more: str = "") -> None:
    """Add the command that starts one role on this host."""

    def command(
        join: str,
        key: Path | None,
        insecure: bool,
        advertise: str | None,
        ports: tuple[int, int] | None,
        log_dir: Path | None,
        leash: bool,
        count: int = 1,
    ) -> int:
        interrupts = Interrupts().install()
        from launcher.hosts.access import find_door

        door = None
        if not leash:
            # Before the imports, which take seconds.
            door = find_door(join, key=key, insecure=insecure, advertise=advertise, ports=ports)
        from launcher.hosts import agent

        part = agent.Part(role, count or None, log_dir)
        if door is None:
            return agent.join_on_leash(part, join, interrupts)
        return agent.join(part, door, interrupts)

    command.__doc__ = (
        f"{summary}\n\n"
        "Roles that end are started again; Ctrl-C takes them out of the run in order, and the end "
        f"of the run ends them.\n\n\b\npdqn {role} --join tcp://127.0.0.1:7777{more}\n"
        f"pdqn {role} --join tcp://10.0.0.1:7777 --key this-host.key{more}"
    )
    options = [
        click.option("--join", required=True, metavar="ADDRESS", help="of a run: tcp://HOST:PORT"),
        joining,
        reaching,
        click.option("--leash", is_flag=True, hidden=True),
        click.option(
            "--log-dir", type=PATH, help="folder of the roles' logs  [default: standard error]"
        ),
    ]
    if role == "actor":
        options.insert(
            1,
            click.option(
                "--count", default=1, type=Count(), help="actors to start here; auto: one a core"
            ),
        )
    wrapped: Any = command
    for option in reversed(options):
        wrapped = option(wrapped)
    cli.command(name=role, short_help=summary)(wrapped)


_role_command("actor", "Join a run with one or more actors.", " --count auto")
_role_command("replay", "Join a run as one of its replays: the first that is missing.")
_role_command("learner", "Join a run as its learner.")
_role_command("evaluator", "Join a run as its evaluator.")


@cli.command(short_help="Make the keys of encrypted runs between hosts.")
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("names", metavar="[HOST ...]", nargs=-1)
@click.option("--revoke", metavar="HOST", help="let this host in no longer, running or not")
def keys(directory: Path, names: tuple[str, ...], revoke: str | None) -> int:
    """Make the keys with which hosts take part in a run, one file for each host.

    DIR stays on the host that launches; each HOST.key goes to its host over a safe way. Naming
    more hosts later, or revoking one, works while a run goes on.

    \b
    pdqn keys keys gpu-host actors-1 actors-2
    scp keys/gpu-host.key gpu-host:
    pdqn launch --bind 10.0.0.1:7777 --keys keys
    pdqn keys keys --revoke actors-2
    """
    from launcher.hosts import keys as making

    if revoke is not None:
        if names:
            raise UsageError(f"--revoke {revoke} takes no other names, got {' '.join(names)}")
        making.revoke(directory, revoke)
        click.echo(f"{revoke} is let in no longer")
        return 0
    made = making.make_keys(directory, names)
    for path in made:
        click.echo(str(path))
    if not made:
        click.echo(f"{directory} has its keys; name hosts to make more", err=True)
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
    """Show a run as it goes on, or how it ended, from its directory or from its address.

    \b
    pdqn watch runs/CartPole-v1__seed0__20260101-120000
    pdqn watch tcp://127.0.0.1:7777
    pdqn watch tcp://10.0.0.1:7777 --key this-host.key
    pdqn watch runs/... --console json
    """
    interrupts = Interrupts().install()
    from launcher.console import watch as watching

    return watching.watch(run, console, interrupts, key=key, insecure=insecure)


@cli.command("eval", short_help="Show how good a policy is, beside the baselines.")
@click.argument("run", type=PATH)
@click.option(
    "--episodes",
    default=100,
    type=click.IntRange(1, UNSEEN),
    help="held-out episodes",
)
@click.option("--best", is_flag=True, help="the parameters that evaluated best, not the last ones")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option(
    "--max-episode-steps",
    default=MAX_EPISODE_STEPS,
    show_default=True,
    type=click.IntRange(1),
    help="an episode is cut after so many, and counts as far as it went",
)
@click.option("--video", type=PATH, help="film the first episodes: gif, webp, png or mp4")
@click.option(
    "--video-episodes", type=click.IntRange(1, 100), help="to film, with --video; by default 3"
)
def evaluate(
    run: Path,
    episodes: int,
    best: bool,
    as_json: bool,
    max_episode_steps: int,
    video: Path | None,
    video_episodes: int | None,
) -> int:
    """Play greedy episodes on held-out seeds, beside the environment's baselines.

    RUN is a run directory or a model file.

    \b
    pdqn eval runs/CartPole-v1__seed0__20260101-120000
    pdqn eval runs/.../final_model.pth --episodes 256
    pdqn eval runs/... --best                         (on seeds that did not choose them)
    pdqn eval runs/... --video policy.gif
    """
    from launcher.results import evaluate as evaluation

    if video is None and video_episodes is not None:
        raise UsageError("--video-episodes: what is filmed goes to a file: give --video FILE, too")
    film = None if video is None else evaluation.Film(video, video_episodes or 3)
    return evaluation.evaluate(
        run,
        episodes,
        best=best,
        as_json=as_json,
        film=film,
        max_episode_steps=max_episode_steps,
    )


@cli.command(short_help="Draw a run's pictures, or compare several runs.")
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=PATH,
    help="the picture of several runs  [default: comparison.png], or of one run's curves",
)
def plot(runs: tuple[Path, ...], out: Path | None) -> int:
    """Draw a run's pictures again, into its directory, or compare several runs in one picture.

    Runs that differ by their seed alone are drawn as one curve with a band.

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

        drawn = draw_pictures(runs[0]) if out is None else [plot_training(runs[0], out)]
    else:
        from launcher.results.compare import draw_comparison

        out = out or Path("comparison.png")
        drawn = [*(group.label for group in draw_comparison(runs, out)), out]
    for line in drawn:
        click.echo(str(line))
    return 0


@cli.command(short_help="Write a policy's network as an ONNX file.")
@click.argument("run", type=PATH)
@click.option("--onnx", "path", type=PATH, required=True, help="the file")
@click.option("--best", is_flag=True, help="the parameters that evaluated best, not the last ones")
def export(run: Path, path: Path, best: bool) -> int:
    """Write the network of a run as an ONNX file, for programs without torch (pdqn[onnx]).

    Its inputs are the fields of the observation, its output is the value of every action.

    \b
    pdqn export runs/CartPole-v1__seed0__20260101-120000 --onnx policy.onnx
    """
    from launcher.results import export as exporting

    names = exporting.export_onnx(run, path, best=best)
    click.echo(f"{path}: {', '.join(names)} to values")
    return 0


@cli.group()
def bench() -> None:
    """Measure this machine, stage by stage."""


@bench.command("replay", short_help="How fast replay is, and what limits it.")
@click.option(
    "--data",
    multiple=True,
    type=click.Choice(["cartpole", "minatar", "atari", "placement"]),
    help="shape of the data; may be repeated  [default: all that can be had]",
)
@click.option("--seconds", default=4.0, type=click.FloatRange(0.1, 600), help="of each phase")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def bench_replay(data: tuple[str, ...], seconds: float, as_json: bool) -> int:
    """Measure what happens to transitions between an actor and the learner.

    Each stage by itself on one core, then a writer, a replay and a client together over TCP: first
    inserting, then sampling, then both, with the process that was the bottleneck.

    \b
    pdqn bench replay
    pdqn bench replay --data atari --seconds 10
    """
    from launcher.bench import replay as benchmark

    return benchmark.bench_replay(data, seconds, as_json=as_json)


@bench.command(
    "hosts",
    cls=GroupedCommand,
    groups=_GROUPS,
    short_help="What a transition costs, and how many actors saturate what.",
)
@run_options
@click.option(
    "--seconds",
    "part_seconds",
    default=4.0,
    type=click.FloatRange(0.1, 600),
    help="of each part",
)
@click.option(
    "--host-actors",
    default=30,
    show_default=True,
    type=click.IntRange(1),
    help="on each host: they get parameters together",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def bench_hosts(part_seconds: float, host_actors: int, as_json: bool, **options: Any) -> int:
    """Measure what a transition costs on its way, and from that how large a run can be.

    Bytes on the wire, processor time of every process that touches it, encryption included; then
    how many actors saturate a link, a replay process, this learner, and the coordinator.

    \b
    pdqn bench hosts
    pdqn bench hosts --env CartPole-v1 --set learner.publish_seconds=5
    """
    config = configuration_of(options)
    from launcher.bench import hosts as benchmark

    return benchmark.bench_hosts(config, part_seconds, host_actors, as_json=as_json)


@cli.command(short_help="Print what completes commands and options in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what lets a shell complete commands and options.

    \b
    eval "$(pdqn completion bash)"                             # in ~/.bashrc
    eval "$(pdqn completion zsh)"                              # in ~/.zshrc
    pdqn completion fish > ~/.config/fish/completions/pdqn.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "pdqn", "_PDQN_COMPLETE").source())
    return 0


@cli.command(short_help="List every setting with its default.")
def settings() -> int:
    """List every setting with its default; use with --set, --config or PDQN_SECTION__KEY.

    \b
    pdqn settings | grep -A1 ^learner
    """
    for name, default, documentation, accepted in layers.settings():
        shown = "auto" if default is None else default
        click.echo(f"{name} = {shown}\n    {documentation} ({accepted})")
    return 0
