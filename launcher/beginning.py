"""A new run's first files: a person's words, its origin, and the parameters it begins with."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.about import ABOUT, ORIGIN, About, origin, read_about
from pdqn.atomic import replacing
from pdqn.config import Config, SystemConfig
from pdqn.errors import UsageError
from pdqn.model_head import BEST_MODEL, FINAL_MODEL, INITIAL_MODEL, model_steps

if TYPE_CHECKING:  # the launcher starts its helpers before it imports these
    from launcher.plan.inspector import Inspector
    from launcher.plan.machine import Machine
    from launcher.rundir import RunDirectory
    from pdqn.specs import EnvironmentSpec


@dataclass(frozen=True)
class Beginning:
    """Files of a run that are there before its roles.

    Attributes:
        about: a person's words about it.
        model: model file with whose parameters the learner begins; None for new ones.
    """

    about: About = field(default_factory=About)
    model: Path | None = None

    def check(
        self, config: Config, spec: EnvironmentSpec, inspector: Inspector | None = None
    ) -> str:
        """Say which parameters of the model fit the run's network; empty without a model.

        Args:
            config: the run's, filled in for this machine.
            spec: of its environment.
            inspector: a process that looks at files and networks; by default a new one does.

        Raises:
            UsageError: it is not a model file, or nothing of it fits.
        """
        if self.model is None:
            return ""
        if inspector is not None:
            return f"{self.model}: {inspector.fit(self.model, spec, config.network)}"
        from launcher.plan.inspector import Inspector

        with Inspector(SystemConfig()) as own:
            return self.check(config, spec, own)

    def write(
        self,
        directory: RunDirectory,
        config: Config,
        configured: Config,
        here: Machine,
        *,
        is_new: bool,
    ) -> None:
        """Write a run's first files.

        Args:
            directory: the run's.
            config: as filled in for this machine.
            configured: as a person wrote it.
            here: this machine.
            is_new: whether the run begins now, and does not go on.

        Raises:
            UsageError: one of them cannot be written, or the model cannot be read.
        """
        found, about = dict[str, str](), read_about(directory.path).joined(self.about)
        if about != About():
            found[ABOUT] = about.text
        if is_new:
            found[ORIGIN] = origin(dataclasses.asdict(here))
        directory.write_config(config, configured, found)
        self._copy_model(directory.path)

    def _copy_model(self, path: Path) -> None:
        """Copy the model into a run's directory, from where learners on all hosts get it."""
        if self.model is None:
            return
        try:
            with replacing(path / INITIAL_MODEL) as temporary:
                shutil.copyfile(self.model, temporary)
        except OSError as error:
            raise UsageError(f"--init-from {self.model}: {error.strerror}") from error


def model_of(init_from: Path) -> Path:
    """Return the model file that ``--init-from`` means: of a run, the last parameters or the best.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    names = (FINAL_MODEL, BEST_MODEL)
    files = [init_from] if init_from.is_file() else [init_from / name for name in names]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise UsageError(f"--init-from {init_from}: neither a model file nor a run with a model")
    try:
        model_steps(path)
    except OSError as error:
        raise UsageError(f"--init-from {path}: {error.strerror}") from error
    return path
