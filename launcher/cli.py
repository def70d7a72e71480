"""The command line. Imports what is heavy only when a command needs it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

import pdqn
from launcher.grouping import GroupedCommand
from launcher.interrupts import Interrupts
from launcher.resume import PastRun, read_run
from pdqn import config as configuration
from pdqn.errors import RunError, UsageError
from pdqn.seeds import UNSEEN

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DEFAULT_SECONDS = 600.0
PRESETS = ("dqn", "apex", "rainbow", "placement")


_PATH = click.Path(path_type=Path)
_LARGEST = (1 << 63) - 1  # what msgpack and TOML hold


class Duration(click.ParamType[float]):
    """A number of seconds, or a number with a unit: 90s, 10m, 2h, 1d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        scale = _UNITS.get(text[-1:], 1.0)
        number = text[:-1] if text[-1:] in _UNITS else text
        try:
            seconds = float(number) * scale
        except ValueError:
            self.fail(f"{value!r} is no duration; write 90s, 10m, 2h or 1d", param, ctx)
        if not 0 < seconds < float("inf"):
            self.fail(
                f"{value!r}; expected a finite time above zero: 90s, 10m, 2h or 1d", param, ctx
            )
        return seconds


class Limit(click.types.IntParamType):
    """A whole number that a file can hold; its section of the settings knows the least."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        number = super().convert(value, param, ctx)
        if number > _LARGEST:
            self.fail(f"{value}; expected a whole number from 1 to {_LARGEST}", param, ctx)
        return number


class PortRange(click.ParamType[tuple[int, int]]):
    """FIRST:LAST."""

    name = "first:last"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Both ports."""
        if isinstance(value, tuple):
            return value
        first, colon, last = str(value).partition(":")
        numbers = colon and first.isdecimal() and last.isdecimal()
        if not numbers or not 0 < int(first) <= int(last) < 65536:
            self.fail(f"{value!r}; expected FIRST:LAST, ports from 1 to 65535", param, ctx)
        return int(first), int(last)


class Count(click.ParamType[int]):
    """A number of processes, or ``auto``, which is 0 here."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        if value == "auto" or value == 0:
            return 0
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r}; expected a number from 1 on, or auto", param, ctx)
        return int(value)


class KeyValue(click.ParamType[tuple[str, Any]]):
    """KEY=VALUE; the value is read like a TOML value if it is one, else as text."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """The pair."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r}; expected KEY=VALUE", param, ctx)
        if text.strip() == "None":
            self.fail(f"{value!r}; no setting can be None: leave it away", param, ctx)
        return key.strip(), configuration.parse_value(text.strip())


def main() -> None:
    """Run a command; bad input and failed runs end in one line, not in a traceback."""
    _make_streams_usable()
    try:
        # Environments and networks of one's own are named by their modules: find those here, too.
        sys.path.append(str(Path.cwd()))
        sys.exit(cli.main(standalone_mode=False) or 0)
    except UsageError as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 1)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as error:
        _fail(_describe(error), 1)


def _make_streams_usable() -> None:
    """Let every stream take whatever is written to it, and be one."""
    # In the order of their descriptors, which are the lowest that are free: no file that is opened
    # later gets one of them, and with it what somebody prints.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - to the end
            os.set_inheritable(stream.fileno(), True)  # roles need theirs, too
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A table with a few wrong characters is worth more than none.
        sys.stdout.reconfigure(errors="replace")


def _describe(error: OSError) -> str:
    """What went wrong, and with which file, if it is one that has a name."""
    words = error.strerror or str(error)
    return words if error.filename is None else f"{error.filename}: {words}"


def _fail(error: Exception | str, code: int) -> None:
    click.echo(f"pdqn: {error}", err=True)
    sys.exit(code)


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


