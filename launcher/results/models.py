"""Models from files of which another person, or another host, may be the author."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from launcher.plan.inspector import Here, Inspector
from launcher.rundir import CONFIG
from launcher.safe_path import find_own_modules
from launcher.terminal import echo
from pdqn import layers
from pdqn.config import SystemConfig
from pdqn.errors import UsageError
from pdqn.model import Model, ModelFile, read_model
from pdqn.model_head import BEST_MODEL, FINAL_MODEL
from pdqn.policy import model_path
from pdqn.trust import Trust, own_config


@dataclass(frozen=True)
class Permission:
    """The code that a person lets a model file run.

    Attributes:
        env: environment that the person names; it replaces the file's.
        network: network that the person names; it replaces the file's.
        everything: whether the file may run any code.
    """

    env: str | None = None
    network: str | None = None
    everything: bool = False

    @property
    def trust(self) -> Trust:
        """The same as ``pdqn.trust`` checks it."""
        environments, networks = (
            frozenset(filter(None, [name])) for name in (self.env, self.network)
        )
        return Trust(environments, networks, self.everything)


NO_PERMISSION = Permission()


def open_model(path: Path, permission: Permission, *, plays: bool = False) -> Model:
    """Load a model once it is known to run nothing that the person has not permitted.

    Args:
        path: the model file.
        permission: the code that the person lets it run.
        plays: whether the environment will be made.

    Raises:
        UsageError: the file is not a model or may not run here, or the named environment differs
            from the one that the model is for.
    """
    file, env, network = read_model(path), permission.env, permission.network
    named = file if env is None else replace(file, spec=replace(file.spec, id=env))
    if network is not None:
        named = replace(named, network=replace(file.network, kind=network))
    _admit(named, permission.trust, plays=plays)
    if file.spec.id != named.spec.id:
        with Inspector(SystemConfig()) as inspector:
            _compare(named, named.env_args, inspector)
    return named.build()


def open_model_of_run(path: Path, trust: Trust) -> Model:
    """Load the model of a run for the run's own environment and network.

    A learner on another host may have written the file. Of such a file only the parameters count:
    all else must be as the run's configuration says.

    Args:
        path: the model file, in the run's directory.
        trust: permission to run what the configuration names.

    Raises:
        UsageError: the file differs from the configuration, or names code that may not run here.
    """
    file = read_model(path)
    _admit(file, trust, plays=True)
    settings = path.parent / CONFIG
    if not settings.exists():
        return file.build()
    config = layers.build((f"file {settings}", layers.of_run(layers.read_toml(settings))))
    if different := file.differences(config):
        raise UsageError(f"{path} is not of this run: {'; '.join(different)}")
    # The model does not have the arguments of training.
    if own_config(path.parent) is None:
        trust.check_environment(f"{settings}:", config.run.env, config.run.env_args)
    # The process that draws pictures of the run makes its environment anyway.
    _compare(file, config.run.env_args, Here())
    return file.build()


def chosen_model(run: Path, *, best: bool) -> Path:
    """Return the model file to use of a run: the best one where there is no last one, and say so.

    A run that is ended at once, or that still goes on, has no last parameters.

    Args:
        run: a run directory or a model file.
        best: take the parameters that evaluated best.

    Raises:
        UsageError: see ``model_path``.
    """
    if best or (run / FINAL_MODEL).exists() or not (run / BEST_MODEL).is_file():
        return model_path(run, best=best)
    echo(
        f"pdqn: {run} has no {FINAL_MODEL}, as of a run that goes on or was ended at once; its "
        f"best parameters are used, {BEST_MODEL}",
        err=True,
    )
    return run / BEST_MODEL


def _admit(file: ModelFile, trust: Trust, *, plays: bool) -> None:
    """Refuse a file that may not run here, and let imports find the code that it names."""
    file.check(trust, plays=plays)
    if file.names_code:
        find_own_modules()


def _compare(file: ModelFile, env_args: dict[str, object], inspector: Inspector | Here) -> None:
    """Refuse a model that is for another environment than the one that it would play here."""
    here = inspector.examine(file.spec.id, env_args).spec.stacked(file.spec.frame_stack)
    if difference := here.difference(file.spec):
        raise UsageError(f"{file.path} is for another environment than {here.id}: {difference}")
