"""A run's pictures, which a separate process draws while the run goes on.

``python -m launcher.results.pictures RUN`` draws them once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launcher.rundir import CONFIG, STATE_FILE
from pdqn.apart import Apart, ApartError
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import read_toml
from pdqn.logs import LOG, keep_within
from pdqn.process import leave_processor
from pdqn.trust import NOTHING, Trust

_NICENESS = 15
_DRAWING_SECONDS = 300.0


class PictureDrawer:
    """The process that draws a run's pictures from time to time; nothing waits for it.

    Args:
        run_dir: the run's directory.
        config: the run's. The process may run the environment and the network that it names.
        log: file for the process's errors.
    """

    def __init__(self, run_dir: Path, config: Config, log: Path) -> None:
        self._run_dir, self._log = run_dir, log
        self._named = [config.run.env, config.network.kind]
        self._period_seconds = config.system.picture_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._next = time.monotonic() + self._period_seconds

    def turn(self) -> None:
        """Start a drawing if one is due and the last one has ended."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = None
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._period_seconds
        self._log.parent.mkdir(exist_ok=True)
        keep_within(self._log, LOG)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self._run_dir), *self._named],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """End a drawing that is in progress."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for left in self._run_dir.glob(f".*.{self._process.pid}"):
                left.unlink()
            self._process = None


def may_run(env_id: str, kind: str) -> Trust:
    """Permit the environment and the network of a run's own configuration."""
    return Trust(frozenset({env_id}), frozenset({kind}))


def draw_pictures(run_dir: Path, trust: Trust = NOTHING) -> list[Path]:
    """Draw all pictures of a run as it is now; return their paths.

    Args:
        run_dir: the run's directory.
        trust: permission to run what its configuration names.

    Raises:
        UsageError: its model file or its configuration is damaged, they differ, or they name code
            that may not run here.
    """
    # These imports take two seconds, for which commands that draw nothing need not wait.
    from launcher.results.training import plot_training, read_object

    drawn = [plot_training(run_dir)]
    _check_config(run_dir / CONFIG)
    told = read_object(run_dir / STATE_FILE).get("circle_placement")
    if told is False:
        return drawn
    # These import torch and environments, which the pictures of other runs do not need.
    from launcher.results.circle_placement import STRATEGY_PICTURE, draw_strategy
    from launcher.results.models import open_model_of_run
    from pdqn.model import read_model
    from pdqn.model_head import FINAL_MODEL

    path = run_dir / FINAL_MODEL
    # Runs of earlier versions do not say what they are; their models do.
    if path.exists() and (told is True or read_model(path).spec.circle_placement):
        drawn.append(draw_strategy(open_model_of_run(path, trust), run_dir / STRATEGY_PICTURE))
    return drawn


def draw_last(run_dir: Path, config: Config, say: Callable[[str], None]) -> None:
    """Draw the pictures of a run that has ended."""
    named = (config.run.env, config.network.kind)
    try:
        # In mode single, this process has imported all of it.
        if config.run.mode == "single":
            draw_pictures(run_dir, may_run(*named))
        else:
            _draw_apart(run_dir, *named)
    except ApartError as error:
        say(f"the pictures could not be drawn: {error}")
    except Exception as error:  # noqa: BLE001 - networks and environments raise anything
        # A full disk, or a picture that cannot be drawn, must not hide how the run went.
        say(f"the pictures could not be drawn: {type(error).__name__}: {error}")


def _draw_apart(run_dir: Path, env_id: str, kind: str) -> None:
    """Draw the pictures in another process: the launcher imports neither torch nor Matplotlib."""
    apart = Apart("pictures")
    try:
        apart.begin(_draw, run_dir, env_id, kind, seconds=_DRAWING_SECONDS).result()
    finally:
        apart.close()


def _draw(run_dir: Path, env_id: str, kind: str) -> None:
    draw_pictures(run_dir, may_run(env_id, kind))


def _check_config(path: Path) -> None:
    if path.exists() and not isinstance(read_toml(path).get("run", {}).get("env"), str):
        raise UsageError(f"{path} is damaged: it has no run.env")


if __name__ == "__main__":
    leave_processor(_NICENESS)
    draw_pictures(Path(sys.argv[1]), may_run(*sys.argv[2:4]))
