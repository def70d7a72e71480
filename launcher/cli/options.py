"""Options that several commands share, their types, and the configuration they give."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from launcher.cli import completing
from launcher.cli.trusting import Authored, admit_configuration, trusting
from launcher.kinds import NO_PRESET, PLACEMENT_ID, Names, read_preset, sets_all
from pdqn import layers as configuration
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.trust import read_settings

if TYPE_CHECKING:
    from launcher.run.resume import PastRun

_DEFAULT_SECONDS = 600.0
# Headings of the help for what says what to run, and the options under them.
GROUPS = {
    "What to train": ("env", "env_args", "seed"),
    "When to end": ("episodes", "steps", "seconds", "stop_at"),
    "Sizes": ("mode", "actors", "envs_per_actor", "replays"),
    "Settings": ("preset", "config_file", "assignments", "trust"),
}
PRESETS = ("dqn", "apex", "rainbow", "btr", "pqn", "vector", "placement", "board", "atari")
DRIVEN = "driven"


class NamedPath(click.Path):
    """A path, which is never the current directory by an empty text, as of an unset variable."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path."""
        if not os.fspath(value):
            self.fail("it is empty; name a file or a directory", param, ctx)
        return super().convert(value, param, ctx)


PATH = NamedPath(path_type=Path)


class ConsoleKind(click.Choice[str]):
    """A kind of console; ``driven`` is for ``pdqn.driver`` alone, so the help leaves it out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the kind."""
        return value if value == DRIVEN else super().convert(value, param, ctx)


class Duration(click.ParamType[float]):
    """A number of seconds, or a number with a unit: 90s, 10m, 2h, 1d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds."""
        if isinstance(value, float):
            return value
        try:
            return configuration.seconds_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Whole(click.types.IntParamType):
    """A whole number as people write it, also as 1e5 or 100k; the settings check its bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return super().convert(_read(value), param, ctx)


class WholeRange(click.IntRange):
    """A whole number within bounds as people write it, also as 1e5 or 100k."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        return super().convert(_read(value), param, ctx)


def _read(value: Any) -> Any:
    """Return the whole number that a text means; what is not one stays, to be refused.

    Raises:
        BadParameter: the number is larger than files can hold.
    """
    try:
        return configuration.whole_number(str(value))
    except OverflowError as error:
        raise click.BadParameter(str(error)) from None
    except ValueError:
        return value


class PortRange(click.ParamType[tuple[int, int]]):
    """A range of ports, FIRST:LAST."""

    name = "first:last"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return the first port and the last."""
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
        """Return the number, 0 for ``auto``."""
        if value == "auto" or value == 0:
            return 0
        number = _read(value)
        if not isinstance(number, int) or number < 1:
            self.fail(f"{value!r}; expected auto or a number from 1 up", param, ctx)
        return number


class KeyValue(click.ParamType[tuple[str, Any]]):
    """A pair KEY=VALUE, whose value is read as TOML if it is valid, and else as text."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        """Return the key and the value."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r}; expected KEY=VALUE", param, ctx)
        if text.strip() == "None":
            self.fail(f"{value!r}; no setting can be None: leave it out", param, ctx)
        try:
            return key.strip(), configuration.parse_value(text.strip())
        except ValueError as error:
            self.fail(f"{key.strip()} = {text.strip():.40}...: {error}", param, ctx)


