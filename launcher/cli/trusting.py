"""Options with which a person permits what files and heads of others name, and their checks."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from launcher.safe_path import find_own_modules
from pdqn.config import Config, network_kind
from pdqn.errors import UsageError
from pdqn.layers import Layer
from pdqn.trust import ON_LAUNCH, Trust, names_code

# A layer of settings: its name, its values, and whether this person has written it.
Authored = tuple[str, Layer, bool]


class NetworkKind(click.ParamType[str]):
    """A name of a network, as ``network.kind`` accepts it."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        try:
            network_kind(str(value))
        except ValueError:
            self.fail(
                f"{value!r}; expected a network's name, or package.module:factory", param, ctx
            )
        return str(value)


def trusting(help_text: str) -> Callable[..., Any]:
    """Make the option that permits everything."""
    return click.option("--trust", is_flag=True, help=help_text)


def naming_network(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that builds the network of a file."""
    network = click.option(
        "--network",
        type=NetworkKind(),
        metavar="NAME",
        help="network that may be built, for a file that names its own as module:factory",
    )
    everything = click.option(
        "--trust",
        "everything",
        is_flag=True,
        help="run whatever code the file names: only for files of people that you trust",
    )
    return network(everything(command))


def naming_environment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option of a command that makes the environment of a file."""
    return click.option(
        "--env",
        metavar="NAME",
        help="environment that may run, for a file that names its own as module:factory",
    )(command)


def admitting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that joins: what the run's head may have this host run."""
    options = [
        click.option(
            "--env",
            "envs",
            multiple=True,
            metavar="NAME",
            help="environment that the run may have; registered ones need no permission",
        ),
        click.option(
            "--network",
            "networks",
            multiple=True,
            type=NetworkKind(),
            metavar="NAME",
            help="network that the run may have, as module:factory",
        ),
        click.option(
            "--allow-list",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="file of such names, one a line; # begins a comment",
        ),
        trusting("run whatever code the run's head names on this host"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def take_trust(options: dict[str, Any]) -> Trust:
    """Remove the options of ``admitting`` from all that were given, and return the permission.

    Raises:
        UsageError: the list cannot be read, or everybody may write it.
    """
    path: Path | None = options.pop("allow_list")
    listed = frozenset() if path is None else read_allow_list(path)
    return Trust(
        listed.union(options.pop("envs")),
        listed.union(options.pop("networks")),
        options.pop("trust"),
    )


def read_allow_list(path: Path) -> frozenset[str]:
    """Read a list of the environments and networks that runs may have on this host.

    Raises:
        UsageError: the file cannot be read, or everybody may write it.
    """
    try:
        if path.stat().st_mode & stat.S_IWOTH:
            raise UsageError(f"--allow-list {path}: everybody may write it: chmod o-w {path}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--allow-list {path}: {reason}") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return frozenset(line for line in lines if line)


def admit_configuration(layers: Sequence[Authored], config: Config, *, trust: bool) -> None:
    """Refuse code that another person's file names, and let imports find what remains.

    Args:
        layers: the layers of the configuration.
        config: the configuration that they give.
        trust: whether any code may run.

    Raises:
        NotTrustedError: a file names code that the person has not named.
    """
    own = [layer for _, layer, is_own_layer in layers if is_own_layer]
    allowed = Trust(
        frozenset(str(layer["run"]["env"]) for layer in own if "env" in layer.get("run", {})),
        frozenset(
            str(layer["network"]["kind"]) for layer in own if "kind" in layer.get("network", {})
        ),
        trust,
        ON_LAUNCH,
    )
    for name, layer, is_own_layer in layers:
        if not is_own_layer:
            _check(f"{name}:", layer, config, own, allowed)
    run, kind = config.run, config.network.kind
    if names_code(run.env, kind, run.env_args, config.evaluation.env_args):
        find_own_modules()


def _check(whose: str, layer: Layer, config: Config, own: Sequence[Layer], allowed: Trust) -> None:
    """Check what is in force of another person's layer."""
    for section in ("run", "evaluation"):
        values = layer.get(section, {})
        if section == "run" and values.get("env") == config.run.env:
            allowed.check_environment(whose, config.run.env)
        if "env_args" in values:
            given = {key for one in own for key in _keys(one.get(section, {}).get("env_args"))}
            there = getattr(config, section).env_args
            theirs = {key: value for key, value in there.items() if key not in given}
            allowed.check_environment(whose, config.run.env, theirs)
    if layer.get("network", {}).get("kind") == config.network.kind:
        allowed.check_network(whose, config.network.kind)


def _keys(arguments: Any) -> set[str]:
    return set(arguments) if isinstance(arguments, dict) else set()