def _reaching(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say how other hosts reach this one."""
    advertise = click.option(
        "--advertise",
        metavar="HOST",
        help="address at which other hosts reach this one  [default: by the route]",
    )
    ports = click.option(
        "--port-range", "ports", type=PortRange(), help="ports that roles may bind, for firewalls"
    )
    return advertise(ports(command))


def _joining(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a command that comes into a run of another host."""
    key = click.option(
        "--key", type=_PATH, metavar="FILE", help="this host's key file, from pdqn keys"
    )
    insecure = click.option(
        "--insecure", is_flag=True, help="join a run off loopback that has no keys"
    )
    return key(insecure(command))


def _on_dask(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which Dask cluster."""
    options = [
        click.option(
            "--dask",
            metavar="ADDRESS",
            help="place the roles on a Dask cluster: a scheduler's address or file, or local",
        ),
        click.option(
            "--dask-python",
            metavar="PATH",
            show_default="this one",
            help="interpreter on the workers that has pdqn",
        ),
        click.option(
            "--dask-slots",
            type=click.IntRange(1),
            help="actors that a worker has room for  [default: its threads]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say what to run; check and launch share them."""
    options = [
        click.option(
            "--env",
            metavar="ID",
            help="gymnasium id, module:id or module:factory  [default: the built-in]",
        ),
        click.option(
            "--env-arg",
            "env_args",
            multiple=True,
            type=KeyValue(),
            help="argument of the environment; may be repeated",
        ),
        click.option("--actors", type=int, help="actor processes; 0: only those that join later"),
        click.option("--replays", type=int, help="replay processes that share the capacity"),
        click.option("--envs-per-actor", type=int, help="environments that an actor steps at once"),
        click.option(
            "--mode",
            type=click.Choice(["auto", "single", "parallel", "ultra"]),
            help="preset of sizes  [default: auto, by the machine]",
        ),
        click.option("--episodes", type=Limit(), help="end after this many episodes"),
        click.option("--steps", type=Limit(), help="end after this many environment steps"),
        click.option("--time", "seconds", type=Duration(), help="end after this long: 90s, 10m"),
        click.option("--seed", type=int, help="seed of the whole run  [default: 0]"),
        click.option(
            "--preset",
            type=click.Choice(PRESETS),
            help="settings of a known algorithm or problem; the file and options go before it",
        ),
        click.option("--config", "config_file", type=_PATH, help="TOML file"),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="any setting; may be repeated (see: pdqn settings)",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


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
@_run_options
@click.option("--force", is_flag=True, help="run a mode that the check advises against")
@click.option("--yes", is_flag=True, help="answer every question with yes")
@click.option("--check-only", is_flag=True, help="print what would run, and end")
@click.option("--run-dir", type=_PATH, help="[default: runs/<env>__...]")
@click.option(
    "--resume",
    type=_PATH,
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
    "--keys", type=_PATH, metavar="DIR", help="encrypt, and let in only whose keys are in DIR"
)
@click.option(
    "--insecure", is_flag=True, help="bind off loopback without keys: anybody can read and join"
)
@_reaching
@click.option("--no-learner", is_flag=True, help="start no learner here: one joins from elsewhere")
@click.option("--no-replay", is_flag=True, help="start no replay here: it joins from elsewhere")
@_on_dask
@click.option(
    "--dask-pin",
    "dask_pins",
    multiple=True,
    type=KeyValue(),
    metavar="ROLE=HOST",
    help="place learner or replay on this host; may be repeated",
)
@click.option("--wandb", is_flag=True, help="log to Weights & Biases, too (pdqn[wandb])")
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
    config = _layers(options, past)
    if console in ("auto", "rich") and sys.stderr.isatty():
        click.echo("pdqn: getting ready", err=True)
    from launcher.access import open_on_cluster, open_run

    elsewhere = [role for role, gone in (("learner", no_learner), ("replay", no_replay)) if gone]
    reach = {"insecure": insecure, "advertise": advertise, "ports": ports}
    with contextlib.ExitStack() as stack:
        cluster, access = None, None
        if dask is None:
            # Before the imports, which take seconds.
            access = open_run(bind, keys=keys, elsewhere=frozenset(elsewhere), **reach)
        pins = _pins(dask_pins, elsewhere) if dask else {}
        from launcher import start

        if dask is not None:
            cluster = start.connect(dask, dask_python or sys.executable, dask_slots)
            stack.callback(cluster.close)
            pins = {role: cluster.host_of(host) for role, host in pins.items()}
            access = open_on_cluster(cluster.own_address, bind, keys=keys, pins=pins, **reach)
        assert access is not None
        return start.launch(
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
@_run_options
@_on_dask
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
    from launcher import start

    config = _layers(options)
    if dask is not None:
        python = dask_python or sys.executable
        return start.check_cluster(config, dask, python, dask_slots, as_json=as_json)
    return start.check(config, as_json=as_json)


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
        from launcher.access import find_door

        door = None
        if not leash:
            # Before the imports, which take seconds.
            door = find_door(join, key=key, insecure=insecure, advertise=advertise, ports=ports)
        from launcher import agent, joining

        part = agent.Part(role, count or None, log_dir)
        if door is None:
            return joining.join_on_leash(part, join, interrupts)
        return joining.join(part, door, interrupts)

    command.__doc__ = (
        f"{summary}\n\n"
        "Roles that end are started again; Ctrl-C takes them out of the run in order, and the end "
        f"of the run ends them.\n\n\b\npdqn {role} --join tcp://127.0.0.1:7777{more}\n"
        f"pdqn {role} --join tcp://10.0.0.1:7777 --key this-host.key{more}"
    )
    options = [
        click.option("--join", required=True, metavar="ADDRESS", help="of a run: tcp://HOST:PORT"),
        _joining,
        _reaching,
        click.option("--leash", is_flag=True, hidden=True),
        click.option(
            "--log-dir", type=_PATH, help="folder of the roles' logs  [default: standard error]"
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
@click.argument("directory", metavar="DIR", type=_PATH)
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
    from launcher import keys as making

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
@_joining
def watch(run: str, console: Any, key: Path | None, insecure: bool) -> int:
    """Show a run as it goes on, or how it ended, from its directory or from its address.

    \b
    pdqn watch runs/CartPole-v1__seed0__20260101-120000
    pdqn watch tcp://127.0.0.1:7777
    pdqn watch tcp://10.0.0.1:7777 --key this-host.key
    pdqn watch runs/... --console json
    """
    interrupts = Interrupts().install()
    from launcher import watch as watching

    return watching.watch(run, console, interrupts, key=key, insecure=insecure)


@cli.command("eval", short_help="Show how good a policy is, beside the baselines.")
@click.argument("run", type=_PATH)
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
    default=configuration.MAX_EPISODE_STEPS,
    show_default=True,
    type=click.IntRange(1),
    help="an episode is cut after so many, and counts as far as it went",
)
@click.option("--video", type=_PATH, help="film the first episodes: gif, webp, png or mp4")
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
    from launcher import evaluate as evaluation

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
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True, type=_PATH)
@click.option(
    "--out",
    type=_PATH,
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
        from launcher.pictures import draw_pictures
        from launcher.plots import plot_training

        drawn = draw_pictures(runs[0]) if out is None else [plot_training(runs[0], out)]
    else:
        from launcher.compare import draw_comparison

        out = out or Path("comparison.png")
        drawn = [*(group.label for group in draw_comparison(runs, out)), out]
    for line in drawn:
        click.echo(str(line))
    return 0


@cli.command(short_help="Write a policy's network as an ONNX file.")
@click.argument("run", type=_PATH)
@click.option("--onnx", "path", type=_PATH, required=True, help="the file")
@click.option("--best", is_flag=True, help="the parameters that evaluated best, not the last ones")
def export(run: Path, path: Path, best: bool) -> int:
    """Write the network of a run as an ONNX file, for programs without torch (pdqn[onnx]).

    Its inputs are the fields of the observation, its output is the value of every action.

    \b
    pdqn export runs/CartPole-v1__seed0__20260101-120000 --onnx policy.onnx
    """
    from launcher import export as exporting

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
    from launcher import bench as benchmark

    return benchmark.bench_replay(data, seconds, as_json=as_json)


@bench.command(
    "hosts",
    cls=GroupedCommand,
    groups=_GROUPS,
    short_help="What a transition costs, and how many actors saturate what.",
)
@_run_options
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
    config = _layers(options)
    from launcher import bench_hosts as benchmark

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
    for name, default, documentation, accepted in configuration.settings():
        shown = "auto" if default is None else default
        click.echo(f"{name} = {shown}\n    {documentation} ({accepted})")
    return 0


def _layers(options: Mapping[str, Any], past: PastRun | None = None) -> configuration.Config:
    """The configuration from all layers that a person writes, or has written for a past run."""
    file = options["config_file"]
    layers: list[tuple[str, configuration.Layer]] = []
    if options["preset"] is not None:
        path = Path(__file__).with_name("presets") / f"{options['preset']}.toml"
        layers.append((f"preset {options['preset']}", configuration.read_toml(path)))
    if file is not None:
        layers.append((f"file {file}", configuration.read_toml(file)))
        _check_preset(layers)
    layers.append(("environment variable", configuration.from_environment(os.environ)))
    layers.append(("--set", configuration.from_assignments(options["assignments"])))
    layers.append(("option", _option_layer(options)))
    if past is not None:
        layers = past.layers(*layers)
    config = configuration.build(*layers)
    if config.run.episodes is None and config.run.steps is None and config.run.time_seconds is None:
        config = configuration.build(
            ("default", {"run": {"time_seconds": _DEFAULT_SECONDS}}), *layers
        )
    return config


def _check_preset(layers: Sequence[tuple[str, configuration.Layer]]) -> None:
    """Refuse a preset of which a file leaves nothing, such as the whole configuration of a run."""
    if len(layers) < 2:
        return
    (preset, chosen), (file, given) = layers
    if all(key in given.get(section, {}) for section in chosen for key in chosen[section]):
        raise UsageError(f"--{preset} would do nothing: {file} sets all that it sets")


def _option_layer(options: Mapping[str, Any]) -> configuration.Layer:
    names = {
        ("run", "env"): "env",
        ("run", "mode"): "mode",
        ("run", "episodes"): "episodes",
        ("run", "steps"): "steps",
        ("run", "time_seconds"): "seconds",
        ("run", "seed"): "seed",
        ("actor", "count"): "actors",
        ("actor", "envs_per_actor"): "envs_per_actor",
        ("replay", "shards"): "replays",
    }
    layer: dict[str, dict[str, Any]] = {}
    for (section, key), option in names.items():
        if options[option] is not None:
            layer.setdefault(section, {})[key] = options[option]
    if options.get("wandb"):
        layer.setdefault("system", {})["wandb"] = True
    if options.get("metrics_port"):
        layer.setdefault("system", {})["metrics_port"] = options["metrics_port"]
    if options["env_args"]:
        layer.setdefault("run", {})["env_args"] = dict(options["env_args"])
    return layer