def reaching(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how other hosts reach this one."""
    advertise = click.option(
        "--advertise",
        metavar="HOST",
        help="address at which other hosts reach this one  [default: by the route]",
    )
    ports = click.option(
        "--port-range", "ports", type=PortRange(), help="ports that roles may bind, for firewalls"
    )
    return advertise(ports(command))


def joining(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that joins another host's run."""
    key = click.option(
        "--key",
        type=PATH,
        metavar="FILE",
        help="this host's key file, from pdqn keys  [default: the one in the run's directory]",
    )
    insecure = click.option("--insecure", is_flag=True, help="join a run that has no keys")
    return key(insecure(command))


def on_dask(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a Dask cluster."""
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
            help="Python interpreter on the workers that has pdqn",
        ),
        click.option(
            "--dask-slots",
            type=WholeRange(1),
            help="actors that a worker has room for  [default: its threads]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _limits() -> list[Callable[..., Any]]:
    """List the options that say when a run is to end."""
    return [
        click.option("--episodes", type=Whole(), help="end after this many episodes"),
        click.option("--steps", type=Whole(), help="end after this many environment steps"),
        click.option("--time", "seconds", type=Duration(), help="end after this long: 90s, 10m"),
        click.option(
            "--stop-at",
            metavar="FIGURE=VALUE",
            help="end once a figure has this value: return=475, evaluation=475, train/loss<=0.01",
        ),
    ]


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to run; several commands share them."""
    options = [
        click.option(
            "--env",
            metavar="ID",
            shell_complete=completing.environments,
            help="gymnasium id, module:id or module:factory  [default: the built-in one]",
        ),
        click.option(
            "--env-arg",
            "env_args",
            multiple=True,
            type=KeyValue(),
            help="argument of the environment; may be repeated",
        ),
        click.option(
            "--actors", type=Whole(), help="actor processes; 0: only those that join later"
        ),
        click.option("--replays", type=Whole(), help="replay processes that share the capacity"),
        click.option("--envs-per-actor", type=Whole(), help="environments that an actor steps"),
        click.option(
            "--mode",
            type=click.Choice(["auto", "single", "parallel", "ultra"]),
            help="preset of sizes  [default: auto, chosen for the machine]",
        ),
        *_limits(),
        click.option("--seed", type=Whole(), help="seed of the whole run  [default: 0]"),
        click.option(
            "--preset",
            type=click.Choice((*PRESETS, NO_PRESET)),
            help="settings of a known algorithm or problem; the file and options override them  "
            "[default: by the environment]",
        ),
        click.option("--config", "config_file", type=PATH, help="TOML file"),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            shell_complete=completing.settings,
            help="any setting; may be repeated (see: pdqn settings)",
        ),
        trusting("run whatever code another person's file or run directory names"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class Asked:
    """A configuration as a person asked for it.

    Attributes:
        config: what all layers give, without a preset that comes by itself.
        given: the settings that the person set; None if no preset is to come by itself.
    """

    config: Config
    given: Names | None


def configuration_of(options: Mapping[str, Any], past: PastRun | None = None) -> Asked:
    """Build the configuration from all layers that a person wrote, now or for a past run.

    Raises:
        NotTrustedError: another person's file names code to run.
    """
    authored = _layers_of(options)
    layers = [(name, layer) for name, layer, _ in authored]
    given = {(section, key) for _, layer in layers for section in layer for key in layer[section]}
    if past is None:
        env = configuration.build(*layers).run.env
        layers = [*_arguments_of(env, options["preset"], given), *layers]
    else:
        layers = past.layers(*layers)
        theirs = (past.configured, past.config.to_map())
        authored = [*((past.name, layer, past.is_own) for layer in theirs), *authored]
    config = configuration.build(*layers)
    if config.run.episodes is None and config.run.steps is None and config.run.time_seconds is None:
        config = configuration.build(
            ("default", {"run": {"time_seconds": _DEFAULT_SECONDS}}), *layers
        )
    admit_configuration(authored, config, trust=options["trust"])
    return Asked(config, None if past or options["preset"] else frozenset(given))


def _arguments_of(
    env: str, asked: str | None, given: Names
) -> list[tuple[str, configuration.Layer]]:
    """Return the arguments with which circle placement's preset was measured.

    They are not in the preset's file: other environments may take it, and not these arguments.

    Args:
        env: the environment.
        asked: the preset that a person names; with another one there are no such arguments.
        given: the settings that the person set; a whole configuration has its own arguments.
    """
    if env != PLACEMENT_ID or asked not in (None, "placement"):
        return []
    if asked is None and sets_all(read_preset("placement"), given):
        return []
    told = {"run": {"env_args": {"rollouts": "auto"}}, "evaluation": {"env_args": {"rollouts": 0}}}
    return [("preset placement", told)]


def _layers_of(options: Mapping[str, Any]) -> list[Authored]:
    """Read the layers that the options name, lowest first."""
    file, layers = options["config_file"], list[Authored]()
    preset = options["preset"]
    if preset not in (None, NO_PRESET):
        layers.append((f"preset {preset}", read_preset(preset), True))
    if file is not None:
        layers.append((f"file {file}", *read_settings(file)))
        _check_preset(layers)
    layers.append(("environment variable", configuration.from_environment(os.environ), True))
    layers.append(("--set", configuration.from_assignments(options["assignments"]), True))
    layers.append(("option", _option_layer(options), True))
    if options.get("console") == DRIVEN:
        layers += [(name, layer, True) for name, layer in _read_given(sys.stdin)]
    return layers


def _read_given(stream: TextIO) -> list[tuple[str, configuration.Layer]]:
    """Read the settings with which a program drives this run: a line of named layers.

    Raises:
        UsageError: it is another line, as of a person who types.
    """
    try:
        return [(str(name), dict(layer)) for name, layer in json.loads(stream.readline())]
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--console {DRIVEN}: standard input begins with another line ({error})"
        ) from None


def _check_preset(layers: Sequence[Authored]) -> None:
    """Refuse a preset that a file overrides entirely, as the whole configuration of a run does."""
    if len(layers) < 2:
        return
    (preset, chosen, _), (file, given, _) = layers
    if all(key in given.get(section, {}) for section in chosen for key in chosen[section]):
        raise UsageError(f"--{preset} would do nothing: {file} sets everything that it sets")


def _option_layer(options: Mapping[str, Any]) -> configuration.Layer:
    names = {
        ("run", "env"): "env",
        ("run", "mode"): "mode",
        ("run", "episodes"): "episodes",
        ("run", "steps"): "steps",
        ("run", "time_seconds"): "seconds",
        ("run", "stop_at"): "stop_at",
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
    for name in ("wandb_project", "wandb_group"):
        if options.get(name):
            layer.setdefault("system", {})[name] = options[name]
    if options.get("metrics_port"):
        layer.setdefault("system", {})["metrics_port"] = options["metrics_port"]
    if options["env_args"]:
        layer.setdefault("run", {})["env_args"] = dict(options["env_args"])
    return layer


@dataclass(frozen=True)
class HostOptions:
    """The options about other hosts that take part in a run."""

    bind: str | None
    keys: Path | None
    insecure: bool
    advertise: str | None
    ports: tuple[int, int] | None
    no_learner: bool
    no_replay: bool

    @property
    def elsewhere(self) -> list[str]:
        """Roles that are not started here."""
        gone = {"learner": self.no_learner, "replay": self.no_replay}
        return [role for role, is_gone in gone.items() if is_gone]

    @property
    def reach(self) -> dict[str, Any]:
        """The arguments that ``open_run`` and ``open_on_cluster`` share."""
        names = ("keys", "insecure", "advertise", "ports")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class DaskOptions:
    """The options about a Dask cluster.

    Raises:
        UsageError: an option of a cluster, without --dask.
    """

    dask: str | None
    dask_python: str | None
    dask_slots: int | None
    dask_pins: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a cluster's options without --dask, rather than ignore them."""
        given = {"python": self.dask_python, "slots": self.dask_slots, "pin": self.dask_pins}
        for name, value in given.items():
            if value and self.dask is None:
                raise UsageError(f"--dask-{name} is for roles on a Dask cluster: give --dask")

    @property
    def python(self) -> str:
        """The interpreter on the workers."""
        return self.dask_python or sys.executable

    def pins(self, elsewhere: Sequence[str]) -> dict[str, str]:
        """Return the hosts on which roles must be, by role.

        Raises:
            UsageError: a role that cannot be pinned, or one that ``--no-ROLE`` leaves out.
        """
        for role in elsewhere:
            raise UsageError(
                f"--no-{role}: with --dask it is placed on the cluster; use --dask-pin"
            )
        pins = {role: str(host) for role, host in self.dask_pins}
        for role in pins.keys() - {"learner", "replay"}:
            raise UsageError(f"--dask-pin {role}={pins[role]}: expected learner or replay")
        return pins


_Group = TypeVar("_Group", HostOptions, DaskOptions)


def take(group: type[_Group], options: dict[str, Any]) -> _Group:
    """Remove a group's options from all that were given, and return the group."""
    names = [field.name for field in dataclasses.fields(group) if field.name in options]
    return group(**{name: options.pop(name) for name in names})
